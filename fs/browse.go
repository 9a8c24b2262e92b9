package fs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
)

// Browser is the tree that Mount shows, for those who look at it without a mount.
// It may be used by many goroutines. Its calls may take as long as the Source does,
// and need not end with their context: who has somebody waiting bounds them.
type Browser struct{ server *Server }

// NewBrowser gives the tree of a source's points. RawLinks, AllowOther and Debug of
// the options have no meaning here.
func NewBrowser(source Source, options Options) *Browser {
	options.RawLinks = false
	return &Browser{newServer(source, options)}
}

// Node is a file, folder or link of the tree.
type Node struct {
	server *Server
	child  child
}

// Attr is what a Node is.
type Attr struct {
	Mode  uint32 // as st_mode
	Size  int64
	Mtime time.Time
	// Ino is the same for the same thing in the same point, and another one for
	// whatever else has its name in another point.
	Ino uint64
}

// Root is the tree's top: a folder for each VM.
func (b *Browser) Root() Node {
	return Node{b.server, named("", filesystem.ModeDir, fuse.FUSE_ROOT_ID, &top{b.server})}
}

// Name is what the node is called in its folder. It has no slash and no NUL, and is
// neither empty nor "." nor ".."; else a guest's name may have any bytes.
func (n Node) Name() string { return n.child.name }

// Kind is the file-type bits of st_mode.
func (n Node) Kind() uint32 { return n.child.kind }

// Ino is a number that no other folder of the tree has, but for the root of a view:
// a damaged image may have a folder in itself, which this tells.
func (n Node) Ino() uint64 { return n.child.ino }

// Costly says that to tell the node's attributes takes work that a mere listing
// should not wait for: a volume is opened, a document is made.
func (n Node) Costly() bool {
	switch n.child.object.(type) {
	case *diskFile, *versionFile: // of a version only its own point is opened
		return false
	}
	return n.child.costly
}

// Attr gives the node's attributes.
func (n Node) Attr(ctx context.Context) (Attr, error) {
	if d, ok := n.child.object.(*diskFile); ok { // how much of it is data takes time to count
		return Attr{filesystem.ModeRegular | 0o400, d.size, d.point.summary.Time, d.ino}, nil
	}
	c, err := resolve(ctx, n.child)
	if err != nil {
		return Attr{}, err
	}
	if c.object == nil { // it was listed, and Child finds what is there
		return Attr{}, errors.New("internal error: attributes of what was not looked up")
	}
	var a fuse.Attr
	if _, err := c.object.attr(ctx, &a); err != nil {
		return Attr{}, err
	}
	return Attr{a.Mode, int64(a.Size), time.Unix(int64(a.Mtime), int64(a.Mtimensec)), a.Ino}, nil
}

func (n Node) directory(ctx context.Context) (directory, error) {
	c, err := resolve(ctx, n.child)
	if err != nil {
		return nil, err
	}
	if d, ok := c.object.(directory); ok {
		return d, nil
	}
	return nil, filesystem.ErrNotDir
}

// Child finds a name in a folder; filesystem.ErrNotExist if it is not there.
func (n Node) Child(ctx context.Context, name string) (Node, error) {
	d, err := n.directory(ctx)
	if err != nil {
		return Node{}, err
	}
	c, err := d.lookup(ctx, name)
	if err == nil {
		c, err = resolve(ctx, c)
	}
	return Node{n.server, c}, err
}

// Children calls fn for what is in a folder until it returns false. When a part of
// the folder is damaged, what was found is told all the same, and the error is
// returned at the end.
func (n Node) Children(ctx context.Context, fn func(Node) bool) error {
	d, err := n.directory(ctx)
	if err != nil {
		return err
	}
	return d.list(ctx, 0, func(c child) bool { return fn(Node{n.server, c}) })
}

// Target gives where a link leads: a path from the folder that it is in, which does
// not leave the point that it is in.
func (n Node) Target(ctx context.Context) (string, error) {
	c, err := resolve(ctx, n.child)
	if err != nil {
		return "", err
	}
	if l, ok := c.object.(link); ok {
		return l.readlink(ctx)
	}
	return "", filesystem.ErrNotSymlink
}

// Content opens a file. Its reads may take as long as the Source does.
func (n Node) Content(ctx context.Context) (filesystem.File, error) {
	c, err := resolve(ctx, n.child)
	if err != nil {
		return nil, err
	}
	switch o := c.object.(type) {
	case regular:
		if kind := c.kind; kind != filesystem.ModeRegular {
			return nil, fmt.Errorf("no regular file: %w", filesystem.ErrUnsupported)
		}
		return o.content(ctx)
	case directory:
		return nil, filesystem.ErrIsDir
	}
	return nil, filesystem.ErrUnsupported
}

// IsMissing says whether an error is that there is no such thing, and no damage.
func IsMissing(err error) bool {
	return errors.Is(err, filesystem.ErrNotExist) || errors.Is(err, filesystem.ErrNotDir) || errors.Is(err, tree.ErrNoRoot)
}
