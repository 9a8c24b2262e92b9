package catalogue

import (
	"context"

	"cairn/guest/filesystem"
)

// Union is a directory of the guest over all points that have one at its path:
// it holds every name that any of them has in it. Symbolic links are names in
// it like others and lead nowhere.
type Union struct {
	past   *Past
	path   string
	groups []group
}

// UnionName is a name in a Union.
type UnionName struct {
	Name  string
	Dir   *Union // nil: it is a directory in no point
	Other bool   // in some point it is something else
}

// Union gives the guest's top directory over all points.
func (p *Past) Union() *Union { return &Union{p, "/", p.tops("", p.all)} }

// Path is where the directory is in the guest.
func (u *Union) Path() string { return u.path }

// Names gives what the directory holds, sorted, and what of it could not be
// read. The error is ctx's.
func (u *Union) Names(ctx context.Context) ([]UnionName, []Problem, error) {
	var problems []Problem
	names, err := u.past.merge(ctx, u.groups, nil, func(g group, err error) {
		problems = append(problems, Problem{u.path, g.points.first(), g.points.count(), err})
	})
	if err != nil {
		return nil, nil, err
	}
	out := make([]UnionName, 0, len(names))
	for i := range names {
		n := &names[i]
		name := UnionName{Name: n.name}
		if dirs := n.directories(); len(dirs) > 0 {
			name.Dir = &Union{u.past, below(u.path, n.name), owned(dirs)}
		}
		for k := range n.versions {
			if mode := n.versions[k].entry.Mode; mode&filesystem.ModeType != filesystem.ModeDir {
				name.Other = true
			}
		}
		out = append(out, name)
		n.versions = nil
	}
	return out, problems, nil
}

// owned gives groups whose entries are their own, so that what else was merged
// with them can go.
func owned(groups []group) []group {
	for i := range groups {
		e := *groups[i].spot.entry
		groups[i].spot.entry = &e
	}
	return groups
}
