package fs

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// latest is the second name of a VM's newest point.
const latest = "latest"

// vm is a virtual machine in the mount: its points, oldest first.
type vm struct {
	name    string // as in the tree, safe
	points  []*point
	names   []string // of points, in the same order
	byName  map[string]*point
	changed time.Time // when the list was last seen to differ
}

// listing is the catalogue as it was last read. It is never changed, only
// replaced.
type listing struct {
	read time.Time
	vms  []*vm // in the order of their oldest points
	by   map[string]*vm
}

// listPoints gives a listing not older than brief. When the source fails and
// there is an older listing, that is used: what was mounted stays readable.
func (s *Server) listPoints(ctx context.Context) (*listing, error) {
	if l := s.current.Load(); l != nil && s.now().Sub(l.read) < brief {
		return l, nil
	}
	select {
	case s.listing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.listing }()
	old := s.current.Load()
	if old != nil && s.now().Sub(old.read) < brief {
		return old, nil
	}
	bounded, cancel := context.WithTimeout(ctx, s.options.Deadline)
	defer cancel()
	summaries, err := s.source.Points(bounded)
	if err != nil {
		if old != nil {
			s.report(fmt.Errorf("list restore points, showing those of %s: %w", old.read.Format(time.RFC3339), err))
			return old, nil
		}
		return nil, fmt.Errorf("list restore points: %w", err)
	}
	fresh := s.arrange(summaries, old)
	s.current.Store(fresh)
	return fresh, nil
}

// arrange sorts points into VMs. A point that was listed before stays the
// same object, and a VM whose points are the same keeps its time of change.
func (s *Server) arrange(summaries []restorepoint.Summary, old *listing) *listing {
	l := &listing{read: s.now(), by: map[string]*vm{}}
	known := map[string]*point{}
	if old != nil {
		for _, v := range old.vms {
			for _, p := range v.points {
				known[p.summary.ID] = p
			}
		}
	}
	for _, summary := range summaries {
		name := safeVMName(summary.VM)
		v := l.by[name]
		if v == nil {
			v = &vm{name: name, byName: map[string]*point{}, changed: l.read}
			l.vms = append(l.vms, v)
			l.by[name] = v
		}
		p := known[summary.ID]
		if p == nil {
			p = newPoint(s, summary)
		}
		v.add(p)
	}
	if old != nil {
		for _, v := range l.vms {
			if before := old.by[v.name]; before != nil && equal(before.points, v.points) {
				v.changed = before.changed
			}
		}
	}
	return l
}

// pointName gives the name of a point made at a time: UTC, no colons, so that
// Samba, Windows and scp take it.
func pointName(t time.Time) string { return t.UTC().Format("2006-01-02T15-04-05Z") }

// add appends a point; the second one of the same second is "…Z-2".
func (v *vm) add(p *point) {
	name := pointName(p.summary.Time)
	for n := 2; v.byName[name] != nil; n++ {
		name = fmt.Sprintf("%s-%d", pointName(p.summary.Time), n)
	}
	v.byName[name] = p
	v.points = append(v.points, p)
	v.names = append(v.names, name)
}

func equal(a, b []*point) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// VMFolder gives the name of a VM's folder in the mount.
func VMFolder(vm string) string { return safeVMName(vm) }

// safeVMName gives a VM's name as one directory name.
func safeVMName(name string) string {
	if name == "" {
		return "%"
	}
	return escapeName(strings.ReplaceAll(name, "%", "%25"))
}

// top is the root of the mount: a directory for each VM.
type top struct{ server *Server }

func (d *top) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	l := d.server.current.Load()
	stamp := d.server.mounted
	if l != nil {
		for _, v := range l.vms {
			if v.changed.After(stamp) {
				stamp = v.changed
			}
		}
	}
	dirAttr(out, fuse.FUSE_ROOT_ID, stamp)
	return brief, nil
}

func (d *top) child(v *vm) child {
	c := named(v.name, filesystem.ModeDir, hash("vm", v.name), &vmDir{d.server, v.name})
	c.valid = brief
	return c
}

func (d *top) lookup(ctx context.Context, name string) (child, error) {
	l, err := d.server.listPoints(ctx)
	if err != nil {
		return child{}, err
	}
	v := l.by[name]
	if v == nil {
		return child{}, filesystem.ErrNotExist
	}
	return d.child(v), nil
}

func (d *top) list(ctx context.Context, cookie uint64, fn func(child) bool) error {
	l, err := d.server.listPoints(ctx)
	if err != nil {
		return err
	}
	for i := cookie; i < uint64(len(l.vms)); i++ {
		c := d.child(l.vms[i])
		c.next = i + 1
		if !fn(c) {
			break
		}
	}
	return nil
}

// vmDir is the directory of a VM. It is found by name at every request, so
// that it shows points made after it was opened.
type vmDir struct {
	server *Server
	name   string
}

func (d *vmDir) vm(ctx context.Context) (*vm, error) {
	l, err := d.server.listPoints(ctx)
	if err != nil {
		return nil, err
	}
	if v := l.by[d.name]; v != nil {
		return v, nil
	}
	return nil, filesystem.ErrNotExist
}

func (d *vmDir) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	v, err := d.vm(ctx)
	if err != nil {
		return 0, err
	}
	// The kernel keeps the listing of a directory until its mtime changes.
	dirAttr(out, hash("vm", d.name), v.changed)
	return brief, nil
}

func (d *vmDir) lookup(ctx context.Context, name string) (child, error) {
	v, err := d.vm(ctx)
	if err != nil {
		return child{}, err
	}
	if name == latest {
		return v.latest(), nil
	}
	if name == historyName && d.server.options.Files != nil {
		return d.historyChild(), nil
	}
	p := v.byName[name]
	if p == nil {
		return child{}, filesystem.ErrNotExist
	}
	return p.listed(name), nil
}

// listed is a point as a child by its own name. What is in it never changes,
// but it may be forgotten.
func (p *point) listed(name string) child {
	c := p.child(name, false)
	c.valid = brief
	return c
}

// latest is the newest point as a child; a VM has at least one point.
func (v *vm) latest() child {
	p := v.points[len(v.points)-1]
	c := p.child(latest, true)
	c.key.name = latest + "/" + p.summary.ID // another point is another directory
	c.valid = brief
	return c
}

func (d *vmDir) list(ctx context.Context, cookie uint64, fn func(child) bool) error {
	v, err := d.vm(ctx)
	if err != nil {
		return err
	}
	children := []func() child{v.latest}
	if d.server.options.Files != nil {
		children = append(children, d.historyChild)
	}
	before := uint64(len(children)) // they come before the points
	for i := cookie; i < before+uint64(len(v.points)); i++ {
		var c child
		if i < before {
			c = children[i]()
		} else {
			c = v.points[i-before].listed(v.names[i-before])
		}
		c.next = i + 1
		if !fn(c) {
			break
		}
	}
	return nil
}
