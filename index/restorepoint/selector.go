package restorepoint

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Errors of Select.
var (
	ErrNoPoint   = errors.New("no such restore point")
	ErrAmbiguous = errors.New("ambiguous")
)

// DirName is the name of a point's folder in the mount: UTC, no colons
// (Samba, Windows, scp).
func DirName(t time.Time) string { return t.UTC().Format("2006-01-02T15-04-05Z") }

// minIDPrefix is the fewest digits that name a point by its ID.
const minIDPrefix = 4

// Select finds the point that spec names among points (oldest first):
//
//	web01 or web01@latest        the newest point of a VM
//	web01@latest~2               the third newest
//	web01@2026-10-12             the newest whose UTC time begins so
//	web01@2026-10-12T02-00-00Z   as the mount writes it
//	3f2a91c0                     by ID or its beginning
//
// It gives ErrNoPoint or ErrAmbiguous, with what could be meant.
func Select(points []Summary, spec string) (Summary, error) {
	vm, when, hasAt := strings.Cut(spec, "@")
	if !hasAt {
		// A VM may be called db01 or cafe: its name comes before IDs that
		// happen to begin so, which can be written longer.
		if slices.ContainsFunc(points, func(p Summary) bool { return p.VM == vm }) {
			return Select(points, vm+"@latest")
		}
		if s, err := selectID(points, spec); !errors.Is(err, ErrNoPoint) {
			return s, err
		}
		when = "latest"
	}
	var mine []Summary
	for _, p := range points {
		if p.VM == vm {
			mine = append(mine, p)
		}
	}
	if len(mine) == 0 {
		return Summary{}, fmt.Errorf("%w: %q: the repository has no point of a VM or with an ID of that name (%s)", ErrNoPoint, spec, vmHint(points))
	}
	if rest, ok := strings.CutPrefix(when, "latest"); ok {
		back := 0
		if rest != "" {
			n, err := strconv.Atoi(strings.TrimPrefix(rest, "~"))
			if err != nil || n < 0 || rest[0] != '~' {
				return Summary{}, fmt.Errorf("%w: %q: write VM@latest~N", ErrNoPoint, spec)
			}
			back = n
		}
		if back >= len(mine) {
			return Summary{}, fmt.Errorf("%w: %q: %s has %d points", ErrNoPoint, spec, vm, len(mine))
		}
		return mine[len(mine)-1-back], nil
	}
	if when == "" {
		return Summary{}, fmt.Errorf("%w: %q: write VM@latest, VM@DATE or an ID", ErrNoPoint, spec)
	}
	when = strings.ReplaceAll(when, ":", "-")
	for i := len(mine) - 1; i >= 0; i-- {
		if strings.HasPrefix(DirName(mine[i].Time), when) {
			return mine[i], nil
		}
	}
	if s, err := selectID(mine, when); !errors.Is(err, ErrNoPoint) {
		return s, err
	}
	return Summary{}, fmt.Errorf("%w: %q: %s has points from %s to %s", ErrNoPoint, spec, vm, DirName(mine[0].Time), DirName(mine[len(mine)-1].Time))
}

func selectID(points []Summary, prefix string) (Summary, error) {
	if len(prefix) < minIDPrefix {
		return Summary{}, ErrNoPoint
	}
	var found []Summary
	for _, p := range points {
		if strings.HasPrefix(p.ID, prefix) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return Summary{}, ErrNoPoint
	case 1:
		return found[0], nil
	}
	return Summary{}, fmt.Errorf("%w: %d points have IDs that begin with %q: write more digits", ErrAmbiguous, len(found), prefix)
}

func vmHint(points []Summary) string {
	seen := map[string]bool{}
	var names []string
	for i := len(points) - 1; i >= 0 && len(names) < 10; i-- {
		if !seen[points[i].VM] {
			seen[points[i].VM] = true
			names = append(names, points[i].VM)
		}
	}
	if len(names) == 0 {
		return "it is empty"
	}
	return "it has " + strings.Join(names, ", ")
}
