package fs

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
)

// historyDir is a directory of a VM's history: one that a point has there, or
// one that holds the versions of a file, or both. It is found by its path at
// every request, so that it shows points made after it was opened.
type historyDir struct {
	vm   *vmDir
	path string // of the guest, raw
}

// historyChild is the directory history/ of a VM.
func (d *vmDir) historyChild() child {
	h := &historyDir{d, "/"}
	c := named(historyName, filesystem.ModeDir, h.ino(), h)
	c.valid = brief
	return c
}

func (d *historyDir) ino(more ...string) uint64 {
	return hash(append([]string{"history", d.vm.name, d.path}, more...)...)
}

func (d *historyDir) open(ctx context.Context) (*history, error) {
	v, err := d.vm.vm(ctx)
	if err != nil {
		return nil, err
	}
	return d.vm.server.historyOf(ctx, v)
}

// attr needs no catalogue: the kernel asks every second.
func (d *historyDir) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	v, err := d.vm.vm(ctx)
	if err != nil {
		return 0, err
	}
	dirAttr(out, d.ino(), v.changed)
	return brief, nil
}

// content gives what is listed: names that points have in the directory, and
// versions of what the path is besides.
func (d *historyDir) content(ctx context.Context) (*history, *union, []historyVersion, error) {
	h, err := d.open(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	here := d.path == "/"
	dir, other := here, false
	if !here {
		cut := strings.LastIndexByte(d.path, '/')
		above, err := h.union(ctx, d.path[:cut+1])
		if err != nil {
			return nil, nil, nil, err
		}
		n, ok := above.find(d.path[cut+1:])
		if !ok {
			return nil, nil, nil, filesystem.ErrNotExist
		}
		dir, other = n.Dir != nil, n.Other
	}
	u := &union{}
	if dir {
		if u, err = h.union(ctx, d.path); err != nil {
			return nil, nil, nil, err
		}
	}
	var versions []historyVersion
	if other {
		list, err := h.versionsOf(ctx, d.path)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, v := range list {
			v.name = u.free(v.name)
			versions = append(versions, v)
		}
	}
	return h, u, versions, nil
}

// free gives a name of ours that no point has in the directory: a file that
// was a directory once shows both.
func (u *union) free(name string) string {
	for {
		if _, taken := u.find(name); !taken {
			return name
		}
		name += "~"
	}
}

func (d *historyDir) sub(name string) child {
	at := strings.TrimSuffix(d.path, "/") + "/" + name
	h := &historyDir{d.vm, at}
	c := named(escapeName(name), filesystem.ModeDir, h.ino(), h)
	c.valid = brief
	return c
}

func (d *historyDir) version(v historyVersion) child {
	kind := v.kind
	if kind == 0 {
		kind = filesystem.ModeRegular
	}
	c := named(v.name, kind, d.ino(v.point.summary.ID), &versionFile{d, v})
	c.valid, c.costly = brief, true
	return c
}

// notShown is the file that says what the history lacks.
func (d *historyDir) notShown(h *history, u *union) (child, bool) {
	if d.path != "/" || h.gaps == "" {
		return child{}, false
	}
	ino := d.ino(gapsName)
	c := named(u.free(gapsName), filesystem.ModeRegular, ino, &document{ino, h.changed(), func(context.Context) ([]byte, error) { return []byte(h.gaps), nil }})
	c.key.name += "\x00" + h.changed().String() // another list of points, another file
	c.valid = brief
	return c, true
}

func (d *historyDir) lookup(ctx context.Context, name string) (child, error) {
	h, u, versions, err := d.content(ctx)
	if err != nil {
		return child{}, err
	}
	if n, ok := u.find(name); ok {
		return d.sub(n.Name), nil
	}
	for _, v := range versions {
		if v.name == name {
			return d.version(v), nil
		}
	}
	if c, ok := d.notShown(h, u); ok && c.name == name {
		return c, nil
	}
	return child{}, filesystem.ErrNotExist
}

func (d *historyDir) list(ctx context.Context, cookie uint64, fn func(child) bool) error {
	h, u, versions, err := d.content(ctx)
	if err != nil {
		return err
	}
	gaps, hasGaps := d.notShown(h, u)
	for i := cookie; ; i++ {
		var c child
		switch k := int(i); {
		case k < len(u.names):
			c = d.sub(u.names[k].Name)
		case k < len(u.names)+len(versions):
			c = d.version(versions[k-len(u.names)])
		case k == len(u.names)+len(versions) && hasGaps:
			c = gaps
		default:
			return nil
		}
		if c.next = i + 1; !fn(c) {
			return nil
		}
	}
}

// versionFile is a version that was listed and not yet looked up.
type versionFile struct {
	dir     *historyDir
	version historyVersion
}

func (f *versionFile) attr(context.Context, *fuse.Attr) (time.Duration, error) {
	return 0, fmt.Errorf("internal error: attributes of a version that was not looked up")
}

// resolve gives the point's own file. The catalogue said where to look; what
// is there, the point says.
func (f *versionFile) resolve(ctx context.Context, c child) (child, error) {
	p := f.version.point
	o, err := p.open(ctx)
	if err != nil {
		return child{}, err
	}
	node, err := o.tree.Find(ctx, f.dir.path)
	if err != nil {
		return child{}, err
	}
	a, err := o.tree.Attr(ctx, node)
	if err != nil {
		return child{}, err
	}
	s, err := p.server.slotOf(ctx, p, node.Volume)
	if err != nil {
		return child{}, err
	}
	file := guestFile{s, node.Ino}
	c.kind = a.Mode & filesystem.ModeType
	c.key = key{name: c.name, node: node}
	switch c.kind {
	case filesystem.ModeDir:
		return child{}, fmt.Errorf("%q of point %s is a directory, its catalogue says it is none: %w", f.dir.path, p.summary.ID, filesystem.ErrCorrupt)
	case filesystem.ModeSymlink:
		c.object = &versionLink{file, f, c.ino}
	default:
		c.object, c.id, c.ino = file, s.fileID(node.Ino), stable(s.seed, uint64(node.Ino))
	}
	return c, nil
}

// versionLink is a version that is a symbolic link. It leads to the same link
// in its point's fs/, which is contained there.
type versionLink struct {
	guestFile
	version *versionFile
	ino     uint64
}

func (l *versionLink) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	valid, err := l.guestFile.attr(ctx, out)
	if err != nil {
		return 0, err
	}
	out.Ino = l.ino
	if target, err := l.readlink(ctx); err == nil {
		out.Size = uint64(len(target))
	}
	return min(valid, brief), nil
}

func (l *versionLink) readlink(ctx context.Context) (string, error) {
	d := l.version.dir
	if d.vm.server.options.RawLinks {
		return l.rawlink(ctx)
	}
	var target strings.Builder
	names := parts(d.path)
	target.WriteString(strings.Repeat("../", len(names)+1) + l.version.version.at + "/fs")
	for _, name := range names {
		target.WriteString("/" + escapeName(name))
	}
	if target.Len() > tree.MaxTarget {
		return "", tree.ErrTooLong
	}
	return target.String(), nil
}

func (l *versionLink) rawlink(ctx context.Context) (string, error) {
	t, err := l.guestFile.tree(ctx)
	if err != nil {
		return "", err
	}
	return t.Readlink(ctx, l.node())
}
