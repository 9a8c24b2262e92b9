package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"cairn/qmp"
	"cairn/qmp/nbd"
)

// beginTimeout bounds the wait for a backup to begin: libvirt itself waits for
// thirty seconds while another job runs, and the guest is frozen meanwhile.
const beginTimeout = 10 * time.Second

// lateTimeout is how long a backup may begin after we gave up waiting for it.
const lateTimeout = 35 * time.Second

// dirtyBitmap is the name under which an incremental export has its bitmap.
const dirtyBitmap = "dirty"

// Fleece is a frozen point-in-time view of a domain's disks, made by libvirt's
// backup. Its steps are those of qmp.Fleece. Its methods are for one
// goroutine; sources are for many.
type Fleece struct {
	d    *Domain
	opt  qmp.FleeceOptions
	dir  string // of the socket and the files, QEMU's user's own
	push bool   // QEMU writes files, and we read those

	begun     bool   // a backup of ours may run
	uncertain bool   // nobody told whether it began
	turned    string // why what was to be incremental is read whole
	watch     *watch
	conns     []*nbd.Conn
	images    []*imageServer
	done      bool // Release has succeeded

	mu     sync.Mutex
	broken error // what the watcher saw
}

// Prepare makes the folder for what QEMU will write, and refuses early what
// cannot work. It changes nothing in the domain but for checkpoints that the
// decisions give up.
func (d *Domain) Prepare(ctx context.Context, opt qmp.FleeceOptions) (*Fleece, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	f := &Fleece{d: d, opt: opt}
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	if err := f.prepare(ctx); err != nil {
		return nil, errors.Join(err, f.removeFiles())
	}
	return f, nil
}

func (f *Fleece) check(ctx context.Context) error {
	if !qmp.ValidRepo(f.opt.Repo) {
		return fmt.Errorf("libvirt: %q is no repository's short name: 8 hexadecimal digits are needed", f.opt.Repo)
	}
	if len(f.opt.Disks) == 0 {
		return errors.New("libvirt: no disk is to be read")
	}
	for _, fd := range f.opt.Disks {
		if fd.Disk.Skip != "" {
			return fmt.Errorf("libvirt: disk %s cannot be read: %s", fd.Disk.Name, fd.Disk.Skip)
		}
	}
	if err := f.ready(ctx); err != nil {
		return err
	}
	x, err := f.d.describe(ctx)
	if err != nil {
		return err
	}
	version, err := f.d.version(ctx, x)
	if err != nil {
		return err
	}
	f.push = version < safeVersion && slices.ContainsFunc(f.opt.Disks, func(fd qmp.FleeceDisk) bool { return fd.Disk.IOThread != "" })
	return f.checkSpace()
}

// ready asks whether a backup can begin.
func (f *Fleece) ready(ctx context.Context) error {
	s, err := f.d.State(ctx)
	if err != nil {
		return err
	}
	switch {
	case !s.Active:
		return ErrOff
	case s.Status == "io-error": // the watcher would take it for our doing
		return ErrHeldUp
	}
	busy, err := f.d.busy(ctx)
	if err == nil && busy {
		err = ErrBusy
	}
	return err
}

func (f *Fleece) prepare(ctx context.Context) error {
	x, err := f.d.describe(ctx)
	if err != nil {
		return err
	}
	uid, gid, ok := x.owner()
	if !ok {
		uid, gid = os.Geteuid(), os.Getegid()
	}
	if f.dir, err = makeDir(f.opt.ScratchDir, uid, gid); err != nil {
		return err
	}
	if n := len(f.socket()); n > 107 {
		return fmt.Errorf("socket %s: the path has %d bytes, and sockets have room for 107: name a shorter folder with --scratch", f.socket(), n)
	}
	return f.tidyCheckpoints(ctx)
}

func (f *Fleece) socket() string { return filepath.Join(f.dir, "nbd.sock") }

// file is what QEMU writes of a disk: the scratch, or the whole point.
func (f *Fleece) file(disk qmp.Disk) string { return filepath.Join(f.dir, disk.Name+".qcow2") }

// tidyCheckpoints deletes what no disk needs any more. Attempts that failed
// and piled up are dropped, too: their bitmaps hold nothing that the committed
// one's does not, because libvirt lets that one record on.
func (f *Fleece) tidyCheckpoints(ctx context.Context) error {
	needed, drop := map[string]bool{}, map[string]bool{}
	for _, fd := range f.opt.Disks {
		for _, name := range fd.Decision.Remove {
			drop[name] = true
		}
		if !fd.Decision.Incremental {
			continue
		}
		for _, name := range fd.Decision.Fold {
			drop[name] = true
		}
		if len(fd.Decision.Fold) == 0 {
			for _, name := range fd.Decision.Merge {
				needed[name] = true
			}
		}
		needed[since(fd.Decision)] = true
	}
	list, err := f.d.checkpoints(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if drop[c.ref.Name] && !needed[c.ref.Name] {
			if err := f.d.deleteCheckpoint(ctx, c.ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// since names the checkpoint that an incremental read begins at: the oldest of
// those to be merged.
func since(d qmp.Decision) string {
	if len(d.Fold) > 0 {
		return d.Fold[0]
	}
	if len(d.Merge) > 0 {
		return d.Merge[0]
	}
	return ""
}

// Point begins libvirt's backup: what is read from the fleece is the disks'
// content at this instant, of all disks. pause is not needed: QEMU does it in
// one transaction.
func (f *Fleece) Point(ctx context.Context, _ bool) (qmp.PointInfo, error) {
	if err := f.ready(ctx); err != nil {
		return qmp.PointInfo{}, err
	}
	// The watcher is there first: the guest may write at once.
	f.watch = f.startWatch(ctx)
	err := f.begin(ctx)
	switch code(err) {
	case golibvirt.ErrCheckpointInconsistent:
		f.turned = "full read: libvirt found a checkpoint's bitmap missing or broken when the backup began"
		err = f.begin(ctx)
	case golibvirt.ErrInternalError:
		// A bitmap of this name may be left from a checkpoint that libvirt was
		// made to forget. It is not one that anybody needs: this attempt is newer.
		name := qmp.BitmapName(f.opt.Repo, f.opt.Seq)
		if known, kerr := f.known(ctx, name); kerr == nil && !known {
			err = errors.Join(err, f.d.purge(ctx, name))
			if again := f.begin(ctx); again == nil {
				err = nil
			}
		}
	}
	if err != nil {
		return qmp.PointInfo{}, fmt.Errorf("libvirt: begin the backup: %w", err)
	}
	return qmp.PointInfo{Time: f.opt.Now()}, nil
}

func (f *Fleece) known(ctx context.Context, name string) (bool, error) {
	list, err := f.d.checkpoints(ctx)
	return slices.ContainsFunc(list, func(c checkpoint) bool { return c.ref.Name == name }), err
}

// Turned says why disks that were to be read incrementally are read whole,
// "" if they are not. It is known after Point.
func (f *Fleece) Turned() string { return f.turned }

// begin asks for the backup once.
func (f *Fleece) begin(ctx context.Context) error {
	backup, checkpoint, err := f.request()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	f.begun, f.uncertain = true, true
	var optional golibvirt.OptString
	if checkpoint != "" {
		optional = golibvirt.OptString{checkpoint}
	}
	err = f.d.conn.do(ctx, "begin the backup", func(l *golibvirt.Libvirt) error {
		return l.DomainBackupBegin(f.d.dom, backup, optional, 0)
	})
	f.uncertain = err != nil && code(err) == 0
	f.begun = err == nil || f.uncertain
	return err
}

// request writes what the backup and its checkpoint are to be.
func (f *Fleece) request() (backup, checkpoint string, err error) {
	b := backupXML{Mode: "pull", Server: &serverXML{"unix", f.socket()}}
	if f.push {
		b.Mode, b.Server = "push", nil
	}
	c := newCheckpoint{Name: qmp.BitmapName(f.opt.Repo, f.opt.Seq)}
	for i := range f.opt.Disks {
		fd := f.opt.Disks[i]
		b.Disks = append(b.Disks, f.requestDisk(fd))
		if fd.Disk.Persistent {
			c.Disks = append(c.Disks, newCheckpointDisk{Name: fd.Disk.Top, Checkpoint: "bitmap"})
		}
	}
	if backup, err = write(b); err != nil {
		return "", "", err
	}
	if len(c.Disks) == 0 { // raw disks only: there is nothing that could record
		return backup, "", nil
	}
	checkpoint, err = write(c)
	return backup, checkpoint, err
}

func (f *Fleece) requestDisk(fd qmp.FleeceDisk) backupDiskXML {
	d := backupDiskXML{Name: fd.Disk.Top, Backup: "yes", Type: "file", BackupMode: "full", Driver: &backupTypeXML{"qcow2"}}
	if f.incremental(fd) {
		d.BackupMode, d.Incremental = "incremental", since(fd.Decision)
	}
	file := &backupFileXML{f.file(fd.Disk)}
	if f.push {
		d.Target = file
		return d
	}
	d.Scratch, d.ExportName = file, fd.Disk.Top
	if f.incremental(fd) {
		d.ExportBitmap = dirtyBitmap
	}
	return d
}

func (f *Fleece) incremental(fd qmp.FleeceDisk) bool {
	return fd.Decision.Incremental && f.turned == ""
}

// Export opens the disks for reading, in the order of the options.
func (f *Fleece) Export(ctx context.Context) ([]qmp.Source, error) {
	if !f.begun {
		return nil, errors.New("libvirt: Export without a point in time")
	}
	if f.push {
		if err := f.awaitPush(ctx); err != nil {
			return nil, err
		}
	}
	var sources []qmp.Source
	for _, fd := range f.opt.Disks {
		open := f.pulled
		if f.push {
			open = f.pushed
		}
		s, err := open(ctx, fd)
		if err != nil {
			return nil, f.explain(fmt.Errorf("export of disk %s: %w", fd.Disk.Name, err))
		}
		sources = append(sources, s)
	}
	return sources, nil
}

// pulled opens QEMU's export of a disk.
func (f *Fleece) pulled(ctx context.Context, fd qmp.FleeceDisk) (qmp.Source, error) {
	s := source{Pull: &qmp.Pull{Name: fd.Disk.Name}, f: f}
	var err error
	if s.Data, err = f.dial(ctx, f.socket(), fd.Disk.Top, nbd.BaseAllocation); err != nil {
		return nil, err
	}
	if err := checkSize(s.Data, fd.Disk); err != nil {
		return nil, err
	}
	if !f.incremental(fd) {
		return s, nil
	}
	s.Context = nbd.DirtyBitmap(dirtyBitmap)
	if s.Dirty, err = f.dial(ctx, f.socket(), fd.Disk.Top, s.Context); err != nil {
		return nil, err
	}
	return s, s.count(ctx)
}

func checkSize(c *nbd.Conn, d qmp.Disk) error {
	if c.Size() != d.Size {
		return fmt.Errorf("the export has %d bytes, the disk %d", c.Size(), d.Size)
	}
	return nil
}

func (f *Fleece) dial(ctx context.Context, socket, export, context string) (*nbd.Conn, error) {
	c, err := f.opt.Dialer.Dial(ctx, "unix", socket, export, context)
	if err == nil {
		f.conns = append(f.conns, c)
	}
	return c, err
}

// source is a disk of the fleece whose errors tell what the watcher saw.
type source struct {
	*qmp.Pull
	f     *Fleece
	files bool // QEMU pushed it: what did not change is not there
}

// count adds up what the bitmap marks.
func (s source) count(ctx context.Context) error {
	return s.Dirty.Extents(ctx, s.Context, 0, s.Size(), func(e nbd.Extent) error {
		if e.Flags&nbd.FlagDirty != 0 {
			s.Bytes += e.Length
		}
		return nil
	})
}

func (s source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.Pull.ReadAt(ctx, p, off)
	return n, s.f.explain(err)
}

func (s source) Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error {
	return s.f.explain(s.Pull.Extents(ctx, fn))
}

// Sample calls fn for nothing of a disk that QEMU pushed.
func (s source) Sample(ctx context.Context, offsets []int64, length int, fn func(off int64, data []byte) error) error {
	if s.files && s.Dirty != nil {
		return nil
	}
	return s.f.explain(s.Pull.Sample(ctx, offsets, length, fn))
}

// Anywhere is false where libvirt copied only what changed.
func (s source) Anywhere() bool { return !s.files || s.Dirty == nil }

func (s source) Whole() qmp.Source {
	if s.files && s.Dirty != nil {
		return partial{s}
	}
	return source{Pull: &qmp.Pull{Name: s.Name, Data: s.Data}, f: s.f, files: s.files}
}

// partial is a pushed increment that was asked to be the whole disk.
type partial struct{ source }

func (p partial) Extents(context.Context, func(off, length int64, zero bool) error) error {
	return fmt.Errorf("disk %s: only what changed was copied: run the backup again with --full-read", p.Name)
}

// explain adds to an error what the watcher saw.
func (f *Fleece) explain(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil || f.broken == nil || errors.Is(err, f.broken) {
		return err
	}
	return fmt.Errorf("%w (%w)", f.broken, err)
}

// Release ends the backup and removes its files. It works after any part of
// the other steps and after the domain's end, and may be called again when it
// failed. libvirt ends the job before our sockets close.
func (f *Fleece) Release(ctx context.Context) error {
	if f.done {
		return nil
	}
	if f.watch != nil {
		f.watch.stop()
	}
	if err := f.end(ctx); err != nil {
		return err // QEMU may be using the files
	}
	for _, c := range f.conns {
		_ = c.Abandon() // its export is gone
	}
	for _, s := range f.images {
		s.stop()
	}
	f.conns, f.images = nil, nil
	err := f.removeFiles()
	f.done = err == nil
	return err
}

// end ends the backup, also one that began after we gave up waiting for it.
func (f *Fleece) end(ctx context.Context) error {
	if !f.begun {
		return nil
	}
	late := f.opt.Now().Add(lateTimeout)
	for {
		s, err := f.d.State(ctx)
		if err != nil || !s.Active {
			return err // with QEMU everything in it is gone
		}
		ended, err := f.d.abortOurs(ctx)
		if err != nil {
			return err
		}
		if ended || !f.uncertain || f.opt.Now().After(late) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("libvirt: nobody tells whether the backup began: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	f.begun, f.uncertain = false, false
	_, err := f.d.letGoOn(ctx)
	return err
}

func (f *Fleece) removeFiles() error {
	if f.dir == "" {
		return nil
	}
	return os.RemoveAll(f.dir)
}

// Own names the folder that tells this fleece's backup from any other.
func (f *Fleece) Own() string { return f.dir }
