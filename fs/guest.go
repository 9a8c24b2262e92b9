package fs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
)

// stitched is the index of the view that fs/ shows; others are a volume's.
const stitched int32 = -1

// guestView is a directory tree of a guest in the mount. The tree.View is
// asked for at each request: it goes when the point is given up.
type guestView struct {
	point *point
	index int32
	via   string // of the pointDir
}

func (g *guestView) open(ctx context.Context) (*tree.View, error) {
	o, err := g.point.open(ctx)
	if err != nil {
		return nil, err
	}
	if g.index == stitched {
		return o.tree.Guest(ctx)
	}
	return o.tree.Volume(ctx, g.index)
}

// seed gives the seed of st_ino for the directories and links of this view.
// A directory is another one in fs/ and in volumes/, and under latest.
func (g *guestView) seed(s *slot) uint64 {
	return mix(s.seed ^ uint64(uint32(g.index))<<1 ^ hash(g.via))
}

// viewRoot makes the top directory of a view a child of a static directory.
func (d *pointDir) viewRoot(_ context.Context, c child, index int32, view *tree.View) (child, error) {
	g := &guestView{point: d.point, index: index, via: d.via}
	c.object = &guestDir{guestNode{g, view.Root().Node}, view.Root()}
	return c, nil
}

// slot is a volume of a point that regular files of the mount lie in.
type slot struct {
	index  uint64
	seed   uint64
	point  *point
	volume int32
}

type slotKey struct {
	point  *point
	volume int32
}

// slotOf gives the slot of a volume, a new one at the first call.
func (s *Server) slotOf(ctx context.Context, p *point, volume int32) (*slot, error) {
	k := slotKey{p, volume}
	if known, ok := s.slotIndex.Load(k); ok {
		return known.(*slot), nil
	}
	o, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	list, err := o.tree.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.slotIndex.Load(k); ok {
		return known.(*slot), nil
	}
	if len(s.slots) >= maxSlots || int(volume) >= len(list) {
		return nil, fmt.Errorf("volume %d of restore point %s: no more than %d can be mounted", volume, p.summary.ID, maxSlots)
	}
	seed := hash(p.summary.ID, "drives")
	if volume != tree.Drives {
		seed = hash(p.summary.ID, "volume", list[volume].Name)
	}
	fresh := &slot{index: uint64(len(s.slots)), seed: seed, point: p, volume: volume}
	s.slots = append(s.slots, fresh)
	s.slotIndex.Store(k, fresh)
	return fresh, nil
}

// slotAt gives the slot with an index, nil when there is none.
func (s *Server) slotAt(index uint64) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index >= uint64(len(s.slots)) {
		return nil
	}
	return s.slots[index]
}

// fileID gives the node ID of a regular or special file, 0 when its inode
// number is too large and the table must hold it.
func (s *slot) fileID(ino filesystem.Ino) uint64 {
	if uint64(ino) > maxIno {
		return 0
	}
	return fileBit | s.index<<inoBits | uint64(ino)
}

// guestFile is a regular or special file of a guest. It is made anew for each
// request from its node ID.
type guestFile struct {
	slot *slot
	ino  filesystem.Ino
}

func (f guestFile) node() tree.Node { return tree.Node{Volume: f.slot.volume, Ino: f.ino} }

func (f guestFile) tree(ctx context.Context) (*tree.Tree, error) {
	o, err := f.slot.point.open(ctx)
	if err != nil {
		return nil, err
	}
	return o.tree, nil
}

func (f guestFile) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	t, err := f.tree(ctx)
	if err != nil {
		return 0, err
	}
	a, err := t.Attr(ctx, f.node())
	if err != nil {
		return 0, err
	}
	fillAttr(out, &a, stable(f.slot.seed, uint64(f.ino)))
	return forever, nil
}

// maxSmall is up to what size a file is read at once and not kept open.
const maxSmall = 128 << 10

func (f guestFile) content(ctx context.Context) (filesystem.File, error) {
	files := &f.slot.point.server.files
	if file := files.get(f); file != nil {
		return file, nil
	}
	t, err := f.tree(ctx)
	if err != nil {
		return nil, err
	}
	file, err := t.Open(ctx, f.node())
	if err != nil {
		return nil, err
	}
	if file.Size() > maxSmall {
		files.put(f, file)
	}
	return file, nil
}

func (f guestFile) xattrs(ctx context.Context) ([]filesystem.Xattr, error) {
	t, err := f.tree(ctx)
	if err != nil {
		return nil, err
	}
	return t.Xattrs(ctx, f.node())
}

func (f guestFile) info(ctx context.Context) (filesystem.Info, error) {
	t, err := f.tree(ctx)
	if err != nil {
		return filesystem.Info{}, err
	}
	r, err := t.Reader(ctx, f.slot.volume)
	if err != nil {
		return filesystem.Info{}, err
	}
	return r.Info(), nil
}

// guestNode is a guest's directory or link in a view.
type guestNode struct {
	view *guestView
	node tree.Node
}

func (n *guestNode) server() *Server { return n.view.point.server }

func (n *guestNode) slot(ctx context.Context) (*slot, error) {
	return n.server().slotOf(ctx, n.view.point, n.node.Volume)
}

func (n *guestNode) file(ctx context.Context) (guestFile, error) {
	s, err := n.slot(ctx)
	return guestFile{s, n.node.Ino}, err
}

func (n *guestNode) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	f, err := n.file(ctx)
	if err != nil {
		return 0, err
	}
	valid, err := f.attr(ctx, out)
	out.Ino = stable(n.view.seed(f.slot), uint64(n.node.Ino))
	return valid, err
}

func (n *guestNode) xattrs(ctx context.Context) ([]filesystem.Xattr, error) {
	f, err := n.file(ctx)
	if err != nil {
		return nil, err
	}
	return f.xattrs(ctx)
}

func (n *guestNode) info(ctx context.Context) (filesystem.Info, error) {
	f, err := n.file(ctx)
	if err != nil {
		return filesystem.Info{}, err
	}
	return f.info(ctx)
}

// guestDir is a guest's directory where it is in its view.
type guestDir struct {
	guestNode
	place *tree.Place
}

func (d *guestDir) lookup(ctx context.Context, name string) (child, error) {
	view, err := d.view.open(ctx)
	if err != nil {
		return child{}, err
	}
	node, err := view.Lookup(ctx, d.node, name)
	if errors.Is(err, filesystem.ErrNotExist) && strings.Contains(name, "%") {
		if raw, ok := unescapeName(name); ok {
			node, err = view.Lookup(ctx, d.node, raw)
		}
	}
	if err != nil {
		return child{}, err
	}
	a, err := view.Tree().Attr(ctx, node)
	if err != nil {
		return child{}, err
	}
	return d.child(ctx, name, node, a.Mode&filesystem.ModeType)
}

func (d *guestDir) list(ctx context.Context, cookie uint64, fn func(child) bool) error {
	view, err := d.view.open(ctx)
	if err != nil {
		return err
	}
	var failed error
	err = view.ReadDir(ctx, d.node, cookie, func(e tree.Entry) bool {
		if e.Type == 0 {
			a, err := view.Tree().Attr(ctx, e.Node)
			if err != nil {
				a.Mode = 0 // listed all the same; looking it up tells the error
			}
			e.Type = a.Mode & filesystem.ModeType
		}
		c, err := d.child(ctx, escapeName(e.Name), e.Node, e.Type)
		if err != nil {
			failed = err
			return false
		}
		c.next = e.Next
		return fn(c)
	})
	if failed != nil {
		return failed
	}
	return err
}

// child makes the child of a kind. Only directories and links are held by the
// table, each in the directory it was found in.
func (d *guestDir) child(ctx context.Context, name string, node tree.Node, kind uint32) (child, error) {
	s, err := d.server().slotOf(ctx, d.view.point, node.Volume)
	if err != nil {
		return child{}, err
	}
	c := child{name: name, kind: kind, key: key{node: node}, valid: forever}
	switch kind {
	case filesystem.ModeDir:
		if d.place.Depth >= tree.MaxDepth {
			return child{}, tree.ErrTooLong
		}
		c.object = &guestDir{guestNode{d.view, node}, d.place.Below(node)}
		c.ino = stable(d.view.seed(s), uint64(node.Ino))
	case filesystem.ModeSymlink:
		c.object = &guestLink{guestNode{d.view, node}, d.place}
		c.ino = stable(d.view.seed(s), uint64(node.Ino))
	default:
		c.object = guestFile{s, node.Ino}
		c.id = s.fileID(node.Ino)
		c.ino = stable(s.seed, uint64(node.Ino))
	}
	return c, nil
}

// guestLink is a guest's symbolic link in the directory it was found in.
type guestLink struct {
	guestNode
	dir *tree.Place
}

// attr gives the size of the target that readlink gives: programs size their
// buffer by it.
func (l *guestLink) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	valid, err := l.guestNode.attr(ctx, out)
	if err != nil {
		return 0, err
	}
	if target, err := l.readlink(ctx); err == nil {
		out.Size = uint64(len(target))
	}
	return valid, nil
}

func (l *guestLink) readlink(ctx context.Context) (string, error) {
	if l.server().options.RawLinks {
		return l.rawlink(ctx)
	}
	view, err := l.view.open(ctx)
	if err != nil {
		return "", err
	}
	return view.ContainedLink(ctx, l.dir, l.node)
}

func (l *guestLink) rawlink(ctx context.Context) (string, error) {
	view, err := l.view.open(ctx)
	if err != nil {
		return "", err
	}
	return view.Tree().Readlink(ctx, l.node)
}

func fillAttr(out *fuse.Attr, a *filesystem.Attr, ino uint64) {
	*out = fuse.Attr{
		Ino: ino, Size: uint64(max(0, a.Size)), Blocks: uint64(max(0, a.Blocks)),
		Atime: uint64(a.Atime.Sec), Mtime: uint64(a.Mtime.Sec), Ctime: uint64(a.Ctime.Sec),
		Atimensec: a.Atime.Nsec, Mtimensec: a.Mtime.Nsec, Ctimensec: a.Ctime.Nsec,
		Mode: a.Mode, Nlink: a.Nlink, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID}, Blksize: 4096,
	}
	switch a.Mode & filesystem.ModeType {
	case filesystem.ModeChar, filesystem.ModeBlock:
		// The kernel's new_encode_dev: 12 bits of major, 20 of minor.
		out.Rdev = a.Minor&0xff | a.Major&0xfff<<8 | a.Minor&0xfff00<<12
	}
}
