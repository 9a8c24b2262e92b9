package restorepoint

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"cairn/chunkstore/chunk"
)

// Image is a disk's bytes at a point. It may be read from many goroutines.
type Image interface {
	io.ReaderAt
	// Size in bytes.
	Size() int64
	// NextData gives the first range [start, end) at or behind off that is
	// not a hole; io.EOF when only a hole follows. Data that happens to be
	// zero may be given as data.
	NextData(off int64) (start, end int64, err error)
}

// readTimeout bounds one ReadAt: a place that does not answer must not hang a
// reader for ever.
const readTimeout = 60 * time.Second

// aheadBytes is how far a sequential reader is read ahead.
const aheadBytes = 4 << 20

// aheadWorkers is how many frames are made ready at once.
const aheadWorkers = 2

// ReadAhead makes ready, in the background, what sequential readers of images
// will ask for next. Close ends it.
type ReadAhead struct {
	ctx    context.Context
	cancel context.CancelFunc
	src    Source
	jobs   chan Extent
	warm   chan *Map
	wg     sync.WaitGroup
}

// maxWarm bounds the packs that are made ready for random readers of an image.
const maxWarm = 256

// NewReadAhead starts its workers; they end with ctx or Close.
func NewReadAhead(ctx context.Context, src Source) *ReadAhead {
	a := &ReadAhead{src: src, jobs: make(chan Extent, 64), warm: make(chan *Map, 8)}
	a.ctx, a.cancel = context.WithCancel(ctx)
	for range aheadWorkers {
		a.wg.Go(func() {
			for {
				select {
				case e := <-a.jobs:
					a.src.Prefetch(a.ctx, e.Pack, e.First, e.Chunks)
				case m := <-a.warm:
					a.warmUp(m)
				case <-a.ctx.Done():
					return
				}
			}
		})
	}
	return a
}

// Close ends the workers and waits for them.
func (a *ReadAhead) Close() {
	a.cancel()
	a.wg.Wait()
}

// warmUp opens the footers of the packs that a map begins with, so that a
// random reader seldom waits for one.
func (a *ReadAhead) warmUp(m *Map) {
	seen := map[chunk.PackRef]bool{}
	_ = m.Extents(a.ctx, func(e Extent) error { // its error is the reader's to see
		if !seen[e.Pack] {
			seen[e.Pack] = true
			a.src.Prefetch(a.ctx, e.Pack, e.First, 0)
		}
		if len(seen) == maxWarm {
			return io.EOF // enough
		}
		return a.ctx.Err()
	})
}

// offer hands a range over, or drops it when the workers are behind.
func (a *ReadAhead) offer(e Extent) {
	select {
	case a.jobs <- e:
	default:
	}
}

// diskImage implements Image over a Map.
type diskImage struct {
	m     *Map
	ahead *ReadAhead // may be nil

	warmed atomic.Bool

	next atomic.Int64 // end of the last read
	seq  atomic.Int64 // bytes read in sequence
	done atomic.Int64 // read ahead up to here
}

// NewImage gives the image of a map. ahead may be nil.
func NewImage(m *Map, ahead *ReadAhead) Image { return &diskImage{m: m, ahead: ahead} }

// Size implements Image.
func (d *diskImage) Size() int64 { return d.m.size }

// ReadAt implements Image.
func (d *diskImage) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, io.EOF
	}
	n, eof := len(p), error(nil)
	if off >= d.m.size {
		return 0, io.EOF
	}
	if int64(n) > d.m.size-off {
		n, eof = int(d.m.size-off), io.EOF
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	d.readAhead(ctx, off, int64(n))
	for done := 0; done < n; {
		k, err := d.readLeaf(ctx, p[done:n], off+int64(done))
		if err != nil {
			return done, err
		}
		done += k
	}
	return n, eof
}

// readLeaf fills p from one leaf, and says how much of p that was.
func (d *diskImage) readLeaf(ctx context.Context, p []byte, off int64) (int, error) {
	i, skip := off/LeafSize, off%LeafSize
	p = p[:min(int64(len(p)), LeafSize-skip)]
	l, err := d.m.leaf(ctx, i)
	if err != nil {
		return 0, err
	}
	at, end := skip, skip+int64(len(p)) // bytes in the leaf
	for _, r := range l.runs[l.find(int(skip/chunk.Size)):] {
		start := int64(r.first) * chunk.Size
		stop := start + int64(r.count)*chunk.Size
		if start >= end {
			break
		}
		if start > at {
			clear(p[at-skip : start-skip])
			at = start
		}
		stop = min(stop, end)
		if at >= stop {
			continue
		}
		if err := d.readRun(ctx, l.packs[r.pack], int64(r.chunk)*chunk.Size+at-start, p[at-skip:stop-skip]); err != nil {
			return 0, err
		}
		at = stop
	}
	clear(p[at-skip:])
	return len(p), nil
}

// find gives the first run that ends behind chunk c.
func (l *leaf) find(c int) int {
	lo, hi := 0, len(l.runs)
	for lo < hi {
		if mid := (lo + hi) / 2; int(l.runs[mid].first)+int(l.runs[mid].count) > c {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// readRun fills p from byte off of a pack's chunks; only a ragged start or
// end goes through a chunk of its own.
func (d *diskImage) readRun(ctx context.Context, ref chunk.PackRef, off int64, p []byte) error {
	var one [chunk.Size]byte
	if skip := off % chunk.Size; skip > 0 || len(p) < chunk.Size {
		if err := d.m.src.ReadChunks(ctx, ref, int(off/chunk.Size), one[:]); err != nil {
			return err
		}
		n := copy(p, one[skip:])
		if p, off = p[n:], off+int64(n); len(p) == 0 {
			return nil
		}
	}
	whole := len(p) / chunk.Size * chunk.Size
	if err := d.m.src.ReadChunks(ctx, ref, int(off/chunk.Size), p[:whole]); err != nil {
		return err
	}
	if rest := p[whole:]; len(rest) > 0 {
		if err := d.m.src.ReadChunks(ctx, ref, int(off/chunk.Size)+whole/chunk.Size, one[:]); err != nil {
			return err
		}
		copy(rest, one[:])
	}
	return nil
}

// NextData implements Image.
func (d *diskImage) NextData(off int64) (int64, int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	off = max(off, 0)
	for i := off / LeafSize; i*LeafSize < d.m.size; i++ {
		if _, ok := d.m.nodes[int(i/middleLeaves)]; !ok {
			i += middleLeaves - 1 - i%middleLeaves
			continue
		}
		l, err := d.m.leaf(ctx, i)
		if err != nil {
			return 0, 0, err
		}
		k := l.find(int(max(off-i*LeafSize, 0) / chunk.Size))
		if k == len(l.runs) {
			continue
		}
		base := i * LeafSize
		start := base + int64(l.runs[k].first)*chunk.Size
		end := start + int64(l.runs[k].count)*chunk.Size
		for k++; k < len(l.runs) && base+int64(l.runs[k].first)*chunk.Size == end; k++ {
			end += int64(l.runs[k].count) * chunk.Size
		}
		if start = max(start, off); start >= d.m.size {
			break
		}
		return start, min(end, d.m.size), nil
	}
	return 0, 0, io.EOF
}

// readAhead notices a sequential reader and has its next bytes made ready.
func (d *diskImage) readAhead(ctx context.Context, off, n int64) {
	if d.ahead == nil {
		return
	}
	if d.warmed.CompareAndSwap(false, true) {
		select {
		case d.ahead.warm <- d.m:
		default: // the workers are behind
		}
	}
	last := d.next.Swap(off + n)
	// The kernel may deliver a sequential reader's requests out of order.
	if off < last-2<<20 || off > last+2<<20 {
		d.seq.Store(0)
		d.done.Store(0)
		return
	}
	if d.seq.Add(n) < 256<<10 {
		return
	}
	from := max(d.done.Load(), off+n)
	to := min(off+n+aheadBytes, d.m.size)
	if to-from < aheadBytes/8 && to < d.m.size || from >= to {
		return
	}
	d.done.Store(to)
	for i := from / LeafSize; i*LeafSize < to; i++ {
		l, err := d.m.leaf(ctx, i)
		if err != nil {
			return
		}
		for _, r := range l.runs[l.find(int(max(from-i*LeafSize, 0)/chunk.Size)):] {
			start := i*LeafSize + int64(r.first)*chunk.Size
			if start >= to {
				break
			}
			skip := max(from-start, 0) / chunk.Size
			count := min(int64(r.count)*chunk.Size, to-start)/chunk.Size - skip
			if count > 0 {
				d.ahead.offerRun(Extent{start, int(count), l.packs[r.pack], int(r.chunk) + int(skip)})
			}
		}
	}
}

// offerRun splits a run so that the workers share it.
func (a *ReadAhead) offerRun(e Extent) {
	const piece = 32 // chunks: a frame
	for e.Chunks > 0 {
		n := min(e.Chunks, piece)
		a.offer(Extent{e.Offset, n, e.Pack, e.First})
		e.Chunks -= n
		e.First += n
	}
}
