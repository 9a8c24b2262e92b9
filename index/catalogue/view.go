package catalogue

import (
	"context"
	"fmt"
	"path"
	"sort"
	"strings"

	"cairn/guest/filesystem"
)

// maxLinks is how many symbolic links are followed on the way to one path, as
// the guest's own kernel has it.
const maxLinks = 40

// volumesDir is in front of the paths of what is mounted nowhere.
const volumesDir = "volumes"

// View is what a point shows: the guest's own tree, its mounts stitched
// together, and beside it the volumes that are mounted nowhere. Paths in the
// guest's tree begin with a slash ("/etc/fstab"), paths in the others with
// "volumes/NAME/".
//
// A mount covers the directory that it lies on. One that has none to lie on is
// not shown.
type View struct {
	nodes Nodes
	tops  map[string]spot // by tree: "" is the guest's, others by the volume's name
	names []string        // of tops, sorted
}

// spot is an entry where it is in a view.
type spot struct {
	entry  *Entry
	cover  *cover // what is mounted below; nil: nothing
	volume string // that the entry lies in: its UUID, else its name
}

func (s spot) isDir() bool { return s.entry.IsDir() }

// spotKey tells directories apart: what is below two of the same key is equal.
type spotKey struct {
	hash   Hash
	cover  *cover
	volume string
}

func (s spot) key() spotKey { return spotKey{s.entry.Dir.Hash, s.cover, s.volume} }

// cover is a directory in which something is mounted, or which is mounted
// over itself. Equal covers of two views with one interner are one.
type cover struct {
	top   *spot // what is mounted here; nil: nothing
	below map[string]*cover
}

// interner makes equal covers one, so that comparing pointers is enough.
type interner map[string]*cover

// intern gives the one cover like c, whose parts are interned.
func (n interner) intern(c *cover) *cover {
	var key strings.Builder
	if t := c.top; t != nil {
		hash := Hash{}
		if t.entry.Dir != nil {
			hash = t.entry.Dir.Hash
		}
		e := t.entry
		fmt.Fprintf(&key, "%x %q %d %o %d %d %v %v %d", hash, t.volume, e.Ino, e.Mode, e.UID, e.GID, e.Mtime, e.Ctime, e.Nlink)
	}
	names := make([]string, 0, len(c.below))
	for name := range c.below {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(&key, "\n%q %p", name, c.below[name])
	}
	if known := n[key.String()]; known != nil {
		return known
	}
	n[key.String()] = c
	return c
}

// View gives the point's view. What could not be put into it is in problems,
// besides what Root.Problems says.
func (p *Point) View(ctx context.Context) (v *View, problems []string, err error) {
	return newView(ctx, p.Root, p.Nodes, interner{})
}

func newView(ctx context.Context, root *Root, nodes Nodes, known interner) (*View, []string, error) {
	v := &View{nodes: nodes, tops: map[string]spot{}}
	mounted := map[int]bool{}
	var problems []string
	var guest cover
	for i, m := range root.Mounts {
		if m.Volume == Drives && i == 0 {
			virtual, top := rootOfDrives(nodes, root.Mounts)
			v.nodes, guest.top = virtual, &top
			continue
		}
		if m.Volume < 0 || m.Volume >= len(root.Volumes) {
			return nil, nil, fmt.Errorf("mount of %q names volume %d of %d: %w", m.Path, m.Volume, len(root.Volumes), ErrCorrupt)
		}
		top, err := v.source(ctx, root.Volumes[m.Volume], m.Dir)
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			problems = append(problems, fmt.Sprintf("%s: what was mounted there cannot be shown: %v", m.Path, err))
			continue
		}
		if at := path.Clean("/" + m.Path); at != "/" {
			guest.mount(split(at), top)
		} else if i == 0 {
			guest.top = &top
		}
		mounted[m.Volume] = true
	}
	if guest.top == nil {
		mounted = map[int]bool{} // without a root nothing is seen of the rest
	} else {
		top := *guest.top
		if c := guest.interned(known); len(c.below) > 0 {
			top.cover = c
		}
		v.add("", top)
	}
	for i, volume := range root.Volumes {
		if volume.Top == nil || volume.Name == "" || mounted[i] {
			continue
		}
		v.add(volume.Name, spot{entry: volume.Top, volume: volume.id()})
	}
	sort.Strings(v.names)
	return v, problems, nil
}

func (v *View) add(tree string, top spot) {
	if _, twice := v.tops[tree]; !twice {
		v.names = append(v.names, tree)
	}
	v.tops[tree] = top
}

// id names a volume also in other points, where it may lie on another disk.
func (v Volume) id() string {
	if v.UUID != "" {
		return v.UUID
	}
	return v.Name
}

// source finds the directory of a volume that is mounted.
func (v *View) source(ctx context.Context, volume Volume, dir string) (spot, error) {
	if volume.Top == nil {
		return spot{}, fmt.Errorf("volume %s could not be opened: %s", volume.Name, volume.Reason)
	}
	s := spot{entry: volume.Top, volume: volume.id()}
	for _, name := range split(path.Clean("/" + dir)) {
		d, err := read(ctx, v.nodes, s)
		if err != nil {
			return spot{}, err
		}
		e := d.find(name)
		if e == nil {
			return spot{}, fmt.Errorf("%s of volume %s: %w", dir, volume.Name, filesystem.ErrNotExist)
		}
		s.entry = e
	}
	if !s.isDir() {
		return spot{}, fmt.Errorf("%s of volume %s: %w", dir, volume.Name, filesystem.ErrNotDir)
	}
	return s, nil
}

// mount puts a mount into the covers. A later one on the same directory hides
// the earlier, with all that was mounted in it.
func (c *cover) mount(names []string, top spot) {
	for _, name := range names {
		if c.below == nil {
			c.below = map[string]*cover{}
		}
		if c.below[name] == nil {
			c.below[name] = &cover{}
		}
		c = c.below[name]
	}
	c.top, c.below = &top, nil
}

// interned gives the one cover like c. Its depth is that of a path.
func (c *cover) interned(known interner) *cover {
	for name, below := range c.below {
		c.below[name] = below.interned(known)
	}
	return known.intern(c)
}

// child gives an entry of the directory s as the view shows it.
func (s spot) child(e *Entry) spot {
	c := spot{entry: e, volume: s.volume}
	if s.cover == nil || !e.IsDir() {
		return c
	}
	if c.cover = s.cover.below[e.Name]; c.cover == nil {
		return c
	}
	if top := c.cover.top; top != nil {
		shown := *top.entry
		shown.Name = e.Name
		c.entry, c.volume = &shown, top.volume
	}
	if len(c.cover.below) == 0 {
		c.cover = nil
	}
	return c
}

// read gives what is in a directory.
func read(ctx context.Context, nodes Nodes, s spot) (*Directory, error) {
	switch {
	case !s.isDir():
		return nil, filesystem.ErrNotDir
	case s.entry.Dir == nil:
		return nil, fmt.Errorf("it could not be listed when the catalogue was made: %w", ErrCorrupt)
	}
	return nodes.Directory(ctx, *s.entry.Dir)
}

// find gives the entry with a name, nil when there is none.
func (d *Directory) find(name string) *Entry {
	i := sort.Search(len(d.Entries), func(i int) bool { return d.Entries[i].Name >= name })
	if i < len(d.Entries) && d.Entries[i].Name == name {
		return &d.Entries[i]
	}
	return nil
}

// split gives the names of a path.
func split(p string) []string {
	var names []string
	for name := range strings.SplitSeq(p, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// parse parts a path of a view into its tree and the names in it. A path that
// does not begin with "volumes/NAME" is the guest's.
func parse(p string) (tree string, names []string) {
	if rest, ok := strings.CutPrefix(p, volumesDir+"/"); ok {
		name, below, _ := strings.Cut(rest, "/")
		if name != "" && name != "." && name != ".." {
			return name, split(below)
		}
	}
	return "", split(p)
}

// join is the reverse of parse.
func join(tree string, names ...string) string {
	if tree == "" {
		return "/" + strings.Join(names, "/")
	}
	return strings.Join(append([]string{volumesDir, tree}, names...), "/")
}

// below gives the path of a name in the directory p.
func below(p, name string) string {
	if strings.HasSuffix(p, "/") {
		return p + name
	}
	return p + "/" + name
}
