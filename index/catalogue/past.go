package catalogue

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"

	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// Opener gives the catalogues of points, stored ones or such that were walked
// for the question. It may be called by many goroutines.
type Opener interface {
	Open(ctx context.Context, p restorepoint.Summary) (*Point, error)
}

// Past is several points looked at together: what they share is looked at
// once. It may be used by many goroutines.
type Past struct {
	points []restorepoint.Summary
	seen   []seen   // what the points show, in the same order
	all    pointSet // points that can be looked at
	known  interner
}

// seen is a point as far as it could be opened.
type seen struct {
	view     *View
	problems []string
	err      error
}

// parallel is how many points, or nodes, are read at once: a store far away
// answers late, and many at a time.
const parallel = 16

// NewPast opens the catalogues of points, which are sorted by time. A point
// whose catalogue cannot be opened is left out, and Unread says so. Points
// that before (may be nil) has open are not opened again.
func NewPast(ctx context.Context, points []restorepoint.Summary, from Opener, before *Past) (*Past, error) {
	p := &Past{points: points, seen: make([]seen, len(points)), known: interner{}}
	opened := make([]*Point, len(points))
	old := map[string]seen{}
	if before != nil {
		for i, s := range before.points {
			if before.seen[i].err == nil {
				old[s.ID] = before.seen[i]
			}
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, s := range points {
		if known, ok := old[s.ID]; ok {
			p.seen[i] = known
			continue
		}
		g.Go(func() error {
			var err error
			if opened[i], err = from.Open(gctx, s); err != nil {
				p.seen[i].err = err
			}
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range points {
		s := &p.seen[i]
		switch {
		case s.view != nil:
			s.view = s.view.interned(p.known)
		case s.err == nil:
			o := opened[i]
			s.view, s.problems, s.err = newView(ctx, o.Root, o.Nodes, p.known)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if s.err == nil {
			p.all = p.all.or(only(i))
		}
	}
	return p, nil
}

// interned gives the view with covers of another interner.
func (v *View) interned(known interner) *View {
	top, ok := v.tops[""]
	if !ok || top.cover == nil {
		return v
	}
	tops := map[string]spot{}
	for tree, s := range v.tops {
		tops[tree] = s
	}
	top.cover = top.cover.clone().interned(known)
	tops[""] = top
	return &View{nodes: v.nodes, tops: tops, names: v.names}
}

func (c *cover) clone() *cover {
	out := &cover{top: c.top}
	if c.below != nil {
		out.below = map[string]*cover{}
	}
	for name, below := range c.below {
		out.below[name] = below.clone()
	}
	return out
}

// Points gives the points, as they were given.
func (p *Past) Points() []restorepoint.Summary { return p.points }

// Unread calls fn for each point that could not be looked at, with the error,
// and for each that shows less than it should, with what is missing.
func (p *Past) Unread(fn func(point int, err error)) {
	for i, s := range p.seen {
		if s.err != nil {
			fn(i, s.err)
		}
		for _, problem := range s.problems {
			fn(i, errors.New(problem))
		}
	}
}

// Problem is something in a catalogue that could not be read: what was asked
// for may lie in it.
type Problem struct {
	Path  string
	Point int // the first of Points points that have it
	Count int
	Err   error
}

// Error gives it in words.
func (p Problem) Error() string { return fmt.Sprintf("%q: %v", p.Path, p.Err) }

// group is a directory at one path, the same in all its points.
type group struct {
	spot   spot
	points pointSet
}

// read reads a group's directory, by the first of its points.
func (p *Past) read(ctx context.Context, g group) (*Directory, error) {
	return read(ctx, p.seen[g.points.first()].view.nodes, g.spot)
}

// tops gives the groups of a tree's top directory.
func (p *Past) tops(tree string, points pointSet) []group {
	var g groups
	points.and(p.all).each(func(i int) {
		if s, ok := p.seen[i].view.tops[tree]; ok {
			g.add(s, only(i))
		}
	})
	return g.list
}

// groups collects directories by key. One that could not be listed is a group
// by itself.
type groups struct {
	list []group
	by   map[spotKey]int
}

func (g *groups) add(s spot, points pointSet) {
	if s.entry.Dir == nil {
		g.list = append(g.list, group{s, points})
		return
	}
	if g.by == nil {
		g.by = map[spotKey]int{}
	}
	if at, ok := g.by[s.key()]; ok {
		g.list[at].points = g.list[at].points.or(points)
		return
	}
	g.by[s.key()] = len(g.list)
	g.list = append(g.list, group{s, points})
}

// located is what a path is in some points: a spot, or nothing, or an error.
type located struct {
	spot   spot // entry is nil when nothing is there
	points pointSet
	path   string // without symbolic links; "" when nothing is there
	err    error
}

// step is a walk under way: the rest of a path from a directory.
type step struct {
	group
	names []string // of the directory, no links among them
	rest  []string
	links int
	way   string // names and rest: steps with equal ways and directories are one
}

// locate finds a path in points. Symbolic links in the middle are followed, the
// last one only if follow; ".." stops at the top. Each distinct directory on
// the way is read once.
func (p *Past) locate(ctx context.Context, tree string, names []string, points pointSet, follow bool) ([]located, error) {
	var out []located
	if asked := points.and(p.all); len(asked) > 0 {
		var have pointSet
		var steps []step
		for _, g := range p.tops(tree, asked) {
			have = have.or(g.points)
			steps = append(steps, p.step(g, nil, names, 0))
		}
		asked.each(func(i int) {
			if !have.has(i) {
				out = append(out, located{points: only(i)})
			}
		})
		for len(steps) > 0 {
			results, err := p.readAll(ctx, steps)
			if err != nil {
				return nil, err
			}
			var next stepSet
			for i, s := range steps {
				done, more := p.forward(tree, s, results[i], follow)
				if done != nil {
					out = append(out, *done)
				}
				next.add(more...)
			}
			steps = next.list
		}
	}
	return out, nil
}

func (p *Past) step(g group, names, rest []string, links int) step {
	return step{g, names, rest, links, strings.Join(names, "/") + "\x00" + strings.Join(rest, "/")}
}

type result struct {
	directory *Directory
	err       error
}

// readAll reads the directories of steps that have names left to find.
func (p *Past) readAll(ctx context.Context, steps []step) ([]result, error) {
	results := make([]result, len(steps))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, s := range steps {
		if len(s.rest) == 0 || !s.spot.isDir() || s.rest[0] == ".." {
			continue
		}
		if len(steps) == 1 {
			results[i].directory, results[i].err = p.read(ctx, s.group)
			return results, ctx.Err()
		}
		g.Go(func() error {
			results[i].directory, results[i].err = p.read(gctx, s.group)
			return gctx.Err()
		})
	}
	return results, g.Wait()
}

// forward takes one name of a step's path: to an end, or to further steps.
func (p *Past) forward(tree string, s step, r result, follow bool) (*located, []step) {
	end := func(err error) (*located, []step) { return &located{points: s.points, err: err}, nil }
	if len(s.rest) == 0 {
		return &located{spot: s.spot, points: s.points, path: join(tree, s.names...)}, nil
	}
	name, rest := s.rest[0], s.rest[1:]
	if name == ".." {
		up := s.names[:max(0, len(s.names)-1)]
		return nil, p.restart(tree, s, up, rest, s.links)
	}
	switch {
	case !s.spot.isDir():
		return end(nil)
	case r.err != nil:
		return end(fmt.Errorf("%s: %w", join(tree, s.names...), r.err))
	case len(s.names) >= MaxDepth:
		return end(fmt.Errorf("more than %d directories deep: %w", MaxDepth, ErrCorrupt))
	}
	e := r.directory.find(name)
	if e == nil {
		if r.directory.Damaged {
			return end(fmt.Errorf("%s: a part of the directory was not readable: %w", join(tree, s.names...), ErrCorrupt))
		}
		return end(nil)
	}
	if e.Mode&filesystem.ModeType == filesystem.ModeSymlink && (follow || len(rest) > 0) {
		if s.links++; s.links > maxLinks {
			return end(errors.New("too many levels of symbolic links"))
		}
		from := s.names
		if strings.HasPrefix(e.Target, "/") {
			from = nil
		}
		return nil, p.restart(tree, s, from, append(split(e.Target), rest...), s.links)
	}
	here := append(s.names[:len(s.names):len(s.names)], name)
	return nil, []step{p.step(group{s.spot.child(e), s.points}, here, rest, s.links)}
}

// restart walks from the top again to a directory whose names are no links.
func (p *Past) restart(tree string, s step, names, rest []string, links int) []step {
	whole := append(names[:len(names):len(names)], rest...)
	var steps []step
	for _, g := range p.tops(tree, s.points) {
		steps = append(steps, p.step(g, nil, whole, links))
	}
	return steps
}

// stepSet joins steps that would go the same way from the same directory.
type stepSet struct {
	list []step
	by   map[stepKey]int
}

type stepKey struct {
	at    spotKey
	way   string
	links int
}

func (t *stepSet) add(steps ...step) {
	for _, s := range steps {
		if !s.spot.isDir() || s.spot.entry.Dir == nil || len(s.rest) == 0 {
			t.list = append(t.list, s)
			continue
		}
		k := stepKey{s.spot.key(), s.way, s.links}
		if t.by == nil {
			t.by = map[stepKey]int{}
		}
		if at, ok := t.by[k]; ok {
			t.list[at].points = t.list[at].points.or(s.points)
			continue
		}
		t.by[k] = len(t.list)
		t.list = append(t.list, s)
	}
}
