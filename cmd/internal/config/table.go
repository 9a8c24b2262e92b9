package config

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"cairn/cmd/internal/schedule"
)

// table is a table of a file that is being read: each setting is asked for once,
// and what nobody asked for is a problem.
type table struct {
	file  *file
	path  string // in the file's positions
	title string // "job nightly": begins what is said of it
	items map[string]any
	asked []string
	say   func(Problem)
}

// where is the place of a setting's value, or of the table itself for "".
func (t *table) where(key string) Where {
	p := t.path
	if key != "" {
		p = child(p, key)
	}
	return t.file.value(p)
}

// problem tells what is wrong with a setting.
func (t *table) problem(key, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if key != "" {
		text = key + ": " + text
	}
	if t.title != "" {
		text = t.title + ": " + text
	}
	t.say(Problem{t.where(key), text})
}

// get gives a setting's value, and whether there is one.
func (t *table) get(key string) (any, bool) {
	t.asked = append(t.asked, key)
	v, ok := t.items[key]
	return v, ok
}

// kind names what a value is, for errors.
func kind(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("the text %s", clip(v))
	case bool:
		return fmt.Sprintf("%v", v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// clip quotes what a file has, at most so much of it that a line stays a line.
func clip(text string) string {
	if r := []rune(text); len(r) > 60 {
		text = string(r[:60]) + "…"
	}
	return fmt.Sprintf("%q", text)
}

// text reads a setting that is a text; "" is none.
func (t *table) text(key, example string) string {
	v, ok := t.get(key)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	switch {
	case !ok:
		t.problem(key, "write a text in quotes, like %s = %q, not %s", key, example, kind(v))
	case s == "":
		t.problem(key, "it is empty: leave it out, or write for example %q", example)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		t.problem(key, "%s: it has control characters", clip(s))
		return ""
	}
	return s
}

// parsed reads a text by a function, whose error is told.
func parsed[T any](t *table, key, example string, parse func(string) (T, error)) (v T) {
	text := t.text(key, example)
	if text == "" {
		return v
	}
	got, err := parse(text)
	if err != nil {
		t.problem(key, "%s: %v", clip(text), err)
		return v
	}
	return got
}

// absolute reads the name of a file, which must be absolute.
func (t *table) absolute(key, example string) string {
	return parsed(t, key, example, func(s string) (string, error) {
		if !filepath.IsAbs(s) {
			return "", fmt.Errorf("the name must be absolute, like %s", example)
		}
		return s, nil
	})
}

// flag reads true or false.
func (t *table) flag(key string) bool {
	v, ok := t.get(key)
	b, isBool := v.(bool)
	if ok && !isBool {
		t.problem(key, "write true or false, without quotes, not %s", kind(v))
	}
	return b
}

// count reads a number from least to most; 0 is none.
func (t *table) count(key string, least, most int) int {
	v, ok := t.get(key)
	if !ok {
		return 0
	}
	n, isInt := v.(int64)
	switch {
	case !isInt:
		t.problem(key, "write a number without quotes, like %s = %d, not %s", key, max(least, 7), kind(v))
		return 0
	case n < int64(least) || n > int64(most):
		t.problem(key, "%d: it must be from %d to %d", n, least, most)
		return 0
	}
	return int(n)
}

// item is a text of a list, with its place.
type item struct {
	text  string
	where Where
}

// list reads a list of texts; a text alone is a list of one.
func (t *table) list(key, example string) (items []item) {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	add := func(v any, where Where) {
		s, ok := v.(string)
		switch {
		case !ok:
			t.say(Problem{where, fmt.Sprintf("%s: %s: write texts in quotes, like %s = [%q], not %s", t.title, key, key, example, kind(v))})
		case s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
			t.say(Problem{where, fmt.Sprintf("%s: %s: %s: it is empty, or has control characters", t.title, key, clip(s))})
		default:
			items = append(items, item{s, where})
		}
	}
	switch v := v.(type) {
	case []any:
		for i, one := range v {
			add(one, t.file.value(element(child(t.path, key), i)))
		}
	default:
		add(v, t.where(key))
	}
	return items
}

// texts is list without the places.
func (t *table) texts(key, example string) (texts []string) {
	for _, i := range t.list(key, example) {
		texts = append(texts, i.text)
	}
	return texts
}

// patterns reads a list of patterns of VMs.
func (t *table) patterns(key, example string) (list []Pattern) {
	for _, i := range t.list(key, example) {
		p := Pattern{Text: i.text, Where: i.where}
		glob, _ := p.glob()
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			t.say(Problem{i.where, fmt.Sprintf("%s: %s: %s is no pattern: write a name, web*, db[0-9]*, or tag:NAME", t.title, key, clip(i.text))})
			continue
		}
		list = append(list, p)
	}
	return list
}

// zone reads a time zone, else gives the other.
func (t *table) zone(other *time.Location) *time.Location {
	zone := parsed(t, "time_zone", "Europe/Berlin", func(s string) (*time.Location, error) {
		zone, err := time.LoadLocation(s)
		if err != nil || s == "Local" {
			return nil, fmt.Errorf("this host knows no such time zone: write one like Europe/Berlin or UTC (timedatectl list-timezones)")
		}
		return zone, nil
	})
	if zone == nil {
		return other
	}
	return zone
}

// schedules reads one calendar expression or a list of them.
func (t *table) schedules(key string, zone *time.Location) (list []schedule.Schedule) {
	for _, i := range t.list(key, "daily") {
		s, err := schedule.Parse(i.text, zone)
		if err != nil {
			t.say(Problem{i.where, fmt.Sprintf("%s: %s: %s: %v", t.title, key, clip(i.text), err)})
			continue
		}
		list = append(list, s)
	}
	return list
}

// dotted joins the names of tables that have one in another.
func dotted(key string, v any) string {
	name := "." + key
	if items, ok := v.(map[string]any); ok && len(items) == 1 {
		for key, inner := range items {
			if _, ok := inner.(map[string]any); ok {
				name += dotted(key, inner)
			}
		}
	}
	return clip(name)[1 : len(clip(name))-1]
}

// has says whether there is a setting, also a misspelt one: of that, done tells.
func (t *table) has(key string) bool {
	for other := range t.items {
		if other == key || !slices.Contains(t.asked, other) && meant(other, []string{key}) != "" {
			return true
		}
	}
	return false
}

// done tells of the settings that nobody asked for.
func (t *table) done() {
	var unknown []string
	for key := range t.items {
		if !slices.Contains(t.asked, key) {
			unknown = append(unknown, key)
		}
	}
	sort.Strings(unknown)
	for _, key := range unknown {
		text := fmt.Sprintf("unknown setting %s: ", clip(key))
		if t.title != "" {
			text = t.title + ": " + text
		}
		_, isTable := t.items[key].(map[string]any)
		if word := meant(key, t.asked); word != "" {
			text += "did you mean " + word + "?"
		} else if isTable && t.title != "" {
			kind, name, _ := strings.Cut(t.title, " ")
			text += fmt.Sprintf("a name with dots is written in quotes, [%s.%q]", kind, name+dotted(key, t.items[key]))
		} else {
			words := slices.Clone(t.asked)
			sort.Strings(words)
			text += "there are " + strings.Join(slices.Compact(words), ", ")
		}
		t.say(Problem{t.file.key(child(t.path, key)), text})
	}
}
