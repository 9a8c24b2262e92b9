package fs

import "strings"

// escapeName gives a guest's name as the kernel can take it: '/' and NUL,
// which only a damaged or hostile image has in a name, and the names "" "."
// ".." are written with '%' and two hexadecimal digits. All other bytes are
// given raw.
func escapeName(name string) string {
	switch name {
	case "":
		return "%"
	case ".":
		return "%2E"
	case "..":
		return "%2E%2E"
	}
	if !strings.ContainsAny(name, "/\x00") {
		return name
	}
	return strings.NewReplacer("/", "%2F", "\x00", "%00").Replace(name)
}

// unescapeName gives the guest's name that escapeName may have made name of,
// and whether there can be one.
func unescapeName(name string) (string, bool) {
	if name == "%" {
		return "", true
	}
	raw := strings.NewReplacer("%2F", "/", "%00", "\x00", "%2E", ".").Replace(name)
	return raw, raw != name && escapeName(raw) == name
}
