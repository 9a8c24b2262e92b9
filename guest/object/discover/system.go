package discover

import (
	"context"
	"strings"

	"cairn/guest/object"
)

// System tells a guest's operating system and host name. Source: os-release(5),
// hostname(5).
func System(ctx context.Context, root Root) (object.OS, string) {
	s := look(root)
	var release map[string]string
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if b := s.read(ctx, name, maxConfig); b != nil {
			release = assignments(string(b))
			break
		}
	}
	sys := object.OS{
		ID:      object.Text(release["ID"]),
		Name:    object.Text(release["NAME"]),
		Version: object.Text(release["VERSION"]),
	}
	if sys.Version == "" {
		sys.Version = object.Text(release["VERSION_ID"])
	}
	host := s.line(ctx, "/etc/hostname")
	if strings.HasPrefix(host, "#") {
		host = ""
	}
	return sys, host
}

// assignments reads lines of NAME=value, where the value may be quoted as in a
// shell. What is not one is left out.
func assignments(text string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		key = strings.TrimPrefix(key, "export ")
		if ok && key != "" && !strings.ContainsAny(key, "# \t\"'") {
			found[key] = unquote(value)
		}
	}
	return found
}

// unquote takes a shell's quotes and backslashes away. Nothing is expanded.
func unquote(s string) string {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == ' ' || c == '\t' || c == ';'):
			return b.String()
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
