package fs

import (
	"context"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/guest/filesystem"
)

// How long the kernel may keep what it was told.
const (
	forever = 24 * time.Hour  // what lies inside a point never changes
	brief   = 1 * time.Second // where points appear and go
)

// object is what a node ID stands for. An object with nothing but attributes
// is a special file of a guest.
type object interface {
	// attr fills out and says how long that is valid.
	attr(ctx context.Context, out *fuse.Attr) (time.Duration, error)
}

// directory is an object with names in it.
type directory interface {
	object
	lookup(ctx context.Context, name string) (child, error)
	// list calls fn from cookie on (0: the start) until fn returns false.
	list(ctx context.Context, cookie uint64, fn func(child) bool) error
}

// regular is an object with contents.
type regular interface {
	object
	content(ctx context.Context) (filesystem.File, error)
}

// link is a symbolic link.
type link interface {
	object
	// readlink gives the target to follow, rawlink the guest's own.
	readlink(ctx context.Context) (string, error)
	rawlink(ctx context.Context) (string, error)
}

// attributed is an object with a guest's extended attributes.
type attributed interface {
	object
	xattrs(ctx context.Context) ([]filesystem.Xattr, error)
}

// measured is an object that lies in a filesystem with a size.
type measured interface {
	info(ctx context.Context) (filesystem.Info, error)
}

// child is one name in a directory.
type child struct {
	name   string
	next   uint64 // the cookie that continues the listing behind it
	kind   uint32 // file-type bits of st_mode
	ino    uint64 // st_ino
	object object
	id     uint64 // node ID of an object that the table need not hold; else 0
	key    key    // of an object that the table holds; parent is filled in later
	valid  time.Duration
	// costly says that attributes take work that a mere listing should not do.
	costly bool
}

// static is a directory whose children are few and known.
type static struct {
	ino      uint64
	time     time.Time
	children func(ctx context.Context) ([]child, error)
}

func (d *static) attr(_ context.Context, out *fuse.Attr) (time.Duration, error) {
	dirAttr(out, d.ino, d.time)
	return forever, nil
}

func (d *static) lookup(ctx context.Context, name string) (child, error) {
	list, err := d.children(ctx)
	if err != nil {
		return child{}, err
	}
	return find(list, name)
}

func (d *static) list(ctx context.Context, cookie uint64, fn func(child) bool) error {
	list, err := d.children(ctx)
	if err != nil {
		return err
	}
	return each(list, cookie, fn)
}

func find(list []child, name string) (child, error) {
	for _, c := range list {
		if c.name == name {
			return c, nil
		}
	}
	return child{}, filesystem.ErrNotExist
}

// each lists children whose cookies are their numbers.
func each(list []child, cookie uint64, fn func(child) bool) error {
	for i := cookie; i < uint64(len(list)); i++ {
		c := list[i]
		c.next = i + 1
		if !fn(c) {
			break
		}
	}
	return nil
}

// named makes a child that is held by its name.
func named(name string, kind uint32, ino uint64, o object) child {
	return child{name: name, kind: kind, ino: ino, object: o, key: key{name: name}, valid: forever}
}

func dirAttr(out *fuse.Attr, ino uint64, t time.Time) {
	*out = fuse.Attr{Ino: ino, Mode: filesystem.ModeDir | 0o755, Nlink: 2, Blksize: 4096}
	out.SetTimes(&t, &t, &t)
}

// unreadable is a directory that stands for what cannot be shown.
type unreadable struct {
	ino  uint64
	time time.Time
	err  error
}

func (d *unreadable) attr(_ context.Context, out *fuse.Attr) (time.Duration, error) {
	dirAttr(out, d.ino, d.time)
	return forever, nil
}

func (d *unreadable) lookup(context.Context, string) (child, error) { return child{}, d.err }

func (d *unreadable) list(context.Context, uint64, func(child) bool) error { return d.err }

// document is a small file made by us.
type document struct {
	ino  uint64
	time time.Time
	make func(ctx context.Context) ([]byte, error)
}

func (d *document) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	text, err := d.make(ctx)
	if err != nil {
		return 0, err
	}
	*out = fuse.Attr{Ino: d.ino, Mode: filesystem.ModeRegular | 0o444, Nlink: 1, Blksize: 4096,
		Size: uint64(len(text)), Blocks: (uint64(len(text)) + 4095) / 4096 * 8}
	out.SetTimes(&d.time, &d.time, &d.time)
	return forever, nil
}

func (d *document) content(ctx context.Context) (filesystem.File, error) {
	text, err := d.make(ctx)
	return bytesFile(text), err
}
