package catalogue

import (
	"context"
	"fmt"
	"slices"
)

// Kind says what made a version of a path.
type Kind string

// Kinds of changes.
const (
	Oldest   Kind = "oldest"   // it was there in the oldest point: since when is not known
	Created  Kind = "created"  // the point before did not have it
	Changed  Kind = "contents" // contents, target or type
	Metadata Kind = "metadata" // anything else: mode, owner, times
	Removed  Kind = "removed"
	Back     Kind = "back" // it was removed, and is there again
)

// Change is a version of a path, or its absence, in points one after another.
type Change struct {
	Kind  Kind
	What  Difference // what differs from the version before
	Entry Entry      // zero when Kind is Removed
	Path  string     // without symbolic links in the middle; "" when Removed
	// Content numbers the distinct contents of the path from 1: that of an
	// earlier version which came back has its number. 0 when Removed.
	Content     int
	First, Last int // indexes of points
	Points      int // how many of those from First to Last have it
}

// log is one Log.
type log struct {
	past     *Past
	path     string
	compare  comparer
	changes  []Change
	problems []Problem
	present  int  // index in changes of the last version that was there; -1: none
	contents int  // how many distinct ones there were
	absent   bool // it was not there in the oldest point
}

// Log gives what happened to a path, newest first, and what of it could not be
// read. equal may be nil: then a version whose times differ counts as one of
// other contents. Points in which the path could not be read are left out.
func (p *Past) Log(ctx context.Context, path string, equal Equal) ([]Change, []Problem, error) {
	tree, names := parse(path)
	list, err := p.locate(ctx, tree, names, p.all, false)
	if err != nil {
		return nil, nil, err
	}
	l := &log{past: p, path: join(tree, names...), compare: comparer{equal: equal}, present: -1}
	at := make([]*located, len(p.points))
	for i := range list {
		if e := list[i].err; e != nil {
			l.problems = append(l.problems, Problem{l.path, list[i].points.first(), list[i].points.count(), e})
			continue
		}
		if e := list[i].spot.entry; e != nil && e.Mode == 0 {
			l.problems = append(l.problems, Problem{l.path, list[i].points.first(), list[i].points.count(), errInode})
			continue
		}
		list[i].points.each(func(k int) { at[k] = &list[i] })
	}
	for i, here := range at {
		if here == nil {
			continue // nothing is known
		}
		if err := l.next(ctx, i, here); err != nil {
			return nil, nil, err
		}
	}
	slices.Reverse(l.changes)
	return l.changes, l.problems, nil
}

// next takes the state of the path in the next point.
func (l *log) next(ctx context.Context, point int, here *located) error {
	last := len(l.changes) - 1
	if here.spot.entry == nil {
		switch {
		case last >= 0 && l.changes[last].Kind == Removed:
			l.changes[last].Last = point
			l.changes[last].Points++
		case last >= 0:
			l.changes = append(l.changes, Change{Kind: Removed, First: point, Last: point, Points: 1})
		default:
			l.absent = true
		}
		return nil
	}
	e := here.spot.entry
	c := Change{Entry: *e, Path: here.path, First: point, Last: point, Points: 1}
	if l.present < 0 {
		c.Kind = Oldest
		if l.absent {
			c.Kind = Created
		}
		l.contents, c.Content = 1, 1
		l.add(c)
		return nil
	}
	before := &l.changes[l.present]
	if before.Path == c.Path && sameEntry(&before.Entry, e) {
		if last == l.present {
			before.Last = point
			before.Points++
			return nil
		}
		c.Kind, c.Content = Back, before.Content
		l.add(c)
		return nil
	}
	what, err := l.compare.differ(ctx, l.place(before.First), l.place(point), &before.Entry, e)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		l.problems = append(l.problems, Problem{l.path, point, 1, err})
	}
	c.What, c.Kind, c.Content = what, Metadata, before.Content
	if what&(Contents|Target|Type) != 0 {
		c.Kind, c.Content = Changed, l.earlier(e)
	}
	if last != l.present {
		c.Kind = Back
	}
	l.add(c)
	return nil
}

func (l *log) place(point int) Place { return Place{l.past.points[point].ID, l.path} }

func (l *log) add(c Change) {
	l.present = len(l.changes)
	l.changes = append(l.changes, c)
}

// earlier gives the number of the contents of a version that was there before
// the last one and is back, as it was; else a new number.
func (l *log) earlier(e *Entry) int {
	for i := l.present - 1; i >= 0; i-- {
		if b := &l.changes[i]; b.Kind != Removed && sameContents(&b.Entry, e) {
			return b.Content
		}
	}
	l.contents++
	return l.contents
}

// sameContents says whether two entries of one path are known to have the same
// contents.
func sameContents(a, b *Entry) bool {
	if a.Dir != nil || b.Dir != nil {
		return a.Dir != nil && b.Dir != nil && a.Dir.Hash == b.Dir.Hash
	}
	return a.Ino == b.Ino && a.Mode == b.Mode && a.Size == b.Size && a.Mtime == b.Mtime && a.Target == b.Target && a.Major == b.Major && a.Minor == b.Minor
}

// String gives a change in words, for tests and for people who debug.
func (c Change) String() string {
	return fmt.Sprintf("%s %d-%d*%d #%d %v", c.Kind, c.First, c.Last, c.Points, c.Content, c.What)
}
