package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"cairn/qmp/nbd"
	"cairn/qmp/storage"
)

// OfflineFleece is the view of a VM that is off. It needs no copies: the
// images stand still as long as the VM does.
type OfflineFleece struct {
	o      *Offline
	opt    FleeceOptions
	images []int // of the disks, in the order of opt.Disks

	held    bool
	taken   bool
	session *offlineSession // of Export
	reader  *Fleece         // its server and connections
}

// Prepare checks what can be checked before the point.
func (o *Offline) Prepare(_ context.Context, opt FleeceOptions) (*OfflineFleece, error) {
	if opt.Now == nil {
		opt.Now = o.opt.Now
	}
	f := &OfflineFleece{o: o, opt: opt}
	switch {
	case !ValidRepo(opt.Repo):
		return nil, fmt.Errorf("qmp: %q is no repository's short name: 8 hexadecimal digits are needed", opt.Repo)
	case len(opt.Disks) == 0:
		return nil, errors.New("qmp: no disk is to be read")
	}
	for _, d := range opt.Disks {
		i := slices.IndexFunc(o.opt.Images, func(img Image) bool { return img.Name == d.Disk.Name })
		if i < 0 || d.Disk.Skip != "" {
			return nil, fmt.Errorf("qmp: disk %s cannot be read: %s", d.Disk.Name, d.Disk.Skip)
		}
		if err := checkImageSpace(d.Disk); err != nil {
			return nil, err
		}
		f.images = append(f.images, i)
	}
	return f, nil
}

// Point stores this attempt's bitmaps in the images and marks the files. The
// VM cannot start meanwhile: it takes some 50 ms.
func (f *OfflineFleece) Point(ctx context.Context, _ bool) (info PointInfo, err error) {
	if err := errors.Join(f.o.unused(ctx), f.o.files.Opened()); err != nil {
		return PointInfo{}, err
	}
	defer func() { err = errors.Join(err, f.letGo()) }()
	if err := f.renewBitmaps(ctx); err != nil {
		return PointInfo{}, err
	}
	if err := f.hold(); err != nil {
		return PointInfo{}, err
	}
	// Held: who writes now began before, and nobody begins.
	if err := f.o.unused(ctx); err != nil {
		return PointInfo{}, err
	}
	if err := f.o.files.Mark(); err != nil {
		return PointInfo{}, err
	}
	f.taken = true
	return PointInfo{Time: f.opt.Now()}, nil
}

// hold keeps the VM from starting until letGo.
func (f *OfflineFleece) hold() error {
	if f.held {
		return nil
	}
	err := f.o.files.Hold()
	f.held = err == nil
	return err
}

func (f *OfflineFleece) letGo() error {
	if !f.held {
		return nil
	}
	f.held = false
	return f.o.files.LetGo()
}

// renewBitmaps opens the images that keep bitmaps for writing, which nobody
// else then can, does to their bitmaps what a running VM's point does, and
// closes them: that stores the bitmaps. When it returns the images are held.
func (f *OfflineFleece) renewBitmaps(ctx context.Context) error {
	var keep []int // places in opt.Disks
	var images []int
	for n, d := range f.opt.Disks {
		if d.Disk.Persistent {
			keep, images = append(keep, n), append(images, f.images[n])
		}
	}
	if len(keep) == 0 {
		return nil
	}
	s, err := f.o.open(ctx, images, true)
	if err != nil {
		return err
	}
	err = f.hold() // before they are closed: no VM starts between that and the mark
	if err == nil {
		err = f.changeBitmaps(ctx, s, keep)
	}
	if err = errors.Join(err, s.quit(ctx)); err != nil {
		return fmt.Errorf("new bitmaps: %w", err)
	}
	return nil
}

func (f *OfflineFleece) changeBitmaps(ctx context.Context, s *offlineSession, keep []int) error {
	state, err := readBlockState(ctx, s.conn)
	if err != nil {
		return err
	}
	var commands []command
	name := BitmapName(f.opt.Repo, f.opt.Seq)
	for _, n := range keep {
		d, node := f.opt.Disks[n].Disk, imageNode(f.images[n])
		image := state.nodes[node].Image
		if image.VirtualSize != d.Size || !slices.Equal(image.chain(), d.Chain) {
			return fmt.Errorf("qmp: disk %s: its image changed since it was looked at: run the backup again", d.Name)
		}
		commands = append(commands, bitmapAdd{Node: node, Name: name, Granularity: Granularity, Persistent: true})
	}
	r := f.inDaemon(s.conn, keep)
	if err := r.tidyBitmaps(ctx); err != nil {
		return err
	}
	if state, err = readBlockState(ctx, s.conn); err != nil {
		return err
	}
	for _, d := range r.opt.Disks {
		for _, b := range ours(state.nodes[d.Disk.Node].bitmaps(), f.opt.Repo) {
			if b.Recording && !b.Inconsistent {
				commands = append(commands, bitmapDisable{d.Disk.Node, b.Name})
			}
		}
	}
	return s.conn.run(ctx, atomically(commands), nil)
}

// inDaemon gives a fleece of some disks by the daemon's nodes, for the steps
// that are the same as with a running VM.
func (f *OfflineFleece) inDaemon(conn *Conn, which []int) *Fleece {
	r := &Fleece{conn: conn, opt: f.opt}
	r.opt.Disks = nil
	for _, n := range which {
		d := f.opt.Disks[n]
		d.Disk.Node = imageNode(f.images[n])
		r.opt.Disks = append(r.opt.Disks, d)
	}
	return r
}

// Export opens the images for reading, watches them, and gives one source for
// each disk. The VM may start at any time from here on.
func (f *OfflineFleece) Export(ctx context.Context) ([]Source, error) {
	if !f.taken {
		return nil, errors.New("qmp: Export without a point in time")
	}
	var err error
	if f.session, err = f.o.open(ctx, f.images, false); err != nil {
		return nil, err
	}
	sources, err := f.export(ctx)
	if err != nil {
		return nil, errors.Join(f.o.standsStill(ctx), err)
	}
	return sources, nil
}

func (f *OfflineFleece) export(ctx context.Context) ([]Source, error) {
	all := make([]int, len(f.images))
	for n := range all {
		all[n] = n
	}
	f.reader = f.inDaemon(f.session.conn, all)
	if err := f.reader.mergeBitmaps(ctx); err != nil {
		return nil, err
	}
	state, err := readBlockState(ctx, f.session.conn)
	if err != nil {
		return nil, err
	}
	if err := f.stored(state); err != nil {
		return nil, err
	}
	if err := f.reader.startServer(ctx, os.Geteuid(), os.Getegid()); err != nil {
		return nil, err
	}
	var sources []Source
	for n := range f.images {
		s, err := f.exportImage(ctx, n, state)
		if err != nil {
			return nil, fmt.Errorf("export of disk %s: %w", f.opt.Disks[n].Disk.Name, err)
		}
		sources = append(sources, &offlineSource{s, f.o})
	}
	return sources, nil
}

// stored checks that this attempt's bitmaps are in the images: a daemon that
// cannot store them when it closes an image says so on stderr only.
func (f *OfflineFleece) stored(state *blockState) error {
	name := BitmapName(f.opt.Repo, f.opt.Seq)
	for n, d := range f.opt.Disks {
		list := state.nodes[imageNode(f.images[n])].bitmaps()
		f.o.bitmaps[f.images[n]] = list
		if !d.Disk.Persistent {
			continue
		}
		if !slices.ContainsFunc(list, func(b Bitmap) bool { return b.Name == name && b.Recording && !b.Inconsistent }) {
			return fmt.Errorf("disk %s: bitmap %s could not be stored in image %s: is its filesystem full?", d.Disk.Name, name, d.Disk.File)
		}
	}
	return nil
}

// exportImage makes the export of a disk and connects to it.
func (f *OfflineFleece) exportImage(ctx context.Context, n int, state *blockState) (*Pull, error) {
	d, id, merged := f.reader.opt.Disks[n], objectName(prefixExport, n), mergedName(f.opt.Repo)
	export := blockExportAdd{Type: "nbd", ID: id, Node: d.Disk.Node, Name: id}
	if d.Decision.Incremental {
		export.Bitmaps = []exportBitmap{{Node: d.Disk.Node, Name: merged}}
	}
	if err := f.session.conn.run(ctx, export, nil); err != nil {
		return nil, err
	}
	s := &Pull{Name: d.Disk.Name}
	var err error
	if s.Data, err = f.reader.dial(ctx, id, nbd.BaseAllocation); err != nil {
		return nil, err
	}
	if s.Data.Size() != d.Disk.Size {
		return nil, fmt.Errorf("the export has %d bytes, the disk %d", s.Data.Size(), d.Disk.Size)
	}
	if !d.Decision.Incremental {
		return s, nil
	}
	for _, b := range state.nodes[d.Disk.Node].bitmaps() {
		if b.Name == merged {
			s.Bytes = b.Count
		}
	}
	s.Context = nbd.DirtyBitmap(merged)
	s.Dirty, err = f.reader.dial(ctx, id, s.Context)
	return s, err
}

// Unchanged proves that what was read is the point: nobody has written to the
// images since, and the VM is still off. Else it gives an error that wraps
// ErrVMStarted. Call it behind the last read and before the commit.
func (f *OfflineFleece) Unchanged(ctx context.Context) error {
	if !f.taken {
		return errors.New("qmp: Unchanged without a point in time")
	}
	return f.o.standsStill(ctx)
}

// standsStill gives an error that wraps ErrVMStarted if the VM runs, if
// another program may write to its images, or if one has since the mark.
func (o *Offline) standsStill(ctx context.Context) error {
	err := o.unused(ctx)
	if err == nil {
		err = o.files.Changed()
	}
	if err == nil || errors.Is(err, ErrVMStarted) || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w (%w)", ErrVMStarted, err)
}

// Release ends the daemon. It works after any part of the other steps and may
// be called again.
func (f *OfflineFleece) Release(context.Context) error {
	err := f.letGo()
	if f.session != nil {
		if f.reader != nil {
			f.reader.abandon()
		}
		// It only reads: nothing is lost by a kill, and nothing can hold that up.
		if killed := errors.Join(f.session.daemon.Kill(), f.session.conn.Close()); killed != nil {
			return errors.Join(err, killed)
		}
		f.session = nil
	}
	if f.reader != nil && f.reader.socket != "" {
		if rerr := os.Remove(f.reader.socket); rerr != nil && !os.IsNotExist(rerr) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// How often Watch looks. A VM has its images open for longer than that; the
// files' times are asked for less often, as for a block device it means a flush.
const (
	watchLocks = 20 * time.Millisecond
	watchAll   = 10 // of watchLocks
)

// Watch looks while images are read whether somebody begins to write: what is
// read then may be no image at all any more. It gives an error that wraps
// ErrVMStarted, or nil when ctx has ended.
func (f *OfflineFleece) Watch(ctx context.Context) error {
	t := time.NewTicker(watchLocks)
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := f.o.files.Writer(); n%watchAll != 0 && !errors.Is(err, storage.ErrInUse) {
			continue
		}
		if err := f.o.standsStill(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// offlineSource is a source whose errors are explained: an image that is
// written to can fail to be read in any way.
type offlineSource struct {
	*Pull
	o *Offline
}

func (s *offlineSource) explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if started := s.o.standsStill(ctx); started != nil {
		return fmt.Errorf("%w (%w)", started, err)
	}
	return err
}

// Extents implements Source.
func (s *offlineSource) Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error {
	return s.explain(ctx, s.Pull.Extents(ctx, fn))
}

// ReadAt implements Source.
func (s *offlineSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.Pull.ReadAt(ctx, p, off)
	return n, s.explain(ctx, err)
}

// Sample implements Source.
func (s *offlineSource) Sample(ctx context.Context, offsets []int64, length int, fn func(off int64, data []byte) error) error {
	return s.explain(ctx, s.Pull.Sample(ctx, offsets, length, fn))
}

// Whole implements Source.
func (s *offlineSource) Whole() Source {
	return &offlineSource{&Pull{Name: s.Name, Data: s.Data}, s.o}
}
