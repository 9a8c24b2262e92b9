package catalogue

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// Side is one of the two points that a Diff compares.
type Side struct {
	ID   string
	View *View
}

// Sides gives the points to be compared, or the first error of one that cannot
// be looked at.
func (p *Past) Sides() ([]Side, error) {
	sides := make([]Side, len(p.points))
	for i, s := range p.seen {
		if s.err != nil {
			return nil, fmt.Errorf("point %.8s: %w", p.points[i].ID, s.err)
		}
		sides[i] = Side{p.points[i].ID, s.view}
	}
	return sides, nil
}

// DiffOptions of a Diff. The zero value is good.
type DiffOptions struct {
	// Path is what to compare, in both points; "" is all.
	Path string
	// Equal compares contents where sizes are equal and times are not; nil:
	// what may differ counts as different.
	Equal Equal
	// Most is how many differences are kept before the rest is left out; 0 is
	// a million.
	Most int
}

// Op says what a Delta is.
type Op byte

// What can have happened.
const (
	Add    Op = '+' // only in the second point
	Remove Op = '-' // only in the first
	Modify Op = 'M' // in both
	Rename Op = 'R' // in both, by another path
)

// Delta is one difference. For a directory that was added or removed there is
// one, and one for each thing in it; for a directory that was renamed there is
// one, and one for what differs in it.
type Delta struct {
	Op   Op
	Path string     // in the second point; of Remove in the first
	From string     // of Rename: the path in the first point
	What Difference // of Modify, and of Rename; 0: nothing else
	// Old and New are the entries in the points, nil when there is none. Of a
	// directory only mode and owner are compared: what is in it has Deltas of
	// its own.
	Old, New *Entry
}

// Differences are a Diff's result.
type Differences struct {
	List     []Delta // sorted by Path
	Problems []Problem
	// Cut says that there are more: no more than DiffOptions.Most were kept.
	Cut bool
}

const maxDeltas = 1_000_000

// diff is one Diff.
type diff struct {
	ctx      context.Context
	old, new Side
	compare  comparer
	most     int
	removed  []*tip // what only the first has, tops of trees
	added    []*tip
	held     int // things in trees looked at, bounded by most
	out      Differences
}

// tip is something that only one side has, with all in it.
type tip struct {
	spot   spot
	path   string
	up     *tip // the tip it was found in; nil for tops
	taken  bool // it was renamed; what is in it is not looked at
	listed bool // what is in it has tips
}

// gone says whether a tip, or what it lies in, was renamed.
func (t *tip) gone() bool {
	for ; t != nil; t = t.up {
		if t.taken {
			return true
		}
	}
	return false
}

// Diff says what b has otherwise than a. Directories that are equal in both
// are not looked into.
func Diff(ctx context.Context, a, b Side, o DiffOptions) (*Differences, error) {
	d := &diff{ctx: ctx, old: a, new: b, compare: comparer{equal: o.Equal, thorough: o.Equal != nil}, most: cmp.Or(o.Most, maxDeltas)}
	if o.Path != "" {
		tree, names := parse(o.Path)
		one, err := locateIn(ctx, a.View, tree, names)
		if err != nil {
			return nil, err
		}
		two, err := locateIn(ctx, b.View, tree, names)
		if err != nil {
			return nil, err
		}
		switch {
		case one.err != nil:
			d.problem(0, o.Path, one.err)
		case two.err != nil:
			d.problem(1, o.Path, two.err)
		default:
			d.both(join(tree, names...), one.path, two.path, one.spot, two.spot)
		}
	} else {
		names := append(slices.Clone(a.View.names), b.View.names...)
		slices.Sort(names)
		for _, tree := range slices.Compact(names) {
			p := join(tree)
			d.both(p, p, p, a.View.tops[tree], b.View.tops[tree])
		}
	}
	if err := d.renames(); err != nil {
		return nil, err
	}
	d.rest()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(d.out.List, func(x, y Delta) int {
		return cmp.Or(comparePaths(x.Path, y.Path), cmp.Compare(y.Op, x.Op))
	})
	return &d.out, nil
}

// comparePaths sorts paths so that a directory comes before what is in it, and
// that before the directory's next neighbour.
func comparePaths(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] != b[i] {
			if a[i] == '/' || b[i] == '/' {
				return cmp.Compare(bool2int(a[i] != '/'), bool2int(b[i] != '/'))
			}
			return cmp.Compare(a[i], b[i])
		}
	}
	return cmp.Compare(len(a), len(b))
}

func bool2int(b bool) int {
	if b {
		return 1
	}
	return 0
}

// locateIn finds a path in one view.
func locateIn(ctx context.Context, v *View, tree string, names []string) (located, error) {
	p := &Past{seen: []seen{{view: v}}, all: only(0)}
	list, err := p.locate(ctx, tree, names, p.all, false)
	if err != nil {
		return located{}, err
	}
	return list[0], nil
}

func (d *diff) problem(side int, path string, err error) {
	if d.ctx.Err() == nil {
		d.out.Problems = append(d.out.Problems, Problem{path, side, 1, err})
	}
}

func (d *diff) emit(x Delta) {
	if len(d.out.List) >= d.most {
		d.out.Cut = true
		return
	}
	d.out.List = append(d.out.List, x)
}

// both compares what lies at one path, or at two when something above was
// renamed; nothing may lie there.
func (d *diff) both(path, oldPath, newPath string, a, b spot) {
	switch {
	case a.entry == nil && b.entry == nil:
	case a.entry == nil:
		d.added = append(d.added, &tip{spot: b, path: path})
	case b.entry == nil:
		d.removed = append(d.removed, &tip{spot: a, path: cmp.Or(oldPath, path)})
	default:
		d.same(oldPath, path, a, b)
	}
}

// same compares what has one name in both.
func (d *diff) same(oldPath, path string, a, b spot) {
	if a.entry.Mode == 0 || b.entry.Mode == 0 {
		if !sameEntry(a.entry, b.entry) {
			side := 0
			if b.entry.Mode == 0 {
				side = 1
			}
			d.problem(side, path, errInode)
		}
		return
	}
	what := d.what(oldPath, path, a.entry, b.entry)
	if what != 0 {
		d.emit(Delta{Op: Modify, Path: path, What: what, Old: a.entry, New: b.entry})
	}
	switch {
	case a.isDir() && b.isDir():
		d.directories(oldPath, path, a, b)
	case a.isDir():
		d.under(0, &tip{spot: a, path: oldPath}, &d.removed)
	case b.isDir():
		d.under(1, &tip{spot: b, path: path}, &d.added)
	}
}

// what gives in what two entries differ, as far as a Delta says.
func (d *diff) what(oldPath, path string, a, b *Entry) Difference {
	if a.IsDir() && b.IsDir() {
		var what Difference
		if a.Mode != b.Mode {
			what |= Mode
		}
		if a.UID != b.UID || a.GID != b.GID {
			what |= Owner
		}
		return what
	}
	what, err := d.compare.differ(d.ctx, Place{d.old.ID, oldPath}, Place{d.new.ID, path}, a, b)
	if err != nil {
		d.problem(1, path, err)
	}
	if what == Times && a.Nlink != b.Nlink && a.Ino == b.Ino && a.Mtime == b.Mtime {
		return 0 // only another name came or went, which is told where that is
	}
	return what
}

// list reads a directory of one side, nil when that fails.
func (d *diff) list(side int, path string, s spot) *Directory {
	v := d.old.View
	if side == 1 {
		v = d.new.View
	}
	dir, err := read(d.ctx, v.nodes, s)
	if err != nil {
		d.problem(side, path, err)
		return nil
	}
	if dir.Damaged {
		d.problem(side, path, errPart)
	}
	return dir
}

// directories compares two directories.
func (d *diff) directories(oldPath, path string, a, b spot) {
	if a.entry.Dir != nil && b.entry.Dir != nil && a.entry.Dir.Hash == b.entry.Dir.Hash && sameCover(a.cover, b.cover) {
		return
	}
	if d.ctx.Err() != nil {
		return
	}
	if strings.Count(path, "/") > MaxDepth {
		d.problem(1, path, fmt.Errorf("more than %d directories deep: %w", MaxDepth, ErrCorrupt))
		return
	}
	one, two := d.list(0, oldPath, a), d.list(1, path, b)
	if one == nil || two == nil {
		return // what is not known differs from nothing
	}
	x, y := one.Entries, two.Entries
	for len(x) > 0 || len(y) > 0 {
		switch {
		case len(y) == 0 || len(x) > 0 && x[0].Name < y[0].Name:
			d.only(0, a.child(&x[0]), below(oldPath, x[0].Name), two.Damaged)
			x = x[1:]
		case len(x) == 0 || y[0].Name < x[0].Name:
			d.only(1, b.child(&y[0]), below(path, y[0].Name), one.Damaged)
			y = y[1:]
		default:
			if s, t := a.child(&x[0]), b.child(&y[0]); isName(x[0].Name) && (!sameEntry(s.entry, t.entry) || s.cover != nil || t.cover != nil) {
				d.same(below(oldPath, x[0].Name), below(path, y[0].Name), s, t)
			}
			x, y = x[1:], y[1:]
		}
	}
}

// only takes what one side has alone. Where the other side's directory could
// be read in part only, it may be there all the same.
func (d *diff) only(side int, s spot, path string, doubtful bool) {
	if !isName(s.entry.Name) || doubtful {
		return
	}
	t := &tip{spot: s, path: path}
	if side == 0 {
		d.removed = append(d.removed, t)
	} else {
		d.added = append(d.added, t)
	}
}

// sameCover says whether the same is mounted below, also in views that do not
// share an interner.
func sameCover(a, b *cover) bool {
	if a == b {
		return true
	}
	if a == nil || b == nil || len(a.below) != len(b.below) || (a.top == nil) != (b.top == nil) {
		return false
	}
	if a.top != nil && (a.top.volume != b.top.volume || !sameEntry(a.top.entry, b.top.entry)) {
		return false
	}
	for name, below := range a.below {
		if other, ok := b.below[name]; !ok || !sameCover(below, other) {
			return false
		}
	}
	return true
}

// under gives what lies in a tip, as tips.
func (d *diff) under(side int, t *tip, out *[]*tip) {
	if t.listed || t.spot.entry.Mode == 0 || !t.spot.isDir() || d.ctx.Err() != nil {
		return
	}
	t.listed = true
	if d.held >= d.most || strings.Count(t.path, "/") > MaxDepth {
		d.out.Cut = d.out.Cut || d.held >= d.most
		return
	}
	dir := d.list(side, t.path, t.spot)
	if dir == nil {
		return
	}
	d.held += len(dir.Entries)
	for i := range dir.Entries {
		if e := &dir.Entries[i]; isName(e.Name) {
			*out = append(*out, &tip{spot: t.spot.child(e), path: below(t.path, e.Name), up: t})
		}
	}
}
