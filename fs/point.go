package fs

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// maxOpened is how many points stay open: each holds a manifest and the
// caches of its filesystems. Others are opened again when looked at.
const maxOpened = 32

// maxMetadata bounds the bytes of the open points' metadata: an inside agent
// may send 16 MiB for each, and decoded it is several times that.
const maxMetadata = 32 << 20

// point is a restore point in the listing. What it takes to look inside is
// opened when needed and given up when maxOpened others were needed since.
type point struct {
	server  *Server
	summary restorepoint.Summary
	turn    chan struct{} // holds a token while somebody opens the point
	opened  atomic.Pointer[opened]
}

// opened is a point with its manifest read.
type opened struct {
	manifest *restorepoint.Manifest
	tree     *tree.Tree
	finding  chan struct{} // holds a token while somebody looks for system objects
	apps     atomic.Pointer[apps]

	mu    sync.Mutex
	disks map[string]restorepoint.Image
	sizes map[string]*allocated
	texts map[string][]byte // documents that were made
}

func newPoint(s *Server, summary restorepoint.Summary) *point {
	return &point{server: s, summary: summary, turn: make(chan struct{}, 1)}
}

func (p *point) open(ctx context.Context) (*opened, error) {
	if o := p.opened.Load(); o != nil {
		return o, nil
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.turn }()
	if o := p.opened.Load(); o != nil {
		return o, nil
	}
	bounded, cancel := context.WithTimeout(ctx, p.server.options.Deadline)
	defer cancel()
	m, err := p.server.source.Manifest(bounded, p.summary.ID)
	if err != nil {
		return nil, fmt.Errorf("restore point %s: %w", p.summary.ID, err)
	}
	o := &opened{manifest: m, finding: make(chan struct{}, 1), disks: map[string]restorepoint.Image{}, sizes: map[string]*allocated{}, texts: map[string][]byte{}}
	o.tree, err = p.server.openTree(ctx, m, func(disk string) (restorepoint.Image, error) { return p.disk(o, disk) })
	if err != nil {
		return nil, fmt.Errorf("restore point %s: %w", p.summary.ID, err)
	}
	p.server.keepOpen(p, o)
	return o, nil
}

// keepOpen remembers that a point is open and gives up the one that was
// opened longest ago. Requests that use that one go on with what they have.
func (s *Server) keepOpen(p *point, o *opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.opened.Store(o)
	s.open = append(s.open, p)
	for len(s.open) > maxOpened || len(s.open) > 1 && s.metadata() > maxMetadata {
		s.open[0].opened.Store(nil)
		s.open = append(s.open[:0], s.open[1:]...)
	}
}

// metadata needs s.mu.
func (s *Server) metadata() (bytes int) {
	for _, p := range s.open {
		o := p.opened.Load()
		if o != nil && o.manifest.Guest != nil {
			bytes += len(o.manifest.Guest.Metadata)
		}
		if o != nil && o.apps.Load() != nil && o.apps.Load().derived {
			bytes += len(o.apps.Load().raw)
		}
	}
	return bytes
}

// disk opens a disk of the point, once.
func (p *point) disk(o *opened, name string) (restorepoint.Image, error) {
	o.mu.Lock()
	known := o.disks[name]
	o.mu.Unlock()
	if known != nil {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.server.options.Deadline)
	defer cancel()
	image, err := p.server.source.Image(ctx, o.manifest, name)
	if err != nil {
		return nil, fmt.Errorf("disk %s of restore point %s: %w", name, p.summary.ID, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if first := o.disks[name]; first != nil {
		return first, nil
	}
	o.disks[name] = image
	return image, nil
}

// child is the point's directory under a name. Its attributes come from the
// summary, so a listing opens no manifest.
func (p *point) child(name string, isLatest bool) child {
	d := &pointDir{point: p, via: name}
	if !isLatest {
		d.via = ""
	}
	return named(name, filesystem.ModeDir, d.ino(), d)
}

// pointDir is the directory of a point. via is "latest" when it was reached
// by that name: the same directory twice in one tree would look like a loop,
// or a hard link, to cp and find.
type pointDir struct {
	point *point
	via   string
}

func (d *pointDir) ino(names ...string) uint64 {
	return hash(append([]string{d.point.summary.ID, d.via}, names...)...)
}

func (d *pointDir) attr(_ context.Context, out *fuse.Attr) (time.Duration, error) {
	dirAttr(out, d.ino(), d.point.summary.Time)
	return forever, nil
}

// children are always the same: they are there whether or not what they show
// can be opened.
func (d *pointDir) children() []child {
	sub := func(name string, children func(context.Context) ([]child, error)) child {
		ino := d.ino(name)
		return named(name, filesystem.ModeDir, ino, &static{ino, d.point.summary.Time, children})
	}
	json := named("point.json", filesystem.ModeRegular, d.ino("point.json"), &document{d.ino("point.json"), d.point.summary.Time, d.point.json})
	json.costly = true
	guest := named("fs", filesystem.ModeDir, d.ino("fs"), nil)
	guest.costly = true
	apps := named("apps", filesystem.ModeDir, d.ino("apps", ""), nil)
	apps.costly = true
	list := []child{json, guest, apps, sub("volumes", d.volumes), sub("disks", d.disks), sub("machine", d.machine)}
	if d.point.server.options.Files != nil {
		changes := named(changesName, filesystem.ModeRegular, d.ino(changesName), &changesFile{d.point, d.ino(changesName)})
		changes.costly = true
		list = append(list, changes)
	}
	return list
}

func (d *pointDir) lookup(ctx context.Context, name string) (child, error) {
	c, err := find(d.children(), name)
	switch {
	case err != nil:
		return child{}, err
	case name == "fs":
		return d.guest(ctx, c)
	case name == "apps":
		return d.appsChild(ctx, c)
	}
	return c, nil
}

func (d *pointDir) list(_ context.Context, cookie uint64, fn func(child) bool) error {
	return each(d.children(), cookie, fn)
}

// guest gives the directory fs/: the guest's own root, or one that says why
// there is none.
func (d *pointDir) guest(ctx context.Context, c child) (child, error) {
	o, err := d.point.open(ctx)
	if err != nil {
		return child{}, err
	}
	view, err := o.tree.Guest(ctx)
	if err != nil {
		return d.unreadable(ctx, c, err)
	}
	return d.viewRoot(ctx, c, stitched, view)
}

// volumes lists the volumes, also those that cannot be opened.
func (d *pointDir) volumes(ctx context.Context) ([]child, error) {
	o, err := d.point.open(ctx)
	if err != nil {
		return nil, err
	}
	list, err := o.tree.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	var children []child
	for i, v := range list {
		c := named(escapeName(v.Name), filesystem.ModeDir, d.ino("volumes", v.Name), &volumeDir{pointDir: d, index: int32(i)})
		c.costly = true
		children = append(children, c)
	}
	return children, nil
}

// volumeDir is a volume that was listed and not yet opened; resolve gives the
// child to show instead.
type volumeDir struct {
	*pointDir
	index int32
}

// resolver is an object that stands for another until it is looked up.
type resolver interface {
	resolve(ctx context.Context, c child) (child, error)
}

func (v *volumeDir) resolve(ctx context.Context, c child) (child, error) {
	o, err := v.point.open(ctx)
	if err != nil {
		return child{}, err
	}
	view, err := o.tree.Volume(ctx, v.index)
	if err != nil {
		return v.unreadable(ctx, c, err)
	}
	return v.viewRoot(ctx, c, v.index, view)
}

// unreadable gives a directory for what cannot be shown, unless the cause may
// pass: then the kernel must not keep it.
func (d *pointDir) unreadable(ctx context.Context, c child, err error) (child, error) {
	if ctx.Err() != nil {
		return child{}, ctx.Err()
	}
	d.point.server.report(fmt.Errorf("restore point %s: %s: %w", d.point.summary.ID, c.name, err))
	if !tree.Lasting(err) {
		return child{}, err
	}
	c.object = &unreadable{c.ino, d.point.summary.Time, err}
	return c, nil
}
