package catalogue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"

	"cairn/guest/filesystem"
)

// Query says what to find. The zero value, with a pattern, is good.
type Query struct {
	// Pattern is a glob: "*", "?", "[a-z]", "{a,b}". Without a slash it is
	// about the name; with one about the whole path, where "**" is any number
	// of directories, and one that does not begin with a slash may begin in
	// any directory.
	Pattern string
	// IgnoreCase takes "A" for "a".
	IgnoreCase bool
	// Under is the directory to look in; "" is all, also the volumes that are
	// mounted nowhere.
	Under string
	// Types are letters as of find(1) (f, d, l, b, c, p, s); "" is any.
	Types string
	// MinSize is bytes, and so is Below, which a size is less than; 0: no bound.
	MinSize, Below int64
	// Newer and Older bound the time of the last modification; zero: no bound.
	Newer, Older time.Time
	// Problem is told of what could not be read; nil: nobody is.
	Problem func(Problem)
}

// Found is a path with its versions that a Query is about.
type Found struct {
	Path     string
	Versions []Version // by the first point that has them
}

// Version is an entry that is the same in some points. A directory is the
// same, whatever is in it, when its mode and its owner are.
type Version struct {
	Entry       Entry
	First, Last int // indexes of points
	Points      int // how many have it
}

// maxVisited bounds the entries that one Find looks at: a catalogue whose
// nodes hold each other must come to an end.
const maxVisited = 1 << 28

// Find calls fn for each path that q is about, sorted by path, until fn gives
// an error. What points share is looked at once. The error is fn's, ctx's,
// ErrTooMany, or says what is wrong with the query.
func (p *Past) Find(ctx context.Context, q Query, fn func(Found) error) error {
	m, err := newMatcher(q)
	if err != nil {
		return err
	}
	f := &finding{past: p, ctx: ctx, query: q, matcher: m, fn: fn}
	if q.Under != "" {
		tree, names := parse(q.Under)
		return f.under(tree, names)
	}
	trees := map[string]bool{}
	p.all.each(func(i int) {
		for _, tree := range p.seen[i].view.names {
			trees[tree] = true
		}
	})
	for _, tree := range slices.Sorted(maps.Keys(trees)) {
		if err := f.under(tree, nil); err != nil {
			return err
		}
	}
	return nil
}

// finding is one Find.
type finding struct {
	past    *Past
	ctx     context.Context
	query   Query
	matcher *matcher
	fn      func(Found) error
	visited int
}

func (f *finding) problem(path string, g group, err error) {
	if f.query.Problem != nil {
		f.query.Problem(Problem{path, g.points.first(), g.points.count(), err})
	}
}

// under looks below one path of a tree.
func (f *finding) under(tree string, names []string) error {
	if lit := f.matcher.literal; f.query.Under == "" && tree == "" && len(lit) > 0 {
		names = lit
	}
	list, err := f.past.locate(f.ctx, tree, names, f.past.all, f.query.Under != "")
	if err != nil {
		return err
	}
	byPath := map[string]*groups{} // more than one where links differ
	for _, l := range list {
		switch {
		case l.err != nil:
			f.problem(join(tree, names...), group{points: l.points}, l.err)
		case l.spot.entry != nil && l.spot.isDir() && (f.query.Under != "" || l.path == join(tree, names...)):
			if byPath[l.path] == nil {
				byPath[l.path] = &groups{}
			}
			byPath[l.path].add(l.spot, l.points)
		}
	}
	for _, at := range slices.Sorted(maps.Keys(byPath)) {
		if err := f.directory(at, byPath[at].list, 0); err != nil {
			return err
		}
	}
	return nil
}

func (f *finding) directory(at string, groups []group, depth int) error {
	if depth > MaxDepth {
		f.problem(at, groups[0], fmt.Errorf("more than %d directories deep: %w", MaxDepth, ErrCorrupt))
		return nil
	}
	names, err := f.past.merge(f.ctx, groups, func(name string) bool { return f.matcher.name(at, name) },
		func(g group, err error) { f.problem(at, g, err) })
	if err != nil {
		return err
	}
	if f.visited += len(names); f.visited > maxVisited {
		return ErrTooMany
	}
	for i := range names {
		n := &names[i]
		if f.matcher.name(at, n.name) {
			if versions := f.versions(n); len(versions) > 0 {
				if err := f.fn(Found{below(at, n.name), versions}); err != nil {
					return err
				}
			}
		}
		if dirs := n.directories(); len(dirs) > 0 {
			if err := f.directory(below(at, n.name), dirs, depth+1); err != nil {
				return err
			}
		}
		n.versions = nil // whoever looks at a huge tree should not hold it
	}
	return nil
}

// versions gives the versions that pass the query's other conditions.
func (f *finding) versions(n *name) []Version {
	var out []Version
	var sets []pointSet
	for i := range n.versions {
		v := &n.versions[i]
		if !f.query.takes(&v.entry) {
			continue
		}
		at := len(out)
		if v.entry.IsDir() {
			for k := range out {
				if out[k].Entry.Mode == v.entry.Mode && out[k].Entry.UID == v.entry.UID && out[k].Entry.GID == v.entry.GID {
					at = k
				}
			}
		}
		if at == len(out) {
			out, sets = append(out, Version{Entry: v.entry}), append(sets, nil)
			out[at].Entry.Name = n.name
		}
		sets[at] = sets[at].or(v.points)
	}
	for i, s := range sets {
		out[i].First, out[i].Last, out[i].Points = s.first(), s.last(), s.count()
	}
	return out
}

func (q *Query) takes(e *Entry) bool {
	if q.Types != "" && !strings.ContainsRune(q.Types, TypeLetter(e.Mode)) {
		return false
	}
	if e.Size < q.MinSize || q.Below > 0 && e.Size >= q.Below {
		return false
	}
	if q.Newer.IsZero() && q.Older.IsZero() {
		return true
	}
	t := time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec))
	return (q.Newer.IsZero() || !t.Before(q.Newer)) && (q.Older.IsZero() || !t.After(q.Older))
}

// TypeLetter gives the letter that find(1) has for a type of file, '?' for
// none.
func TypeLetter(mode uint32) rune {
	switch mode & filesystem.ModeType {
	case filesystem.ModeRegular:
		return 'f'
	case filesystem.ModeDir:
		return 'd'
	case filesystem.ModeSymlink:
		return 'l'
	case filesystem.ModeBlock:
		return 'b'
	case filesystem.ModeChar:
		return 'c'
	case filesystem.ModeFIFO:
		return 'p'
	case filesystem.ModeSocket:
		return 's'
	}
	return '?'
}

// matcher is a Query's pattern.
type matcher struct {
	pattern string
	fold    bool
	path    bool     // the pattern is about the whole path
	plain   bool     // the pattern is a name without magic
	begin   string   // what every name that fits begins with, and …
	end     string   // … ends with: most names are told apart by these
	literal []string // directories that every match lies in
}

func newMatcher(q Query) (*matcher, error) {
	m := &matcher{pattern: q.Pattern, fold: q.IgnoreCase, path: strings.Contains(q.Pattern, "/")}
	if q.Pattern == "" {
		return nil, fmt.Errorf("%w: it is empty", ErrPattern)
	}
	if m.fold {
		m.pattern = strings.ToLower(m.pattern)
	}
	if m.path && !strings.HasPrefix(m.pattern, "/") {
		m.pattern = "/**/" + m.pattern
	}
	if !doublestar.ValidatePattern(m.pattern) {
		return nil, fmt.Errorf("%w %q: a bracket or a brace is not closed, or nothing follows a backslash", ErrPattern, q.Pattern)
	}
	const magic = `*?[]{}\`
	m.plain = !m.path && !strings.ContainsAny(m.pattern, magic)
	if i := strings.IndexAny(m.pattern, magic); i >= 0 && !m.path {
		m.begin = m.pattern[:i]
		if !strings.Contains(m.pattern, `\`) { // which may be before what ends it
			m.end = m.pattern[strings.LastIndexAny(m.pattern, magic)+1:]
		}
	}
	if m.path && !m.fold {
		base, _ := doublestar.SplitPattern(m.pattern)
		m.literal = split(base)
	}
	return m, nil
}

// name says whether the entry name of the directory at is one to find.
func (m *matcher) name(at, name string) bool {
	if m.path {
		name = below(at, name)
		if !strings.HasPrefix(name, "/") {
			name = "/" + name
		}
	}
	if m.fold {
		name = strings.ToLower(name)
	}
	if m.plain {
		return name == m.pattern
	}
	if !strings.HasPrefix(name, m.begin) || !strings.HasSuffix(name, m.end) {
		return false
	}
	ok, _ := doublestar.Match(m.pattern, name) // it was validated
	return ok
}
