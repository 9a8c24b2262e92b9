package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"cairn/guest/agent"
	"cairn/guest/object"
)

// Problem is something in a file that is not as it should be.
type Problem struct {
	File    string
	Line    int // 0: the whole file
	Message string
}

func (p Problem) Error() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Message)
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
}

// fields are the keys of one file. What is wrong with them is collected.
type fields struct {
	file     string
	lines    []string
	values   map[string]any
	asked    []string
	problems []Problem
}

func parse(file, text string) (*fields, error) {
	f := &fields{file: file, lines: strings.Split(text, "\n"), values: map[string]any{}}
	if _, err := toml.Decode(text, &f.values); err != nil {
		var at toml.ParseError
		if errors.As(err, &at) {
			return nil, Problem{File: file, Line: at.Position.Line, Message: oneLine(at.Message)}
		}
		return nil, Problem{File: file, Message: oneLine(err.Error())}
	}
	return f, nil
}

func oneLine(s string) string { return object.Text(strings.ReplaceAll(s, "\n", " ")) }

var keyPattern = regexp.MustCompile(`^\s*\[*\s*["']?([^"'=.\]\s]+)`)

// wrong notes a problem with a key, at the line where that is.
func (f *fields) wrong(key, format string, args ...any) {
	p := Problem{File: f.file, Message: key + ": " + oneLine(fmt.Sprintf(format, args...))}
	for i, line := range f.lines {
		if m := keyPattern.FindStringSubmatch(line); m != nil && m[1] == key {
			p.Line = i + 1
			break
		}
	}
	f.problems = append(f.problems, p)
}

// get gives a key's value.
func (f *fields) get(key string) (any, bool) {
	f.asked = append(f.asked, key)
	v, ok := f.values[key]
	return v, ok
}

func (f *fields) text(key string) string {
	v, ok := f.get(key)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok || strings.ContainsRune(s, 0) || len(s) > object.MaxText {
		f.wrong(key, "want a text like %s = \"…\"", key)
		return ""
	}
	return s
}

// texts gives a list of texts, nil if there is none.
func (f *fields) texts(key string) []string {
	v, ok := f.get(key)
	if !ok {
		return nil
	}
	all, ok := asTexts(v)
	if !ok {
		f.wrong(key, "want a list of texts like %s = [\"…\", \"…\"]", key)
	}
	return all
}

// asTexts takes a list whose elements are all texts that a program can be given.
func asTexts(v any) ([]string, bool) {
	list, ok := v.([]any)
	if !ok {
		return nil, false
	}
	var all []string
	for _, e := range list {
		s, ok := e.(string)
		if !ok || strings.ContainsRune(s, 0) {
			return nil, false
		}
		all = append(all, s)
	}
	return all, true
}

// duration gives a time between bounds, or the default.
func (f *fields) duration(key string, least, most, otherwise time.Duration) time.Duration {
	v, ok := f.get(key)
	if !ok {
		return otherwise
	}
	s, _ := v.(string) // "" is no time either
	d, err := time.ParseDuration(s)
	if err != nil || d < least || d > most {
		f.wrong(key, "want a time between %v and %v, like %s = \"30s\"", least, most, key)
		return otherwise
	}
	return d
}

// command gives a command: a list of a program and its arguments, or a text for
// the shell. nil: there is none.
func (f *fields) command(key string) *agent.Command {
	v, ok := f.get(key)
	if !ok {
		return nil
	}
	if s, ok := v.(string); ok && strings.TrimSpace(s) != "" && !strings.ContainsRune(s, 0) {
		return &agent.Command{Args: slices.Concat(shell(), []string{s})}
	}
	args, ok := asTexts(v)
	if !ok || len(args) == 0 || args[0] == "" {
		f.wrong(key, "want a program with its arguments, %s = [\"/path/of/program\", \"argument\"], or a line for the shell, %s = \"…\"", key, key)
		return nil
	}
	return &agent.Command{Args: args}
}

// unknown notes the keys that nobody asked for.
func (f *fields) unknown() {
	for key := range f.values {
		if !slices.Contains(f.asked, key) {
			f.wrong(oneLine(key), "there is no such setting; known here are %s", strings.Join(f.asked, ", "))
		}
	}
	slices.SortStableFunc(f.problems, func(a, b Problem) int { return a.Line - b.Line })
}
