package machine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// props is an option's value: "key=value,key=value" in which a comma of a value
// is doubled, or a JSON object.
type props struct {
	list []pair
	json map[string]any // nil: it is a list
}

type pair struct {
	key, value string
	bare       bool // without "=": "server"
}

// parseProps reads a value; implied is the key of a first part without "=".
func parseProps(value, implied string) (*props, error) {
	if strings.HasPrefix(value, "{") {
		p := &props{}
		d := json.NewDecoder(strings.NewReader(value))
		d.UseNumber()
		if err := d.Decode(&p.json); err != nil {
			return nil, fmt.Errorf("%w: %.60q is not JSON: %v", ErrCommandLine, value, err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) || p.json == nil {
			return nil, fmt.Errorf("%w: %.60q is more than a JSON object", ErrCommandLine, value)
		}
		return p, nil
	}
	p := &props{}
	for n, part := range splitCommas(value) {
		key, v, ok := strings.Cut(part, "=")
		switch {
		case ok:
			p.list = append(p.list, pair{key: key, value: v})
		case n == 0 && implied != "":
			p.list = append(p.list, pair{key: implied, value: part})
		case part != "":
			p.list = append(p.list, pair{key: part, bare: true})
		}
	}
	return p, nil
}

// splitCommas cuts at single commas and makes doubled ones single.
func splitCommas(s string) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != ',' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == ',' {
			b.WriteByte(',')
			i++
			continue
		}
		parts = append(parts, b.String())
		b.Reset()
	}
	return append(parts, b.String())
}

func (p *props) String() string {
	if p.json != nil {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(p.json); err != nil {
			panic("internal error: " + err.Error()) // it was decoded from JSON
		}
		return strings.TrimSpace(b.String())
	}
	var parts []string
	for _, x := range p.list {
		if x.bare {
			parts = append(parts, x.key)
			continue
		}
		parts = append(parts, x.key+"="+strings.ReplaceAll(x.value, ",", ",,"))
	}
	return strings.Join(parts, ",")
}

// get gives a value as text; "a.b" leads into objects. A later one counts.
func (p *props) get(key string) string {
	if p.json != nil {
		return textOf(walk(p.json, key))
	}
	for i := len(p.list) - 1; i >= 0; i-- {
		if p.list[i].key == key {
			if p.list[i].bare {
				return "on"
			}
			return p.list[i].value
		}
	}
	return ""
}

func (p *props) has(key string) bool {
	if p.json != nil {
		return walk(p.json, key) != nil
	}
	for _, x := range p.list {
		if x.key == key {
			return true
		}
	}
	return false
}

func walk(m map[string]any, key string) any {
	head, rest, more := strings.Cut(key, ".")
	if !more {
		return m[head]
	}
	inner, ok := m[head].(map[string]any)
	if !ok {
		return m[key]
	}
	return walk(inner, rest)
}

func textOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		if v {
			return "on"
		}
		return "off"
	case json.Number:
		return v.String()
	}
	return ""
}

// on says whether a switch is on.
func (p *props) on(key string) bool {
	v := p.get(key)
	return v == "on" || v == "yes" || v == "true" || v == "y"
}

// set sets a key of the upper level.
func (p *props) set(key, value string) {
	if p.json != nil {
		p.json[key] = value
		return
	}
	for i := range p.list {
		if p.list[i].key == key {
			p.list[i] = pair{key: key, value: value}
			p.drop(key, i+1)
			return
		}
	}
	p.list = append(p.list, pair{key: key, value: value})
}

// setOn sets a switch.
func (p *props) setOn(key string, on bool) {
	if p.json != nil {
		p.json[key] = on
		return
	}
	p.set(key, map[bool]string{true: "on", false: "off"}[on])
}

// del removes keys of the upper level, and what lies in them.
func (p *props) del(keys ...string) {
	for _, key := range keys {
		if p.json != nil {
			delete(p.json, key)
			continue
		}
		p.drop(key, 0)
	}
}

func (p *props) drop(key string, from int) {
	kept := p.list[:from]
	for _, x := range p.list[from:] {
		if x.key != key && !strings.HasPrefix(x.key, key+".") {
			kept = append(kept, x)
		}
	}
	p.list = kept
}

// keep removes all keys of the upper level but those that want accepts. Of a
// list the whole dotted key is asked about.
func (p *props) keep(want func(key string) bool) {
	if p.json != nil {
		for k := range p.json {
			if !want(k) {
				delete(p.json, k)
			}
		}
		return
	}
	kept := p.list[:0]
	for _, x := range p.list {
		if want(x.key) {
			kept = append(kept, x)
		}
	}
	p.list = kept
}

// texts gives every text in the value: what may name another option.
func (p *props) texts() []string {
	var out []string
	for _, x := range p.list {
		out = append(out, x.value)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		case map[string]any:
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(map[string]any(p.json))
	return out
}
