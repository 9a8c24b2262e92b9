package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cairn/qmp/nbd"
)

// A disk on an iothread cannot be read over NBD from a QEMU before 9.0 without
// danger: the end of our connection, also by kill -9, aborts QEMU. Such a disk
// is pushed: a blockdev-backup job of QEMU's writes the fleece to an NBD server
// of ours. If we die, the job gets an I/O error and the guest goes on.
//
// The job has one worker, so that what it writes comes in the order of the
// disk, and it gets its answer when we have taken what it wrote, so that it
// never runs ahead of us. What is dirty we learn from a copy of the bitmaps on
// a null-co node, whose export QEMU serves from its main loop and which may be
// closed at any time.

const (
	pushChunk    = 8 << 20 // bytes that the job reads at once; it writes them in pieces
	pushExport   = "cairn" // the name of our servers' exports
	pushedBitmap = "pushed"
	sampleBitmap = "sample"
	dirtyBitmap  = "dirty"

	maxPushedSample = 1024 // pieces: QEMU pushes a whole cluster for each
	jobEndTimeout   = 30 * time.Second
	cancelTimeout   = 5 * time.Second
	// takeTimeout bounds how long a write of QEMU's waits for our reader. QEMU
	// waits for it, guest and all, when it must stop, reset or end the VM, so
	// a repository that hangs must break the push.
	takeTimeout = 20 * time.Second
)

// arrival is what QEMU pushed: data, or n zeros.
type arrival struct {
	off, n int64
	data   []byte
}

// lane is one disk's way from QEMU to us: the server and what it takes.
type lane struct {
	server   *nbd.Server
	arrivals chan arrival
	closed   sync.Once
	stalled  atomic.Bool // the reader took nothing for takeTimeout
}

// Write implements nbd.Target.
func (l *lane) Write(ctx context.Context, off int64, data []byte) error {
	return l.take(ctx, arrival{off, int64(len(data)), data})
}

// WriteZeroes implements nbd.Target.
func (l *lane) WriteZeroes(ctx context.Context, off, n int64) error {
	return l.take(ctx, arrival{off: off, n: n})
}

func (l *lane) take(ctx context.Context, a arrival) error {
	late := time.NewTimer(takeTimeout)
	defer late.Stop()
	select {
	case l.arrivals <- a:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		l.stalled.Store(true)
		return syscall.EIO
	}
}

func (l *lane) close() { l.closed.Do(func() { _ = l.server.Close() }) }

// pushed is a Source that QEMU pushes.
type pushed struct {
	*lane
	conn *Conn
	i    int // the disk's number in the names of our objects
	disk Disk
	meta *nbd.Conn // of the null-co node; nil for a full read
	// dirty is what the bitmaps mark, in bytes.
	dirty int64

	mu   sync.Mutex
	live []arrival // told of by Extents and not yet read, in order
}

// pushDisk makes what disk i is pushed with. Its fleece is there since the point.
func (f *Fleece) pushDisk(ctx context.Context, i int) (Source, error) {
	d := f.opt.Disks[i]
	socket := filepath.Join(filepath.Dir(f.socket), objectName(prefixPush, i)+".sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) { // a dead run's
		return nil, err
	}
	uid, gid, ok := f.conn.peer()
	if !ok {
		uid, gid = os.Geteuid(), os.Getegid()
	}
	l := &lane{arrivals: make(chan arrival)}
	var err error
	if l.server, err = nbd.Serve(socket, pushExport, d.Disk.Size, uid, gid, l); err != nil {
		return nil, err
	}
	f.lanes = append(f.lanes, l)
	node := addNBDClient{Driver: "nbd", Node: objectName(prefixPush, i), Export: pushExport, Server: inetOrUnixSocket{"unix", socket}}
	if err := f.conn.run(ctx, node, nil); err != nil {
		return nil, fmt.Errorf("can QEMU's user reach %s? %w", socket, err)
	}
	p := &pushed{lane: l, conn: f.conn, i: i, disk: d.Disk}
	if !d.Decision.Incremental {
		return p, nil
	}
	return p, f.addMeta(ctx, p, d.Decision.Merge)
}

// addMeta makes the null-co node with a copy of the disk's bitmaps, and puts
// another copy on the fleece, for the job.
func (f *Fleece) addMeta(ctx context.Context, p *pushed, merge []string) error {
	meta, access, id := objectName(prefixMeta, p.i), objectName(prefixAccess, p.i), objectName(prefixExport, p.i)
	if err := f.conn.run(ctx, addNullCo{Driver: "null-co", Node: meta, Size: p.disk.Size, ReadZeroes: true}, nil); err != nil {
		return err
	}
	var from []exportBitmap
	for _, name := range merge {
		from = append(from, exportBitmap{p.disk.Node, name})
	}
	err := f.conn.run(ctx, atomically([]command{
		bitmapAdd{Node: meta, Name: dirtyBitmap, Granularity: Granularity, Disabled: true},
		bitmapMergeAcross{meta, dirtyBitmap, from},
		bitmapAdd{Node: meta, Name: sampleBitmap, Granularity: Granularity},
		bitmapAdd{Node: access, Name: pushedBitmap, Granularity: Granularity, Disabled: true},
		bitmapMergeAcross{access, pushedBitmap, from},
	}), nil)
	if err != nil {
		return fmt.Errorf("merging bitmaps: %w", err)
	}
	export := blockExportAdd{Type: "nbd", ID: id, Node: meta, Name: id, Writable: true, Bitmaps: []exportBitmap{{meta, dirtyBitmap}}}
	if err := f.conn.run(ctx, export, nil); err != nil {
		return err
	}
	if p.meta, err = f.dial(ctx, id, nbd.DirtyBitmap(dirtyBitmap)); err != nil {
		return err
	}
	return p.extents(ctx, func(e nbd.Extent) error {
		p.dirty += e.Length
		return nil
	})
}

// extents calls fn for the ranges that the bitmaps mark.
func (p *pushed) extents(ctx context.Context, fn func(nbd.Extent) error) error {
	return p.meta.Extents(ctx, nbd.DirtyBitmap(dirtyBitmap), 0, p.disk.Size, func(e nbd.Extent) error {
		if e.Flags&nbd.FlagDirty == 0 {
			return nil
		}
		return fn(e)
	})
}

// Size implements Source.
func (p *pushed) Size() int64 { return p.disk.Size }

// DirtyBytes implements Source.
func (p *pushed) DirtyBytes() int64 {
	if p.meta == nil {
		return p.disk.Size
	}
	return p.dirty
}

// Anywhere implements Source.
func (p *pushed) Anywhere() bool { return false }

// Whole implements Source.
func (p *pushed) Whole() Source { return &pushed{lane: p.lane, conn: p.conn, i: p.i, disk: p.disk} }

// Extents implements Source: it starts the job and tells of what arrives.
func (p *pushed) Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error {
	bitmap := pushedBitmap
	if p.meta == nil {
		bitmap = ""
	}
	var at, sum int64
	err := p.push(ctx, bitmap, func(a arrival) error {
		if a.off < at || a.n <= 0 || a.off+a.n > p.disk.Size {
			return fmt.Errorf("disk %s: QEMU pushed the range %d+%d after one that ended at %d", p.disk.Name, a.off, a.n, at)
		}
		at = a.off + a.n
		sum += a.n
		if a.data != nil {
			p.mu.Lock()
			p.live = append(p.live, a)
			p.mu.Unlock()
		}
		return fn(a.off, a.n, a.data == nil)
	})
	if err == nil && sum != p.DirtyBytes() {
		err = fmt.Errorf("disk %s: QEMU pushed %d bytes and ended, but %d were to come", p.disk.Name, sum, p.DirtyBytes())
	}
	return err
}

// ReadAt implements Source.
func (p *pushed) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end, found := off+int64(len(b)), int64(0)
	for i := range p.live {
		a := &p.live[i]
		start, stop := max(off, a.off), min(end, a.off+int64(len(a.data)))
		if start >= stop {
			continue
		}
		copy(b[start-off:stop-off], a.data[start-a.off:])
		found += stop - start
		a.n -= stop - start
	}
	if found != int64(len(b)) {
		return 0, fmt.Errorf("internal error: %d of %d bytes at %d of disk %s were pushed and not yet read", found, len(b), off, p.disk.Name)
	}
	p.live = slices.DeleteFunc(p.live, func(a arrival) bool { return a.n <= 0 })
	return len(b), nil
}

// Sample implements Source. QEMU can push ranges that a bitmap marks, so the
// pieces are marked: by writing to the null-co node, whose bitmap records it.
func (p *pushed) Sample(ctx context.Context, offsets []int64, length int, fn func(off int64, data []byte) error) error {
	u := newUnmarked(offsets, length, p.disk.Size)
	if err := p.extents(ctx, func(e nbd.Extent) error { u.mark(e.Offset, e.End()); return nil }); err != nil {
		return err
	}
	clean := u.left()
	clean = clean[:min(len(clean), maxPushedSample)]
	for _, off := range clean {
		if _, err := p.meta.WriteAt([]byte{1}, off); err != nil {
			return err
		}
	}
	meta, access := objectName(prefixMeta, p.i), objectName(prefixAccess, p.i)
	err := p.conn.run(ctx, atomically([]command{
		bitmapAdd{Node: access, Name: sampleBitmap, Granularity: Granularity, Disabled: true},
		bitmapMergeAcross{access, sampleBitmap, []exportBitmap{{meta, sampleBitmap}}},
	}), nil)
	if err != nil {
		return fmt.Errorf("marking a sample: %w", err)
	}
	slices.Sort(clean)
	clean = slices.Compact(clean)
	return p.push(ctx, sampleBitmap, func(a arrival) error {
		for len(clean) > 0 && clean[0] < a.off+a.n {
			off := clean[0]
			clean = clean[1:]
			n := min(int64(length), p.disk.Size-off)
			if off < a.off || off+n > a.off+a.n {
				return fmt.Errorf("disk %s: of a sample, QEMU did not push %d+%d in one piece", p.disk.Name, off, n)
			}
			piece := make([]byte, n)
			if a.data != nil {
				copy(piece, a.data[off-a.off:])
			}
			if err := fn(off, piece); err != nil {
				return err
			}
		}
		return nil
	})
}

// push runs the job and calls fn with what arrives, until the job has ended.
// With an error of fn, or when ctx ends, the job is cancelled and its end
// waited for.
func (p *pushed) push(ctx context.Context, bitmap string, fn func(arrival) error) error {
	sub := p.conn.Subscribe()
	defer sub.Close()
	job := blockdevBackup{
		JobID: objectName(prefixJob, p.i), Device: objectName(prefixAccess, p.i), Target: objectName(prefixPush, p.i), Filter: objectName(prefixJobNode, p.i),
		Sync: "full", Perf: backupPerf{MaxWorkers: 1, MaxChunk: pushChunk},
	}
	if bitmap != "" {
		job.Sync, job.Bitmap, job.BitmapMode = "bitmap", bitmap, "never"
	}
	if err := p.conn.run(ctx, job, nil); err != nil {
		return err
	}
	failed := p.arrive(ctx, sub, job.JobID, fn)
	if failed == nil {
		return nil
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobEndTimeout)
	defer cancel()
	// A job that does not even end without anybody to write to is for Release.
	giveUp := time.AfterFunc(cancelTimeout, p.close)
	defer giveUp.Stop()
	err := p.meanwhile(func() error { return p.conn.run(end, blockJobCancel{job.JobID, true}, nil) })
	if err == nil || isRefusal(err) { // refused: it has ended
		err = p.arrive(end, sub, job.JobID, func(arrival) error { return nil })
	}
	if err != nil && end.Err() != nil {
		return errors.Join(failed, err)
	}
	return failed
}

// meanwhile calls f and takes all that arrives until f returns, to throw it
// away. QEMU may wait for us to take a write before it runs any command: it
// drains its disks for a stop, a reset, or a cancelled job.
func (p *pushed) meanwhile(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	for {
		select {
		case <-p.arrivals:
		case err := <-done:
			return err
		}
	}
}

// jobState is an answer of jobEnded.
type jobState struct {
	ended bool
	err   error
}

// arrive calls fn with what arrives until the job has ended, and dismisses it.
// Arrivals come before the job's end: it waits for the answer to each write.
// While it asks QEMU it goes on to take them (see meanwhile).
func (p *pushed) arrive(ctx context.Context, sub *Subscription, id string, fn func(arrival) error) error {
	tick := time.NewTicker(100 * time.Millisecond) // an event may be lost
	defer tick.Stop()
	var asked chan jobState // nil: QEMU is not being asked
	end := func(err error) error {
		if asked == nil {
			return err
		}
		_ = p.meanwhile(func() error { <-asked; return nil })
		return err
	}
	for due := false; ; {
		if due && asked == nil {
			asked, due = make(chan jobState, 1), false
			go func(to chan<- jobState) {
				ended, err := p.jobEnded(ctx, id)
				to <- jobState{ended, err}
			}(asked)
		}
		select {
		case a := <-p.arrivals:
			if err := fn(a); err != nil {
				return end(err)
			}
		case s := <-asked:
			asked = nil
			if s.ended || s.err != nil {
				return s.err
			}
		case <-ctx.Done():
			return end(context.Cause(ctx))
		case <-sub.wake:
			for ok := true; ok; {
				_, ok, _ = sub.poll()
			}
			due = true
		case <-tick.C:
			due = true
		}
	}
}

// jobEnded dismisses the job if it has ended; err is the job's, too.
func (p *pushed) jobEnded(ctx context.Context, id string) (bool, error) {
	jobs, err := ourJobs(ctx, p.conn)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(jobs, func(j jobInfo) bool { return j.ID == id })
	if i < 0 {
		return true, fmt.Errorf("disk %s: somebody dismissed job %s", p.disk.Name, id)
	}
	if jobs[i].Status != "concluded" {
		return false, nil
	}
	if err := p.conn.run(ctx, jobDismiss{id}, nil); err != nil {
		return true, err
	}
	if jobs[i].Error != "" && p.stalled.Load() {
		return true, fmt.Errorf("disk %s: the repository or this host took nothing for %s: the push was given up, so that QEMU does not wait for us", p.disk.Name, takeTimeout)
	}
	if jobs[i].Error != "" {
		return true, fmt.Errorf("disk %s: QEMU's job that pushes it failed: %s: if that is no error of the disk: %w", p.disk.Name, jobs[i].Error, ErrFleeceBroken)
	}
	return true, nil
}
