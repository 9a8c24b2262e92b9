package fs

import (
	"context"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/guest/filesystem"
)

// appsDir is the directory apps/ of a point, or that of a group of system
// objects in it.
type appsDir struct {
	*pointDir
	group string // name of the group's directory; "": apps/ itself
}

// appsChild gives the directory apps/, or one that says why the metadata cannot
// be shown. It does not look for objects yet.
func (d *pointDir) appsChild(ctx context.Context, c child) (child, error) {
	o, err := d.point.open(ctx)
	if err != nil {
		return child{}, err
	}
	if _, err := o.tree.Document(); err != nil {
		return d.unreadable(ctx, c, err)
	}
	c.object = &appsDir{d, ""}
	return c, nil
}

func (d *appsDir) shelf(ctx context.Context) (*apps, *shelf, error) {
	a, err := d.point.apps(ctx)
	if err == nil {
		err = a.err
	}
	if err != nil {
		return nil, nil, err
	}
	if d.group == "" {
		return a, &a.top, nil
	}
	if i, ok := a.top.by[d.group]; ok && a.top.list[i].group != nil {
		return a, a.top.list[i].group, nil
	}
	return nil, nil, filesystem.ErrNotExist
}

func (d *appsDir) attr(_ context.Context, out *fuse.Attr) (time.Duration, error) {
	dirAttr(out, d.ino("apps", d.group), d.point.summary.Time)
	return forever, nil
}

func (d *appsDir) lookup(ctx context.Context, name string) (child, error) {
	a, s, err := d.shelf(ctx)
	if err != nil {
		return child{}, err
	}
	if i, ok := s.by[name]; ok {
		return d.child(s.list[i]), nil
	}
	if name == documentName && d.group == "" && a.raw != nil {
		return d.document(a), nil
	}
	return child{}, filesystem.ErrNotExist
}

// list gives the document as cookie 0, and then the shelf.
func (d *appsDir) list(ctx context.Context, cookie uint64, fn func(child) bool) error {
	a, s, err := d.shelf(ctx)
	if err != nil {
		return err
	}
	if cookie == 0 && d.group == "" && a.raw != nil {
		c := d.document(a)
		c.next = 1
		if !fn(c) {
			return nil
		}
	}
	for i := max(cookie, 1) - 1; i < uint64(len(s.list)); i++ {
		c := d.child(s.list[i])
		c.next = i + 2
		if !fn(c) {
			break
		}
	}
	return nil
}

func (d *appsDir) child(thing shelved) child {
	if thing.group != nil {
		return named(thing.name, filesystem.ModeDir, d.ino("apps", thing.name), &appsDir{d.pointDir, thing.name})
	}
	app := &appDir{d.pointDir, d.group, thing.name, thing.object}
	return named(thing.name, filesystem.ModeDir, app.inode(), app)
}

// document is the whole metadata, byte for byte. The point is asked for it at
// each request: it goes when the point is given up.
func (d *appsDir) document(a *apps) child {
	ino := hash(d.point.summary.ID, "apps", documentName)
	return named(documentName, filesystem.ModeRegular, ino, &document{ino, d.point.summary.Time, func(ctx context.Context) ([]byte, error) {
		a, err := d.point.apps(ctx)
		if err != nil {
			return nil, err
		}
		return a.raw, a.err
	}})
}

// appDir is the directory of one system object.
type appDir struct {
	*pointDir
	group string // "": it lies in apps/ itself
	name  string // as shown
	index int    // in the document's objects
}

func (d *appDir) inode(names ...string) uint64 {
	return d.ino(append([]string{"apps", d.group, d.name}, names...)...)
}

func (d *appDir) attr(_ context.Context, out *fuse.Attr) (time.Duration, error) {
	dirAttr(out, d.inode(), d.point.summary.Time)
	return forever, nil
}

func (d *appDir) lookup(ctx context.Context, name string) (child, error) {
	if name == objectName {
		return d.description(), nil
	}
	app, err := d.point.app(ctx, d.index)
	if err != nil {
		return child{}, err
	}
	if i, ok := app.roles.by[name]; ok {
		return d.link(app, i), nil
	}
	return child{}, filesystem.ErrNotExist
}

func (d *appDir) list(ctx context.Context, cookie uint64, fn func(child) bool) error {
	app, err := d.point.app(ctx, d.index)
	if err != nil {
		return err
	}
	if cookie == 0 {
		c := d.description()
		c.next = 1
		if !fn(c) {
			return nil
		}
	}
	for i := max(cookie, 1) - 1; i < uint64(len(app.roles.list)); i++ {
		c := d.link(app, int(i))
		c.next = i + 2
		if !fn(c) {
			break
		}
	}
	return nil
}

func (d *appDir) description() child {
	ino := d.inode(objectName)
	c := named(objectName, filesystem.ModeRegular, ino, &document{ino, d.point.summary.Time, func(ctx context.Context) ([]byte, error) {
		app, err := d.point.app(ctx, d.index)
		if err != nil {
			return nil, err
		}
		return app.text, nil
	}})
	c.costly = true
	return c
}

func (d *appDir) link(app *app, i int) child {
	role := app.roles.list[i]
	up := "../../"
	if d.group != "" {
		up = "../../../"
	}
	path := app.paths[role.object]
	ino := d.inode("role", role.name)
	return named(role.name, filesystem.ModeSymlink, ino, &appLink{ino, d.point.summary.Time, up + path.InPoint, path.Path.Path})
}

// appLink leads from an object to one of its paths, in fs/.
type appLink struct {
	ino    uint64
	time   time.Time
	target string
	path   string // in the guest
}

func (l *appLink) attr(_ context.Context, out *fuse.Attr) (time.Duration, error) {
	*out = fuse.Attr{Ino: l.ino, Mode: filesystem.ModeSymlink | 0o777, Nlink: 1, Size: uint64(len(l.target)), Blksize: 4096}
	out.SetTimes(&l.time, &l.time, &l.time)
	return forever, nil
}

func (l *appLink) readlink(context.Context) (string, error) { return l.target, nil }

func (l *appLink) rawlink(context.Context) (string, error) { return l.path, nil }
