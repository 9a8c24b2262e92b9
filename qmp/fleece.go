package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"cairn/qmp/nbd"
	"cairn/qmp/storage"
)

// Names of our objects inside QEMU. The number is the disk's place in
// FleeceOptions.Disks; QEMU has room for 31 bytes, too few for a disk's name.
const (
	prefixFilter  = "cairn-cbw-"  // copy-before-write node, between device and disk
	prefixScratch = "cairn-scr-"  // raw node of the scratch file
	prefixFile    = "cairn-scrf-" // the scratch file itself
	prefixAccess  = "cairn-snap-" // snapshot-access node: the fleece
	prefixExport  = "cairn-exp-"  // export of it; of the meta node if the disk is pushed
	prefixMeta    = "cairn-meta-" // null-co node with the bitmaps of a pushed disk
	prefixPush    = "cairn-push-" // NBD client node: our server, which a disk is pushed to
	prefixJob     = "cairn-job-"  // the job that pushes
	prefixJobNode = "cairn-flt-"  // that job's filter
)

func objectName(prefix string, i int) string { return prefix + strconv.Itoa(i) }

// undoTimeout bounds each walk back after a failure: it must go on when the
// caller's context has ended.
const undoTimeout = 60 * time.Second

// FleeceDisk is a disk to read, with how to read it.
type FleeceDisk struct {
	Disk     Disk
	Decision Decision
}

// FleeceOptions says what a fleece is made of.
type FleeceOptions struct {
	Disks      []FleeceDisk
	Repo       string        // 8 hexadecimal digits
	Seq        uint64        // of this attempt: NextSeq
	ScratchDir string        // where the scratch files go; QEMU must be able to reach it
	SocketDir  string        // where the NBD server's socket goes; the same in each run for one VM
	CBWTimeout time.Duration // how long a guest's write may wait for the scratch space before the fleece breaks; 0 means 10 s
	// MinScratch is how much must be free in ScratchDir, bytes. 0 means a
	// twentieth of the disks, at least 64 MiB. More is needed only if the guest
	// overwrites more while the fleece is read.
	MinScratch int64
	// MaxScratch is the most that the scratch files may take before Watch says
	// so, bytes. 0 means nine tenths of what is free.
	MaxScratch int64
	Dialer     nbd.Dialer       // for the export
	Now        func() time.Time // nil means time.Now
}

// Fleece is a frozen point-in-time view of a VM's disks. Its steps are
// Prepare, Point, Export, then reading the sources, then Release, which is
// always called. Its methods are for one goroutine; sources are for many.
type Fleece struct {
	conn    *Conn
	opt     FleeceOptions
	scratch *scratch
	socket  string
	sub     *Subscription

	server     bool        // the NBD server is ours to stop
	doubtUntil time.Time   // until then a handshake of ours may still be open in QEMU
	inserted   []int       // disks whose device has our filter
	conns      []*nbd.Conn // of all sources
	lanes      []*lane     // of all pushed disks
	done       bool        // Release has succeeded
}

// Prepare makes the scratch files, the filters (not in the data path yet) and
// the NBD server. On an error everything is undone.
func Prepare(ctx context.Context, conn *Conn, opt FleeceOptions) (*Fleece, error) {
	if opt.CBWTimeout <= 0 {
		opt.CBWTimeout = 10 * time.Second
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	f := &Fleece{conn: conn, opt: opt}
	if err := f.check(); err != nil {
		return nil, err
	}
	f.sub = conn.Subscribe()
	err := f.prepare(ctx)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, f.Release(undo))
	}
	return f, nil
}

// check refuses early what cannot work.
func (f *Fleece) check() error {
	if !ValidRepo(f.opt.Repo) {
		return fmt.Errorf("qmp: %q is no repository's short name: 8 hexadecimal digits are needed", f.opt.Repo)
	}
	if len(f.opt.Disks) == 0 {
		return errors.New("qmp: no disk is to be read")
	}
	var total int64
	for _, d := range f.opt.Disks {
		if d.Disk.Skip != "" {
			return fmt.Errorf("qmp: disk %s cannot be read: %s", d.Disk.Name, d.Disk.Skip)
		}
		total += d.Disk.Size
		if err := checkImageSpace(d.Disk); err != nil {
			return err
		}
	}
	need := f.opt.MinScratch
	if need == 0 {
		need = max(total/20, 64<<20)
	}
	if err := f.opt.limitScratch(); err != nil {
		return err
	}
	return checkSpace(f.opt.ScratchDir, need, "scratch space")
}

// checkImageSpace checks that the image's filesystem has room for the bitmaps,
// which QEMU stores when it closes the image: no space then can damage the
// image's metadata (QEMU issue 3516).
func checkImageSpace(d Disk) error {
	if !d.Persistent || !filepath.IsAbs(d.File) {
		return nil
	}
	if _, err := os.Stat(d.File); err != nil {
		return nil // not a file that we can see: QEMU may be in another mount namespace
	}
	perBitmap := d.Size/Granularity/8 + 64<<10
	if storage.IsDevice(d.File) {
		return checkDeviceRoom(d, 1<<20+4*perBitmap)
	}
	return checkSpace(filepath.Dir(d.File), 8<<20+4*perBitmap, "space for bitmaps in the image of disk "+d.Name)
}

func (f *Fleece) prepare(ctx context.Context) error {
	uid, gid, ok := f.conn.peer()
	if !ok {
		uid, gid = os.Geteuid(), os.Getegid()
	}
	sizes := make([]int64, len(f.opt.Disks))
	for i, d := range f.opt.Disks {
		sizes[i] = d.Disk.Size
	}
	var err error
	if f.scratch, err = makeScratch(f.opt.ScratchDir, sizes, uid, gid); err != nil {
		return err
	}
	if err := f.tidyBitmaps(ctx); err != nil {
		return err
	}
	for i, d := range f.opt.Disks {
		scratch := objectName(prefixScratch, i)
		err := f.conn.run(ctx, addRaw{
			Driver: "raw", Node: scratch,
			File: rawFile{Driver: "file", Node: objectName(prefixFile, i), Filename: f.scratch.files[i]},
		}, nil)
		if err != nil {
			return fmt.Errorf("scratch space of disk %s (can QEMU's user reach %s?): %w", d.Disk.Name, f.scratch.dir, err)
		}
		if d.Disk.Push {
			continue // its filter comes with the point: see inserts
		}
		if err := f.conn.run(ctx, f.filter(i), nil); err != nil {
			return fmt.Errorf("filter for disk %s: %w", d.Disk.Name, err)
		}
	}
	return f.startServer(ctx, uid, gid)
}

// filter is the command that makes the filter of disk i, not in the data path yet.
func (f *Fleece) filter(i int) command {
	return addCopyBeforeWrite{
		Driver: "copy-before-write", Node: objectName(prefixFilter, i),
		File: f.opt.Disks[i].Disk.Top, Target: objectName(prefixScratch, i),
		OnCBWError: "break-snapshot", CBWTimeout: int(max(f.opt.CBWTimeout/time.Second, 1)),
	}
}

// tidyBitmaps removes bitmaps that are of no use and folds what piled up.
func (f *Fleece) tidyBitmaps(ctx context.Context) error {
	var commands []command
	for _, d := range f.opt.Disks {
		node := d.Disk.Node
		for _, name := range d.Decision.Remove {
			commands = append(commands, bitmapRemove{node, name})
		}
		if len(d.Decision.Fold) == 0 {
			continue
		}
		commands = append(commands,
			bitmapAdd{Node: node, Name: d.Decision.FoldInto, Granularity: Granularity, Persistent: d.Disk.Persistent, Disabled: true},
			bitmapMerge{node, d.Decision.FoldInto, d.Decision.Fold})
		for _, name := range d.Decision.Fold {
			commands = append(commands, bitmapRemove{node, name})
		}
	}
	if len(commands) == 0 {
		return nil
	}
	return f.conn.run(ctx, atomically(commands), nil)
}

// startServer starts QEMU's NBD server, or takes over one that a dead run of
// ours left at the same socket.
func (f *Fleece) startServer(ctx context.Context, uid, gid int) error {
	if err := os.MkdirAll(f.opt.SocketDir, 0o700); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	if err := chown(f.opt.SocketDir, uid, gid); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	dir, err := filepath.Abs(f.opt.SocketDir)
	if err != nil {
		return err
	}
	f.socket = filepath.Join(dir, "cairn-nbd.sock")
	if len(f.socket) > 107 {
		return fmt.Errorf("socket %s: the path has %d bytes, and sockets have room for 107", f.socket, len(f.socket))
	}
	// MaxConnections 0 is no limit: a connection that waits for another's end
	// would look like a hanging handshake.
	start := nbdServerStart{}
	start.Addr.Type, start.Addr.Data.Path = "unix", f.socket
	err = f.conn.run(ctx, start, nil)
	if isRefusal(err) && f.serverIsOurs(ctx) {
		err = nil
	}
	if isRefusal(err) && ctx.Err() != nil {
		return fmt.Errorf("asking whose NBD server runs in QEMU: %w", ctx.Err())
	}
	if isRefusal(err) {
		return fmt.Errorf("%w; QEMU says: %w", ErrNBDServerBusy, err)
	}
	f.server = err == nil
	return err
}

// serverIsOurs asks at our socket for an export that cannot be there. Only a
// living server answers. The handshake ends before it returns.
func (f *Fleece) serverIsOurs(ctx context.Context) bool {
	d := f.opt.Dialer
	d.HandshakeTimeout = 2 * time.Second
	c, err := d.Dial(ctx, "unix", f.socket, "cairn-are-you-there")
	if err == nil {
		c.Close()
		return false
	}
	if !errors.Is(err, nbd.ErrNoExport) {
		return false
	}
	f.doubtHandshake()
	return true
}

// doubtHandshake notes that a handshake ended on our side just now. QEMU has
// noticed that after a tenth of a second; a whole one is on the safe side.
func (f *Fleece) doubtHandshake() { f.doubtUntil = f.opt.Now().Add(time.Second) }

// explain adds to an error what QEMU's events say about its cause.
func (f *Fleece) explain(err error) error {
	if err == nil {
		return nil
	}
	words := map[string]string{
		"SHUTDOWN":       "the VM shut down",
		"BLOCK_IO_ERROR": "QEMU reports an I/O error of a disk",
		"GUEST_PANICKED": "the guest panicked",
	}
	for {
		e, ok, _ := f.sub.poll()
		if !ok {
			break
		}
		if w, known := words[e.Name]; known {
			err = fmt.Errorf("%w (meanwhile %s)", err, w)
			delete(words, e.Name)
		}
	}
	if dead := f.conn.Dead(); errors.Is(dead, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w (%w)", err, dead)
	}
	return err
}
