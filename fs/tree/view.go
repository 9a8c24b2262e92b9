package tree

import (
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

// View is a directory tree in a point: the guest's stitched one, or one
// volume by itself.
type View struct {
	tree   *Tree
	root   Node
	mounts map[Node]Node // covered directory → root of what is mounted there; nil for one volume
	drives []drive       // of a Windows guest: what is in its root, which is the only node of Drives
}

// Entry is one name in a directory of a view.
type Entry struct {
	Name string
	Node Node
	Type uint32 // file-type bits of st_mode; 0 when the directory does not say
	Next uint64 // the cookie that continues the listing behind this entry
}

// Place is a node where it is in a view: with the directories above it.
type Place struct {
	Node  Node
	Up    *Place // nil for the root of the view
	Depth int    // number of directories above: 0 for the root
}

// Below gives the place of a node that is in the directory p.
func (p *Place) Below(n Node) *Place { return &Place{Node: n, Up: p, Depth: p.Depth + 1} }

// parent gives the directory that ".." names: at the root the root itself.
func (p *Place) parent() *Place {
	if p.Up == nil {
		return p
	}
	return p.Up
}

// Guest gives the guest's own view, its mounts stitched together. The error
// wraps ErrNoRoot when no volume holds the guest's "/".
func (t *Tree) Guest(ctx context.Context) (*View, error) {
	s, err := t.stitch(ctx)
	if err != nil {
		return nil, err
	}
	return s.view, nil
}

// Volume gives the view of one volume by itself.
func (t *Tree) Volume(ctx context.Context, index int32) (*View, error) {
	r, err := t.Reader(ctx, index)
	if err != nil {
		return nil, err
	}
	return &View{tree: t, root: Node{index, r.Root()}}, nil
}

// VolumeNamed gives the view of the volume with a name.
func (t *Tree) VolumeNamed(ctx context.Context, name string) (*View, error) {
	list, err := t.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	for i, v := range list {
		if v.Name == name {
			return t.Volume(ctx, int32(i))
		}
	}
	return nil, fmt.Errorf("volume %q: %w", name, filesystem.ErrNotExist)
}

// Tree gives the tree that the view is in.
func (v *View) Tree() *Tree { return v.tree }

// Root is the view's top directory.
func (v *View) Root() *Place { return &Place{Node: v.root} }

// Lookup finds a name in a directory. A mount point gives what is mounted.
func (v *View) Lookup(ctx context.Context, dir Node, name string) (Node, error) {
	if dir.Volume == Drives {
		return v.lookupDrive(name)
	}
	r, err := v.tree.Reader(ctx, dir.Volume)
	if err != nil {
		return Node{}, err
	}
	ino, err := r.Lookup(ctx, dir.Ino, name)
	if err != nil {
		return Node{}, err
	}
	return v.cross(Node{dir.Volume, ino}), nil
}

// ReadDir calls fn for each entry from cookie on (0: the start) until fn
// returns false. A damaged part is skipped and its error returned at the end.
func (v *View) ReadDir(ctx context.Context, dir Node, cookie uint64, fn func(Entry) bool) error {
	if dir.Volume == Drives {
		return v.readDrives(ctx, cookie, fn)
	}
	r, err := v.tree.Reader(ctx, dir.Volume)
	if err != nil {
		return err
	}
	return r.ReadDir(ctx, dir.Ino, cookie, func(e filesystem.Entry) bool {
		return fn(Entry{e.Name, v.cross(Node{dir.Volume, e.Ino}), e.Type, e.Next})
	})
}

// cross goes from a covered directory to what is mounted there, also when
// that again is covered. stitcher.cover keeps the map free of rings.
func (v *View) cross(n Node) Node {
	for len(v.mounts) > 0 {
		top, covered := v.mounts[n]
		if !covered {
			break
		}
		n = top
	}
	return n
}
