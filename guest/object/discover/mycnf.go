package discover

import (
	"context"
	"path"
	"strings"
)

// option is one line of a MySQL option file.
type option struct{ group, name, value string }

// myOptions reads a MySQL option file and those that it includes, in order.
// files gets the names of all that were read. Source: MySQL's and MariaDB's
// documentation, "Using Option Files", "Configuring MariaDB with Option Files".
func (s *search) myOptions(ctx context.Context, name string, files *[]string, depth int) []option {
	if depth > maxNested || len(*files) > maxMatch {
		return nil
	}
	b := s.read(ctx, name, maxConfig)
	if b == nil {
		return nil
	}
	*files = append(*files, name)
	var all []option
	for _, o := range myCnf(string(b)) {
		switch {
		case o.group != "!":
			all = append(all, o)
		case o.name == "include":
			all = append(all, s.myOptions(ctx, absolute(name, o.value), files, depth+1)...)
		case o.name == "includedir":
			dir := absolute(name, o.value)
			for _, file := range s.list(ctx, dir) {
				if strings.HasSuffix(file, ".cnf") {
					all = append(all, s.myOptions(ctx, path.Join(dir, file), files, depth+1)...)
				}
			}
		}
	}
	return all
}

// absolute gives a name as it is meant in a file: relative to its directory.
func absolute(file, name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(path.Dir(file), name)
}

// myCnf gives the options of one file's text; an include has the group "!".
// Dashes in names become underscores.
func myCnf(text string) []option {
	var found []option
	group := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			group, _, _ = strings.Cut(line[1:], "]")
		case line[0] == '!':
			name, value, _ := strings.Cut(line[1:], " ")
			found = append(found, option{"!", name, strings.TrimSpace(value)})
		default:
			name, value, _ := strings.Cut(line, "=")
			name = strings.ReplaceAll(strings.TrimSpace(name), "-", "_")
			found = append(found, option{group, strings.TrimPrefix(name, "loose_"), myValue(strings.TrimSpace(value))})
		}
	}
	return found
}

func myValue(s string) string {
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		if end := strings.IndexByte(s[1:], s[0]); end >= 0 {
			return s[1 : 1+end]
		}
	}
	s, _, _ = strings.Cut(s, "#")
	return strings.TrimSpace(s)
}
