package fs

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// device is one mount's /dev/fuse and the goroutines that answer it.
//
// go-fuse decodes and dispatches requests (fuse.ProtocolServer); its own
// server's loop is not used. That one keeps several readers blocked in
// read(2), which the kernel wakes in turn, each on another CPU, and it has no
// deadline. Here one reader waits, answers, and waits again; another one is
// started only when a request is expected to take long, when requests come in
// side by side, or when a request has taken a tick.
//
// One may even have to start: while files are stored ahead (see prefetch), the
// kernel makes the store wait for a read of the same page, which nobody else
// would answer.
//
// A request that is not answered within the deadline is answered EIO by the
// watchdog, which also interrupts it: whoever waits with its context wakes
// up. The reader is lost: it ends when what it hangs in returns. (What a lost
// look-up put into the table stays there; the kernel will not forget it.)
type device struct {
	fd       int
	protocol *fuse.ProtocolServer
	deadline time.Duration
	report   func(error)
	// after is called when a file was read from its beginning by a small
	// read, with a buffer to use; nil: nothing.
	after func(id uint64, buffer []byte)

	running  sync.WaitGroup // readers that are not lost, and the watchdog
	gone     chan struct{}  // closed when the mount is gone
	goneOnce sync.Once
	closed   sync.Once
	idle     atomic.Int32 // readers in read(2), or about to be
	busy     atomic.Int32 // requests being handled, lost ones too
	requests atomic.Uint64
	parked   atomic.Bool   // the watchdog sleeps until wake
	wake     chan struct{} // capacity 1

	mu      sync.Mutex
	readers map[*reader]bool
	spare   sync.Pool // of *reader: their buffers are large
}

const (
	// maxBusy bounds the requests that are handled, or hang, at a time;
	// further ones fail at once.
	maxBusy = 128
	// watchTick is how long a request may take before another reader starts.
	watchTick = 2 * time.Millisecond
	// quietTicks without a request put the watchdog to sleep.
	quietTicks = 50
	// largeRead is from what size on a read is expected to take long.
	largeRead = 64 << 10
)

// noRequest stands for the number of a request while a reader stores files
// that nobody asked for.
const noRequest = ^uint64(0)

// Opcodes and sizes of linux/fuse.h that the loop must know.
const (
	opForget      = 2
	opRead        = 15
	opInterrupt   = 36
	opBatchForget = 42
	inHeaderSize  = 40
	outHeaderSize = 16
)

// openDevice mounts an empty connection at dir. Nothing that uses the mount
// returns until the device is served.
func openDevice(dir string, o Options, raw fuse.RawFileSystem, report func(error)) (*device, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := []string{
		fmt.Sprintf("fd=%d", fd), "rootmode=40000", fmt.Sprintf("user_id=%d", os.Geteuid()), fmt.Sprintf("group_id=%d", os.Getegid()),
		fmt.Sprintf("max_read=%d", maxWrite), "default_permissions",
	}
	if o.AllowOther {
		options = append(options, "allow_other")
	}
	if err := unix.Mount("cairn", dir, "fuse.cairn", mountFlags(o), strings.Join(options, ",")); err != nil {
		unix.Close(fd)
		return nil, err
	}
	d := &device{
		fd: fd, protocol: fuse.NewProtocolServer(raw, protocolOptions(o, report)), deadline: o.Deadline, report: report,
		gone: make(chan struct{}), wake: make(chan struct{}, 1), readers: map[*reader]bool{},
	}
	if err := d.init(); err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

// init answers the kernel's first request, which agrees on the protocol.
func (d *device) init() error {
	r := d.newReader()
	n, err := unix.Read(d.fd, r.in)
	if err != nil || n < inHeaderSize {
		return fmt.Errorf("read the kernel's first request: %d bytes, %w", n, err)
	}
	n, status := d.protocol.HandleRequest([][]byte{r.in[:n]}, [][]byte{r.out})
	if status != fuse.OK || n < outHeaderSize || binary.NativeEndian.Uint32(r.out[4:]) != 0 {
		return fmt.Errorf("agree with the kernel on a FUSE version: %w", unix.EPROTO)
	}
	d.write(r.out[:n])
	return nil
}

// reader is one goroutine that reads and answers requests.
type reader struct {
	in, out []byte
	unique  atomic.Uint64 // of the request it answers; 0: none, or the watchdog took it
	started atomic.Int64  // when, in nanoseconds since 1970
}

// newReader gives a reader; the kernel demands room for the largest request.
func (d *device) newReader() *reader {
	if r, ok := d.spare.Get().(*reader); ok {
		return r
	}
	return &reader{in: make([]byte, maxWrite+8192), out: make([]byte, maxWrite+8192)}
}

// start begins to answer requests.
func (d *device) start() {
	d.running.Add(1)
	go d.watch()
	d.spawn()
}

// wait returns when the mount is gone and all that runs for it has ended,
// except lost readers. The device is closed unless one of those may yet use
// its number, which would then be another file's.
func (d *device) wait() {
	d.running.Wait()
	d.closed.Do(func() {
		if d.busy.Load() == 0 {
			unix.Close(d.fd)
		}
	})
}

func (d *device) spawn() {
	r := d.newReader()
	d.mu.Lock()
	d.readers[r] = true
	d.mu.Unlock()
	d.running.Add(1)
	d.idle.Add(1)
	go func() {
		if d.serve(r) {
			defer d.spare.Put(r) // not before it is out of the list
			d.remove(r)
		}
	}()
}

func (d *device) remove(r *reader) {
	d.mu.Lock()
	delete(d.readers, r)
	d.mu.Unlock()
	d.running.Done()
}

// serve answers requests until the mount is gone or another reader waits. It
// gives false when the reader was lost.
func (d *device) serve(r *reader) bool {
	for {
		n, err := unix.Read(d.fd, r.in)
		waiting := d.idle.Add(-1)
		switch err {
		case nil:
			if n < inHeaderSize {
				d.report(fmt.Errorf("the kernel sent a request of %d bytes: the mount ends", n))
				d.goneOnce.Do(func() { close(d.gone) })
				return true
			}
			if !d.handle(r, r.in[:n], waiting == 0) {
				return false
			}
			if d.idle.Load() > 0 {
				return true
			}
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: the request was withdrawn
		default:
			if err != unix.ENODEV {
				d.report(fmt.Errorf("read from /dev/fuse: %w", err))
			}
			d.goneOnce.Do(func() { close(d.gone) })
			return true
		}
		d.idle.Add(1)
	}
}

// handle answers one request. alone says that nobody waits for the next one.
func (d *device) handle(r *reader, request []byte, alone bool) bool {
	opcode, unique := binary.NativeEndian.Uint32(request[4:]), binary.NativeEndian.Uint64(request[8:])
	busy := d.busy.Add(1)
	defer d.busy.Add(-1)
	if alone && (busy > 1 || takesLong(opcode, request)) {
		d.spawn()
	}
	d.requests.Add(1)
	if d.parked.Load() && d.parked.CompareAndSwap(true, false) {
		d.wake <- struct{}{}
	}
	silent := opcode == opForget || opcode == opBatchForget
	if busy > maxBusy && !silent && opcode != opInterrupt {
		d.fail(unique, unix.EIO)
		return true
	}
	r.started.Store(time.Now().UnixNano())
	r.unique.Store(unique)
	n, status := d.protocol.HandleRequest([][]byte{request}, [][]byte{r.out})
	if !r.unique.CompareAndSwap(unique, 0) {
		return false
	}
	switch {
	case status != fuse.OK:
		d.fail(unique, unix.Errno(status))
	case n > 0:
		d.write(r.out[:n])
	}
	if opcode == opRead && d.after != nil && fromStart(request) {
		r.started.Store(time.Now().UnixNano())
		r.unique.Store(noRequest) // watched as a request is
		d.after(binary.NativeEndian.Uint64(request[16:]), r.out)
		return r.unique.CompareAndSwap(noRequest, 0)
	}
	return true
}

// fromStart says whether a read is of the first bytes of a file, and no more
// than a small file has.
func fromStart(request []byte) bool {
	return len(request) >= inHeaderSize+20 && binary.NativeEndian.Uint64(request[inHeaderSize+8:]) == 0 && binary.NativeEndian.Uint32(request[inHeaderSize+16:]) <= maxStored
}

func takesLong(opcode uint32, request []byte) bool {
	// struct fuse_read_in: fh, offset, size.
	return opcode == opRead && len(request) >= inHeaderSize+20 && binary.NativeEndian.Uint32(request[inHeaderSize+16:]) >= largeRead
}

// fail answers a request with an error.
func (d *device) fail(unique uint64, errno unix.Errno) {
	var out [outHeaderSize]byte
	binary.NativeEndian.PutUint32(out[0:], outHeaderSize)
	binary.NativeEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(out[8:], unique)
	d.write(out[:])
}

func (d *device) write(answer []byte) {
	_, err := unix.Write(d.fd, answer)
	for err == unix.EINTR {
		_, err = unix.Write(d.fd, answer)
	}
	// ENOENT, ENODEV: nobody waits for it any more.
	if err != nil && err != unix.ENOENT && err != unix.ENODEV {
		d.report(fmt.Errorf("write to /dev/fuse: %w", err))
	}
}

// watch starts readers when requests take long and gives up those that take
// too long. While no requests come it sleeps.
func (d *device) watch() {
	defer d.running.Done()
	for {
		d.parked.Store(true)
		// A request that began before it could see that the watchdog sleeps
		// is seen here: handle counts busy first and looks at parked then.
		if d.busy.Load() == 0 || !d.parked.CompareAndSwap(true, false) {
			select {
			case <-d.wake:
			case <-d.gone:
				return
			}
		}
		seen := d.requests.Load()
		for quiet := 0; quiet < quietTicks; quiet++ {
			select {
			case <-time.After(watchTick):
			case <-d.gone:
				return
			}
			if d.busy.Load() > 0 {
				quiet = 0
				d.look(time.Now())
			}
			if now := d.requests.Load(); now != seen {
				seen, quiet = now, 0
			}
		}
	}
}

// look starts another reader when a request takes long and nobody waits for
// the next one, and gives up the requests that are over their deadline.
func (d *device) look(now time.Time) {
	d.mu.Lock()
	var late []*reader
	slow := false
	for r := range d.readers {
		if r.unique.Load() != 0 {
			took := now.Sub(time.Unix(0, r.started.Load()))
			slow = slow || took > watchTick
			if took > d.deadline {
				late = append(late, r)
			}
		}
	}
	d.mu.Unlock()
	if slow && d.idle.Load() == 0 {
		d.spawn()
	}
	for _, r := range late {
		unique := r.unique.Load()
		if unique == 0 || now.Sub(time.Unix(0, r.started.Load())) <= d.deadline || !r.unique.CompareAndSwap(unique, 0) {
			continue
		}
		d.report(fmt.Errorf("a request was given up: %w after %v", context.DeadlineExceeded, d.deadline))
		if unique != noRequest {
			d.fail(unique, unix.EIO)
			d.interrupt(unique)
		}
		d.remove(r)
	}
}

// interrupt ends the context of a request, as if its caller had been killed.
func (d *device) interrupt(unique uint64) {
	request, out := make([]byte, inHeaderSize+8), make([]byte, 256)
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint32(request[4:], opInterrupt)
	binary.NativeEndian.PutUint64(request[inHeaderSize:], unique)
	d.protocol.HandleRequest([][]byte{request}, [][]byte{out})
}
