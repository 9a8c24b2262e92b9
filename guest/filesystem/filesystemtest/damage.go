package filesystemtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

const sectorSize = 512

// filler is what PopulateFiller writes into files, so that damage can be
// aimed at everything else.
const filler = "FILEDATA"

// PopulateFiller fills a mounted directory of 4 MiB or more with a small tree
// whose files hold nothing but filler: fragmented and sparse ones, large
// directories, links, devices, attributes.
func PopulateFiller(root string) error {
	data := bytes.Repeat([]byte(filler), 1024)
	at := func(parts ...string) string { return root + "/" + strings.Join(parts, "/") }
	var errs []error
	do := func(err error) { errs = append(errs, unless(err)) }
	for _, dir := range []string{"small", "large", "deep", "deep/a", "deep/a/b", "deep/a/b/c", "empty"} {
		do(os.Mkdir(at(dir), 0o755))
	}
	for i := range 25 {
		do(os.WriteFile(at("small", fmt.Sprintf("f%02d", i)), data[:i*40], 0o644))
	}
	for i := range 150 {
		do(os.Link(at("small", "f01"), at("large", fmt.Sprintf("a-rather-long-name-of-an-entry-%04d", i))))
	}
	do(os.Symlink("../small/f03", at("deep", "short")))
	do(os.Symlink(strings.Repeat("x/", 200), at("deep", "long")))
	do(unix.Mknod(at("deep", "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	do(unix.Mknod(at("deep", "fifo"), unix.S_IFIFO|0o600, 0))
	for i := range 6 {
		do(unix.Lsetxattr(at("small", "f05"), fmt.Sprintf("user.a%d", i), data[:30], 0))
	}
	do(unix.Lsetxattr(at("small", "f06"), "user.big", data[:700], 0))
	do(unix.Lsetxattr(at("small", "f07"), "system.posix_acl_access",
		acl([3]uint32{1, 6, 1<<32 - 1}, [3]uint32{2, 4, 1234}, [3]uint32{4, 4, 1<<32 - 1}, [3]uint32{16, 7, 1<<32 - 1}, [3]uint32{32, 4, 1<<32 - 1}), 0))
	f, err := os.Create(at("fragmented"))
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range int64(120) {
		_, err := f.WriteAt(data[:64], i*8192)
		do(err)
	}
	do(f.Truncate(100 << 20))
	g, err := os.Create(at("prealloc"))
	if err != nil {
		return err
	}
	defer g.Close()
	do(unix.Fallocate(int(g.Fd()), 0, 0, 64<<10))
	_, err = g.WriteAt(data[:100], 30000)
	do(err)
	return errors.Join(append(errs, syncFilesystem(root))...)
}

// MetadataSectors lists the byte offsets of an image's 512-byte sectors that
// hold something else than zeros and filler.
func MetadataSectors(image []byte) []int64 {
	zero := make([]byte, sectorSize)
	full := bytes.Repeat([]byte(filler), sectorSize/len(filler))
	var found []int64
	for off := 0; off+sectorSize <= len(image); off += sectorSize {
		if s := image[off : off+sectorSize]; !bytes.Equal(s, zero) && !bytes.Equal(s, full) {
			found = append(found, int64(off))
		}
	}
	return found
}

// Damage changes n random bytes inside the given sectors of an image.
func Damage(image []byte, sectors []int64, rng *rand.Rand, n int) {
	for range n {
		off := sectors[rng.IntN(len(sectors))] + rng.Int64N(sectorSize)
		switch rng.IntN(4) {
		case 0:
			image[off] ^= 1 << rng.IntN(8)
		case 1:
			image[off] = 0xFF
		default:
			image[off] = byte(rng.Uint32())
		}
	}
}

// Limits bound a walk of a damaged image.
type Limits struct {
	Deadline  time.Duration
	Operation time.Duration // for one call of a Reader or File
	Heap      uint64        // bytes above what was in use before
	Nodes     int           // names to visit
	Read      int64         // bytes to read
}

// DefaultLimits are generous for an image of some MiB.
func DefaultLimits() Limits {
	return Limits{Deadline: 20 * time.Second, Operation: 5 * time.Second, Heap: 256 << 20, Nodes: 20_000, Read: 64 << 20}
}

// Opener opens a reader of some kind.
type Opener func(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error)

// TestDamaged damages an image in count ways and walks each result.
func TestDamaged(t *testing.T, image []byte, count int, open Opener) {
	t.Helper()
	sectors := MetadataSectors(image)
	b := make([]byte, len(image))
	opened := 0
	for i := range count {
		rng := rand.New(rand.NewPCG(uint64(i), 11))
		copy(b, image)
		Damage(b, sectors, rng, 1<<rng.IntN(8))
		ok, err := WalkDamaged(b, open, DefaultLimits())
		if err != nil {
			t.Fatalf("damage %d: %v", i, err)
		}
		if ok {
			opened++
		}
	}
	t.Logf("%d of %d damaged images could be opened", opened, count)
	if opened < count/4 {
		t.Errorf("only %d of %d damaged images could be opened: single pieces of damage must not take all", opened, count)
	}
}

// WalkDamaged opens an image and reads all it can within limits. opened says
// whether the reader could be opened. An error is a fault of the reader: a
// panic, too much time, too much memory.
func WalkDamaged(image []byte, open Opener, limits Limits) (opened bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limits.Deadline)
	defer cancel()
	type result struct {
		opened bool
		err    error
	}
	done := make(chan result, 1)
	base := heapInUse()
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			done <- r
		}()
		reader, err := open(ctx, bytes.NewReader(image), int64(len(image)))
		if err != nil {
			return
		}
		r.opened = true
		w := damagedWalk{ctx: ctx, r: reader, left: limits, seen: make(map[filesystem.Ino]bool)}
		w.visit(reader.Root())
		if w.longest > limits.Operation {
			r.err = fmt.Errorf("one operation took %v", w.longest)
		}
	}()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case r := <-done:
			tick.Stop()
			if r.err == nil && ctx.Err() != nil {
				r.err = fmt.Errorf("the walk took more than %v", limits.Deadline)
			}
			return r.opened, r.err
		case <-tick.C:
			if heapInUse() > base+limits.Heap {
				runtime.GC() // only what is left is the walk's
				if used := heapInUse(); used > base+limits.Heap {
					return false, fmt.Errorf("the walk uses %d MiB of memory", (used-base)>>20)
				}
			}
			if deadline, _ := ctx.Deadline(); time.Since(deadline) > 2*time.Second {
				return false, fmt.Errorf("the walk does not stop when its context ends")
			}
		}
	}
}

// heapInUse counts garbage too; collect it before blaming anybody.
func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// damagedWalk reads all there is, each inode once, and takes any error.
type damagedWalk struct {
	ctx  context.Context
	r    filesystem.Reader
	left Limits
	seen map[filesystem.Ino]bool

	longest time.Duration // of one operation
}

// timed does one operation.
func (w *damagedWalk) timed(operation func()) {
	start := time.Now()
	operation()
	w.longest = max(w.longest, time.Since(start))
}

func (w *damagedWalk) visit(top filesystem.Ino) {
	for queue := []filesystem.Ino{top}; len(queue) > 0 && w.left.Nodes > 0; queue = queue[1:] {
		ino := queue[0]
		if w.seen[ino] {
			continue
		}
		w.seen[ino] = true
		w.left.Nodes--
		w.timed(func() { w.r.Attr(w.ctx, ino) })
		w.timed(func() { w.r.Readlink(w.ctx, ino) })
		w.timed(func() { w.r.Xattrs(w.ctx, ino) })
		w.timed(func() { w.r.Lookup(w.ctx, ino, "a-rather-long-name-of-an-entry-0077") })
		w.read(ino)
		w.timed(func() {
			w.r.ReadDir(w.ctx, ino, 0, func(e filesystem.Entry) bool {
				queue = append(queue, e.Ino)
				return len(queue) < w.left.Nodes
			})
		})
	}
	if free, ok := w.r.(filesystem.FreeSpace); ok {
		w.timed(func() { free.Free(w.ctx, func(start, end int64) error { return nil }) })
	}
	w.r.Info()
}

// read reads up to 4 MiB from each data range of a file and from its end.
func (w *damagedWalk) read(ino filesystem.Ino) {
	var f filesystem.File
	var err error
	w.timed(func() { f, err = w.r.Open(w.ctx, ino) })
	if err != nil {
		return
	}
	b := make([]byte, 256<<10)
	readAt := func(off int64) {
		w.timed(func() {
			n, _ := f.ReadAt(b, off)
			w.left.Read -= int64(n)
		})
	}
	readAt(f.Size() - 1000)
	for off, pieces := int64(0), 0; pieces < 300 && w.left.Read > 0; pieces++ {
		var start, end int64
		w.timed(func() { start, end, err = f.NextData(off) })
		if err != nil {
			readAt(off)
			off += int64(len(b))
			continue
		}
		for off = start; off < end && off < start+4<<20 && w.left.Read > 0; off += int64(len(b)) {
			readAt(off)
		}
		off = end
	}
}
