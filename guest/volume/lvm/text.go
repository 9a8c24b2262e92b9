package lvm

import (
	"strconv"
	"strings"
)

// section is a part of LVM's text format: names with their values, which are
// an int64, a string, a []any of those, or a section.
type section map[string]any

func (s section) section(name string) section { v, _ := s[name].(section); return v }
func (s section) text(name string) string     { v, _ := s[name].(string); return v }
func (s section) number(name string) int64    { v, _ := s[name].(int64); return v }

func (s section) list(name string) []any {
	switch v := s[name].(type) {
	case []any:
		return v
	case nil, section:
		return nil
	default:
		return []any{v} // LVM takes a single value for a list of one
	}
}

// has says whether a list holds a word.
func (s section) has(list, word string) bool {
	for _, v := range s.list(list) {
		if v == word {
			return true
		}
	}
	return false
}

const (
	// maxDepth bounds sections in sections; LVM writes four.
	maxDepth = 8
	// maxValues bounds what one text makes.
	maxValues = 1 << 20
)

// parser reads LVM's text format (lvm.conf(5) has the grammar).
type parser struct {
	text   string
	at     int
	values int
}

func (p *parser) fail(what string) error {
	return corrupt("byte %d of the text: %s", p.at, what)
}

// blank skips white space and comments.
func (p *parser) blank() {
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case c <= ' ':
		case c == '#':
			if end := strings.IndexByte(p.text[p.at:], '\n'); end < 0 {
				p.at = len(p.text)
				return
			} else {
				p.at += end
			}
		default:
			return
		}
	}
}

// next gives the next byte that is not blank, 0 at the end.
func (p *parser) next() byte {
	p.blank()
	if p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

func (p *parser) word() string {
	start := p.at
	for p.at < len(p.text) && p.text[p.at] > ' ' && strings.IndexByte(`={}[],#"`, p.text[p.at]) < 0 {
		p.at++
	}
	return p.text[start:p.at]
}

// parseText reads a whole text.
func parseText(text string) (section, error) {
	p := &parser{text: text}
	open := []section{{}} // the sections that are not closed yet, the outermost first
	for {
		in := open[len(open)-1]
		switch p.next() {
		case 0:
			if len(open) > 1 {
				return nil, p.fail("it ends inside a section")
			}
			return in, nil
		case '}':
			if len(open) == 1 {
				return nil, p.fail("a bracket too many")
			}
			p.at++
			open = open[:len(open)-1]
			continue
		}
		name := p.word()
		if name == "" {
			return nil, p.fail("no name")
		}
		if p.values++; p.values > maxValues {
			return nil, p.fail("too many values")
		}
		switch p.next() {
		case '{':
			if len(open) > maxDepth {
				return nil, p.fail("sections are nested too deeply")
			}
			p.at++
			inner := section{}
			in[name] = inner
			open = append(open, inner)
		case '=':
			p.at++
			v, err := p.value()
			if err != nil {
				return nil, err
			}
			in[name] = v
		default:
			return nil, p.fail("a name without a value")
		}
	}
}

// value reads a number, a string, a word, or a list of those.
func (p *parser) value() (any, error) {
	if p.next() != '[' {
		return p.single()
	}
	p.at++
	list := []any{}
	for {
		switch p.next() {
		case ']':
			p.at++
			return list, nil
		case ',':
			p.at++
			continue
		}
		if p.values++; p.values > maxValues {
			return nil, p.fail("too many values")
		}
		v, err := p.single()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

func (p *parser) single() (any, error) {
	if p.next() == '"' {
		return p.quoted()
	}
	w := p.word()
	if w == "" {
		return nil, p.fail("no value")
	}
	if n, err := strconv.ParseInt(w, 10, 64); err == nil {
		return n, nil
	}
	return w, nil
}

func (p *parser) quoted() (any, error) {
	var b strings.Builder
	for p.at++; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			return b.String(), nil
		case c == '\\' && p.at+1 < len(p.text):
			p.at++
			b.WriteByte(p.text[p.at])
		default:
			b.WriteByte(c)
		}
	}
	return nil, p.fail("a string does not end")
}
