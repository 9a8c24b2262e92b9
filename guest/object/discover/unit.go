package discover

import (
	"context"
	"path"
	"strings"
)

// unitDirs are where systemd looks for units, first wins (systemd.unit(5)).
func unitDirs() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

// unit gives the first of the units that a guest's systemd knows, and the path
// of its file; "" when it knows none. An instance is known by its template.
// A unit that leads to /dev/null is masked, and does not count.
func (s *search) unit(ctx context.Context, units ...string) (unit, file string) {
next:
	for _, unit := range units {
		names := []string{unit}
		if base, rest, ok := strings.Cut(unit, "@"); ok {
			names = append(names, base+"@"+path.Ext(rest))
		}
		for _, name := range names {
			for _, dir := range unitDirs() {
				info, ok := s.stat(ctx, path.Join(dir, name))
				if !ok || info.Dir {
					continue
				}
				if info.Path == "/dev/null" {
					continue next
				}
				return unit, info.Path
			}
		}
	}
	return "", ""
}
