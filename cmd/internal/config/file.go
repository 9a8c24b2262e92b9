package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// file is a file that was read.
type file struct {
	name  string
	text  string
	items map[string]any
	at    *positions
}

// readFile reads a file of settings. All that is wrong with it is a Problem;
// a file that is not there is an error that says so (fs.ErrNotExist).
func readFile(name string) (*file, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	bad := func(format string, args ...any) (*file, error) {
		return nil, Problems{{Where{File: name}, fmt.Sprintf(format, args...)}}
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return bad("it is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return bad("it cannot be read: %v", err)
	case len(data) > maxFile:
		return bad("it is larger than 1 MiB: that is no configuration; split it into files in cairn.d if it is")
	}
	return parseFile(name, string(data))
}

// parseFile reads the text of a file.
func parseFile(name, text string) (*file, error) {
	f := &file{name: name, text: strings.TrimPrefix(text, "\ufeff")}
	var err error
	if f.at, err = scan(f.text); err != nil {
		return nil, Problems{{Where{File: name}, err.Error()}}
	}
	_, err = toml.Decode(f.text, &f.items)
	var syntax toml.ParseError
	switch {
	case errors.As(err, &syntax):
		return nil, Problems{f.syntax(syntax)}
	case err != nil:
		return nil, Problems{{Where{File: name}, err.Error()}}
	}
	return f, nil
}

// syntax words what the parser refused.
func (f *file) syntax(e toml.ParseError) Problem {
	where := f.offset(e.Position.Start)
	for _, t := range f.at.again {
		if w := f.offset(t.second); w.Line == where.Line {
			return Problem{w, fmt.Sprintf("%s is written twice: first in line %d", clip(t.name), f.offset(t.first).Line)}
		}
	}
	text := strings.TrimSuffix(e.Message, ".")
	if text == "" {
		text = e.Error()
	}
	if e.LastKey != "" {
		text += fmt.Sprintf(" (the last setting read was %s)", e.LastKey)
	}
	return Problem{where, "this is not TOML: " + strings.ReplaceAll(text, "\n", " ") + f.hint(where.Line)}
}

// What is often written wrong.
var (
	noQuotes = pattern(`^\s*([A-Za-z0-9_-]+)\s*=\s*([A-Za-z/*][^"'#]{0,60}?)\s*(#.*)?$`)
	colon    = pattern(`^\s*([A-Za-z0-9_-]{1,40})\s*:`)
	unclosed = pattern(`^\s*\[[A-Za-z0-9_."-]+\s*(#.*)?$`)
)

// hint says what may be meant by a line that is not TOML.
func (f *file) hint(line int) string {
	text := strings.TrimSuffix(strings.Split(f.text, "\n")[line-1], "\r")
	if m := noQuotes().FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("; a text is written in quotes: %s = %q", m[1], m[2])
	}
	if m := colon().FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("; between a setting and its value is =: %s = …", m[1])
	}
	if unclosed().MatchString(text) {
		return "; a table's name ends in ]"
	}
	return ""
}

func (f *file) offset(offset int) Where {
	w := Where{File: f.name}
	w.Line, w.Column = lineColumn(f.text, offset)
	return w
}

// key is where a key is, value where its value is. What has no place of its own
// has that of the file.
func (f *file) key(path string) Where   { return f.find(f.at.keys, path) }
func (f *file) value(path string) Where { return f.find(f.at.values, path) }

func (f *file) find(places map[string]int, path string) Where {
	if offset, ok := places[path]; ok {
		return f.offset(offset)
	}
	return Where{File: f.name}
}
