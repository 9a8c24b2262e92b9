package config

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// maxDepth bounds how deep values are nested: the parser of TOML is recursive.
const maxDepth = 32

// errDeep: values are nested too deep.
var errDeep = errors.New("values are nested too deep")

// positions say where in a text its keys and values are. The parser of TOML
// knows that, and keeps it to itself but for its own errors; so the text is
// scanned once more. The scanner takes the text to be valid: what the parser
// refuses it may read in any way, without harm.
type positions struct {
	keys   map[string]int // by path: offset of the key, the first time
	values map[string]int // by path: offset of the value, or of the table's name
	again  []twice

	text   string
	at     int
	lists  map[string]int // by path: how many tables a [[list]] has
	heads  map[string]int // by path: offset of a [table]
	failed error
}

// twice is a key that was there before.
type twice struct {
	name          string
	first, second int // offsets
}

// child is the path of a key in a table.
func child(path, key string) string { return path + "." + strconv.Quote(key) }

// element is the path of an element of a list.
func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// scan finds the positions in a text.
func scan(text string) (*positions, error) {
	p := &positions{keys: map[string]int{}, values: map[string]int{}, text: text, lists: map[string]int{}, heads: map[string]int{}}
	table := ""
	for p.space(true); p.at < len(text) && p.failed == nil; p.space(true) {
		if text[p.at] == '[' {
			table = p.header()
		} else {
			p.pair(table, 0)
		}
		p.line()
	}
	return p, p.failed
}

// part is one name of a dotted key.
type part struct {
	name   string
	offset int
}

// header reads [table] or [[list]] and gives the table's path.
func (p *positions) header() string {
	list := strings.HasPrefix(p.text[p.at:], "[[")
	p.at++
	if list {
		p.at++
	}
	parts := p.key()
	path := ""
	for i, k := range parts {
		path = child(path, k.name)
		p.note(path, k.offset)
		if n := p.lists[path]; n > 0 && i < len(parts)-1 {
			path = element(path, n-1)
		}
	}
	if len(parts) == 0 {
		return path
	}
	last := parts[len(parts)-1].offset
	if list {
		n := p.lists[path]
		p.lists[path]++
		path = element(path, n)
		p.note(path, last)
		return path
	}
	if first, ok := p.heads[path]; ok {
		p.again = append(p.again, twice{parts[len(parts)-1].name, first, last})
	} else {
		p.heads[path] = last
	}
	return path
}

// pair reads KEY = VALUE in a table.
func (p *positions) pair(table string, depth int) {
	parts := p.key()
	path := table
	for i, k := range parts {
		path = child(path, k.name)
		if first, ok := p.keys[path]; ok && i == len(parts)-1 {
			p.again = append(p.again, twice{k.name, first, k.offset})
		}
		p.note(path, k.offset)
		if n := p.lists[path]; n > 0 && i < len(parts)-1 {
			path = element(path, n-1) // no TOML, and the parser lets it pass
		}
	}
	if p.at < len(p.text) && p.text[p.at] == '=' && len(parts) > 0 {
		p.at++
		p.space(false)
		p.values[path] = p.at
		p.value(path, depth)
	}
}

// note keeps the first offset of a path.
func (p *positions) note(path string, offset int) {
	if _, ok := p.keys[path]; !ok {
		p.keys[path], p.values[path] = offset, offset
	}
}

// key reads a dotted key.
func (p *positions) key() (parts []part) {
	for {
		p.space(false)
		begin := p.at
		var name string
		if p.at < len(p.text) && (p.text[p.at] == '"' || p.text[p.at] == '\'') {
			name = p.quoted()
		} else {
			for p.at < len(p.text) && bare(p.text[p.at]) {
				p.at++
			}
			if name = p.text[begin:p.at]; name == "" {
				return parts
			}
		}
		parts = append(parts, part{name, begin})
		p.space(false)
		if p.at >= len(p.text) || p.text[p.at] != '.' {
			return parts
		}
		p.at++
	}
}

func bare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// quoted reads a key in quotes.
func (p *positions) quoted() string {
	begin := p.at
	p.str()
	raw := p.text[begin:p.at]
	if raw[0] == '\'' || !strings.Contains(raw, `\`) {
		return strings.Trim(raw, raw[:1])
	}
	var v struct{ K string }
	if _, err := toml.Decode("K = "+raw, &v); err != nil {
		return raw // the parser refuses it, too
	}
	return v.K
}

// value reads a value.
func (p *positions) value(path string, depth int) {
	if depth > maxDepth {
		p.failed = errDeep
	}
	if p.failed != nil || p.at >= len(p.text) {
		return
	}
	switch p.text[p.at] {
	case '"', '\'':
		p.str()
	case '[':
		p.members(']', func(i int) {
			path := element(path, i)
			p.note(path, p.at)
			p.value(path, depth+1)
		})
	case '{':
		p.members('}', func(int) { p.pair(path, depth+1) })
	default:
		for p.at < len(p.text) && !strings.ContainsRune(",]}#\n", rune(p.text[p.at])) {
			p.at++
		}
	}
}

// members reads what is between brackets, one by one.
func (p *positions) members(end byte, one func(i int)) {
	p.at++
	for i := 0; p.failed == nil; i++ {
		p.space(true)
		if p.at >= len(p.text) {
			return
		}
		begin := p.at
		if p.text[p.at] != end {
			one(i)
		}
		p.space(true)
		switch {
		case p.at >= len(p.text):
			return
		case p.text[p.at] == end:
			p.at++
			return
		case p.text[p.at] == ',':
			p.at++
		case p.at == begin: // not valid: no progress
			return
		}
	}
}

// str passes over a string of any of the four kinds.
func (p *positions) str() {
	quote := p.text[p.at : p.at+1]
	if long := strings.Repeat(quote, 3); strings.HasPrefix(p.text[p.at:], long) {
		quote = long
	}
	p.at += len(quote)
	for p.at < len(p.text) {
		switch {
		case p.text[p.at] == '\\' && quote[0] == '"':
			p.at = min(p.at+2, len(p.text))
		case strings.HasPrefix(p.text[p.at:], quote):
			p.at += len(quote)
			// A long string may end in one or two quotes of its own.
			for n := 0; len(quote) == 3 && n < 2 && strings.HasPrefix(p.text[p.at:], quote[:1]); n++ {
				p.at++
			}
			return
		case len(quote) == 1 && p.text[p.at] == '\n': // not valid
			return
		default:
			p.at++
		}
	}
}

// space passes over blanks, with newlines also over those and comments.
func (p *positions) space(newlines bool) {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t':
		case newlines && (c == '\n' || c == '\r'):
		case newlines && c == '#':
			p.line()
			continue
		default:
			return
		}
		p.at++
	}
}

// line passes over the rest of a line.
func (p *positions) line() {
	if n := strings.IndexByte(p.text[p.at:], '\n'); n >= 0 {
		p.at += n + 1
		return
	}
	p.at = len(p.text)
}

// lineColumn gives the line and the column of an offset.
func lineColumn(text string, offset int) (line, column int) {
	head := text[:max(0, min(offset, len(text)))]
	return 1 + strings.Count(head, "\n"), 1 + utf8.RuneCountInString(head[strings.LastIndexByte(head, '\n')+1:])
}
