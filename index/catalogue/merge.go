package catalogue

import (
	"context"
	"strings"
	"sync"
)

// name is one name in a directory over many points.
type name struct {
	name     string
	versions []version // by the first point that has them, as a rule
}

// version is an entry that is the same in all its points.
type version struct {
	entry  Entry // its own copy: the directory it came from may go
	cover  *cover
	volume string
	lo, hi int32      // first and last of the groups that have it …
	more   [][2]int32 // … and further ranges of groups, before those
	points pointSet
}

func (v *version) spot() spot { return spot{&v.entry, v.cover, v.volume} }

// sameEntry says whether two entries of one name are equal, with all below.
func sameEntry(a, b *Entry) bool {
	if a.Ino != b.Ino || a.Size != b.Size || a.Mtime != b.Mtime || a.Ctime != b.Ctime || a.Mode != b.Mode ||
		a.UID != b.UID || a.GID != b.GID || a.Nlink != b.Nlink || a.Major != b.Major || a.Minor != b.Minor ||
		(a.Dir == nil) != (b.Dir == nil) || a.Target != b.Target {
		return false
	}
	return a.Dir == nil || a.Dir.Hash == b.Dir.Hash
}

// merge gives the names of a directory that has several forms, sorted, with
// the versions of each. Few forms are in memory at a time. A form that cannot be
// read is told to failed and left out. Of what is no directory only what keep
// (nil: all) says yes to is given.
func (p *Past) merge(ctx context.Context, groups []group, keep func(name string) bool, failed func(group, error)) ([]name, error) {
	var names []name
	var read []result
	for i, g := range groups {
		if k := i % parallel; k == 0 {
			if read = p.readForms(ctx, groups[i:min(i+parallel, len(groups))]); ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		d, err := read[i%parallel].directory, read[i%parallel].err
		if err != nil {
			failed(g, err)
			continue
		}
		if d.Damaged {
			failed(g, errPart)
		}
		names = addForm(names, g.spot, d, int32(i), keep)
	}
	memo := map[[2]int32]pointSet{}
	between := func(lo, hi int32) pointSet {
		if lo == hi {
			return groups[lo].points
		}
		if s, ok := memo[[2]int32{lo, hi}]; ok {
			return s
		}
		var s pointSet
		for _, g := range groups[lo : hi+1] {
			s = s.or(g.points)
		}
		memo[[2]int32{lo, hi}] = s
		return s
	}
	for i := range names {
		for k := range names[i].versions {
			v := &names[i].versions[k]
			v.points = between(v.lo, v.hi)
			for _, r := range v.more {
				v.points = v.points.or(between(r[0], r[1]))
			}
		}
	}
	return names, nil
}

// readForms reads directories, several at once.
func (p *Past) readForms(ctx context.Context, groups []group) []result {
	out := make([]result, len(groups))
	if len(groups) == 1 {
		out[0].directory, out[0].err = p.read(ctx, groups[0])
		return out
	}
	var wg sync.WaitGroup
	for i, g := range groups {
		wg.Go(func() { out[i].directory, out[i].err = p.read(ctx, g) })
	}
	wg.Wait()
	return out
}

// addForm adds the entries of one form of a directory, the one with number
// form, to the sorted names. It may change names.
func addForm(names []name, at spot, d *Directory, form int32, keep func(string) bool) []name {
	if len(names) == 0 {
		return appendForm(at, d, form, keep)
	}
	var fresh []name // those that no earlier form has
	i := 0
	for k := range d.Entries {
		e := &d.Entries[k]
		if keep != nil && !e.IsDir() && !keep(e.Name) || !isName(e.Name) {
			continue
		}
		for i < len(names) && names[i].name < e.Name {
			i++
		}
		if i < len(names) && names[i].name == e.Name {
			names[i].add(at.child(e), form)
			continue
		}
		fresh = append(fresh, name{name: e.Name, versions: []version{newVersion(at.child(e), form)}})
	}
	if len(fresh) == 0 {
		return names
	}
	// From the end, so that all can stay in one slice.
	a, b := len(names)-1, len(fresh)-1
	names = append(names, fresh...)
	for to := len(names) - 1; b >= 0; to-- {
		if a >= 0 && names[a].name > fresh[b].name {
			names[to] = names[a]
			a--
		} else {
			names[to] = fresh[b]
			b--
		}
	}
	return names
}

// appendForm is addForm for the first form: the common case of a directory
// that has only one costs few allocations.
func appendForm(at spot, d *Directory, form int32, keep func(string) bool) []name {
	wanted := func(k int) bool {
		e := &d.Entries[k]
		return (keep == nil || e.IsDir() || keep(e.Name)) && isName(e.Name) && (k == 0 || d.Entries[k-1].Name < e.Name)
	}
	var list []int
	for k := range d.Entries {
		if wanted(k) {
			list = append(list, k)
		}
	}
	versions := make([]version, len(list))
	names := make([]name, len(list))
	for i, k := range list {
		versions[i] = newVersion(at.child(&d.Entries[k]), form)
		names[i] = name{d.Entries[k].Name, versions[i : i+1 : i+1]}
	}
	return names
}

// isName says whether a name is one: what is not cannot be reached by a path.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

func newVersion(s spot, form int32) version {
	return version{entry: *s.entry, cover: s.cover, volume: s.volume, lo: form, hi: form}
}

func (n *name) add(s spot, form int32) {
	for k := len(n.versions) - 1; k >= 0; k-- {
		v := &n.versions[k]
		if v.cover != s.cover || v.volume != s.volume || !sameEntry(&v.entry, s.entry) {
			continue
		}
		switch {
		case v.hi == form: // the name twice in a hostile directory
		case v.hi == form-1:
			v.hi = form
		default:
			v.more = append(v.more, [2]int32{v.lo, v.hi})
			v.lo, v.hi = form, form
		}
		return
	}
	n.versions = append(n.versions, newVersion(s, form))
}

// directories gives the distinct directories that a name is.
func (n *name) directories() []group {
	if len(n.versions) == 1 {
		if v := &n.versions[0]; v.entry.IsDir() {
			return []group{{v.spot(), v.points}}
		}
		return nil
	}
	var g groups
	for i := range n.versions {
		if v := &n.versions[i]; v.entry.IsDir() {
			g.add(v.spot(), v.points)
		}
	}
	return g.list
}
