package discover

import (
	"context"
	"path"
	"strconv"
	"strings"
)

// pgSettings reads a postgresql.conf with the files that it includes; names in
// lower case. Later settings win. Source: PostgreSQL's documentation, "Setting
// Parameters" (config-setting), and guc-file.l.
func (s *search) pgSettings(ctx context.Context, name string, into map[string]string, depth int) {
	if depth > maxNested {
		return
	}
	relative := func(to string) string {
		if path.IsAbs(to) {
			return to
		}
		return path.Join(path.Dir(name), to)
	}
	for _, set := range pgConf(string(s.read(ctx, name, maxConfig))) {
		switch set[0] {
		case "include", "include_if_exists":
			s.pgSettings(ctx, relative(set[1]), into, depth+1)
		case "include_dir":
			dir := relative(set[1])
			for _, file := range s.list(ctx, dir) {
				if strings.HasSuffix(file, ".conf") && file[0] != '.' {
					s.pgSettings(ctx, path.Join(dir, file), into, depth+1)
				}
			}
		default:
			into[set[0]] = set[1]
		}
	}
}

// pgConf gives the settings of one file's text, in order.
func pgConf(text string) [][2]string {
	var found [][2]string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		end := strings.IndexFunc(line, func(r rune) bool {
			return !(r == '_' || r == '.' || r == '$' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= 0x80)
		})
		if end <= 0 {
			continue
		}
		value := strings.TrimLeft(line[end:], " \t")
		value = strings.TrimLeft(strings.TrimPrefix(value, "="), " \t")
		found = append(found, [2]string{strings.ToLower(line[:end]), pgValue(value)})
	}
	return found
}

// pgValue takes the quotes of a value, or the comment after it, away.
func pgValue(s string) string {
	if !strings.HasPrefix(s, "'") {
		if end := strings.IndexAny(s, "# \t"); end >= 0 {
			s = s[:end]
		}
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\'' && i+1 < len(s) && s[i+1] == '\'':
			i++
			b.WriteByte('\'')
		case s[i] == '\'':
			return b.String()
		case s[i] == '\\' && i+1 < len(s):
			i++
			if at := strings.IndexByte("bfnrt", s[i]); at >= 0 {
				b.WriteByte("\b\f\n\r\t"[at])
			} else if end := i + octals(s[i:]); end > i {
				n, _ := strconv.ParseUint(s[i:end], 8, 16)
				b.WriteByte(byte(n))
				i = end - 1
			} else {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// octals counts the octal digits that s begins with, three at most.
func octals(s string) int {
	n := 0
	for n < len(s) && n < 3 && s[n] >= '0' && s[n] <= '7' {
		n++
	}
	return n
}
