package job

import (
	"context"
	"fmt"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// source is one disk of a fleece.
type source interface {
	// ReadAt fills p from off on.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Extents calls fn for what must be read, in the order of the disk.
	Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error
	// Size in bytes.
	Size() int64
}

// readsInFlight is how many pieces of a disk are read at once; requestSize
// what one NBD request asks for (QEMU.md section 3).
const (
	readsInFlight = 6
	requestSize   = 256 << 10
)

// piece is a range of the disk on its way from the fleece to the session.
type piece struct {
	off   int64
	n     int64 // bytes; of a hole any number
	hole  bool
	data  []byte
	ready chan error
}

// cutter makes pieces of extents: whole chunks, joined where they touch, at
// most chunkstore.BatchSize each. A chunk that is partly a hole is data.
type cutter struct {
	size int64
	end  int64 // all before is cut
	open piece
	emit func(piece) error

	zero, zeroEnd int64 // the zeros told of last, joined with those they touch
}

func (c *cutter) extent(off, length int64, zero bool) error {
	if off < 0 || length <= 0 || off+length > c.size {
		return fmt.Errorf("the fleece gives a range %d+%d outside of the disk's %d bytes", off, length, c.size)
	}
	stop := off + length
	if zero {
		// A chunk where two ranges of zeros meet is a hole, too: neither holds
		// it whole, and left out it would keep the parent's bytes.
		if off != c.zeroEnd {
			c.zero = off
		}
		c.zeroEnd = stop
		off, stop = roundUp(c.zero), roundDown(stop, c.size)
		if off = max(off, c.end); off >= stop {
			return nil
		}
		if err := c.flush(); err != nil {
			return err
		}
		c.end = stop
		return c.emit(piece{off: off, n: stop - off, hole: true})
	}
	off, stop = off/chunk.Size*chunk.Size, min(roundUp(stop), roundUp(c.size))
	for off = max(off, c.end); off < stop; {
		if c.open.n > 0 && (c.open.off+c.open.n != off || c.open.n == chunkstore.BatchSize) {
			if err := c.flush(); err != nil {
				return err
			}
		}
		if c.open.n == 0 {
			c.open.off = off
		}
		n := min(stop-off, chunkstore.BatchSize-c.open.n)
		c.open.n += n
		off += n
		c.end = off
	}
	return nil
}

func (c *cutter) flush() error {
	if c.open.n == 0 {
		return nil
	}
	p := c.open
	c.open = piece{}
	return c.emit(p)
}

func roundUp(n int64) int64 { return (n + chunk.Size - 1) / chunk.Size * chunk.Size }

// roundDown keeps a disk's ragged end whole: the chunk there is padded.
func roundDown(n, size int64) int64 {
	if n == size {
		return roundUp(n)
	}
	return n / chunk.Size * chunk.Size
}

// readDisk reads a disk's fleece into the session, in the order of the disk,
// several reads at once. It gives the bytes read. done is told of progress.
func readDisk(ctx context.Context, s *chunkstore.Session, b *restorepoint.Builder, src source, hasParent bool, pace *pace, done func(int64)) (read int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	queue := make(chan piece, readsInFlight)
	appended := make(chan error, 1)
	go func() { // appends in order what was read in any order
		appended <- appendPieces(ctx, cancel, s, b, queue, hasParent, pace, done)
	}()
	defer func() {
		close(queue)
		if aerr := <-appended; aerr != nil && (err == nil || ctx.Err() != nil) {
			err = aerr
		}
		cancel()
	}()
	c := cutter{size: src.Size()}
	c.emit = func(p piece) error {
		if !p.hole {
			read += min(p.n, src.Size()-p.off)
			buf, err := s.Buffer(ctx)
			if err != nil {
				return err
			}
			p.data, p.ready = buf[:p.n], make(chan error, 1)
			go func() { p.ready <- fill(ctx, src, p.data, p.off) }() // appendPieces waits for it
		}
		select {
		case queue <- p:
			return nil
		case <-ctx.Done():
			if p.ready != nil {
				<-p.ready
			}
			return ctx.Err()
		}
	}
	err = src.Extents(ctx, c.extent)
	if err == nil {
		err = c.flush()
	}
	return read, err
}

// fill reads one piece; what lies behind the disk's end is zero.
func fill(ctx context.Context, src source, p []byte, off int64) error {
	inside := min(int64(len(p)), src.Size()-off)
	clear(p[inside:])
	for at := int64(0); at < inside; at += requestSize {
		if _, err := src.ReadAt(ctx, p[at:min(at+requestSize, inside)], off+at); err != nil {
			return err
		}
	}
	return nil
}

// appendPieces hands pieces to the session until the queue is closed. Its
// first error it tells by stop at once, as the buffers of what comes behind are
// lost to the session, and a reader waiting for one would wait for ever. It
// then goes on waiting for the reads under way.
func appendPieces(ctx context.Context, stop func(), s *chunkstore.Session, b *restorepoint.Builder, queue <-chan piece, hasParent bool, pace *pace, done func(int64)) error {
	var failed error
	begin := pace.now()
	for p := range queue {
		if p.ready != nil {
			if err := <-p.ready; err != nil && failed == nil {
				failed = err
			}
		}
		pace.waited(&pace.source, begin)
		begin = pace.now()
		if failed == nil {
			failed = appendPiece(ctx, s, b, p, hasParent)
		}
		pace.waited(&pace.store, begin)
		begin = pace.now()
		if failed != nil {
			stop()
			continue
		}
		done(p.n)
	}
	return failed
}

func appendPiece(ctx context.Context, s *chunkstore.Session, b *restorepoint.Builder, p piece, hasParent bool) error {
	first := p.off / chunk.Size
	if p.hole {
		n := p.n / chunk.Size
		return s.Append(ctx, &chunkstore.Batch{Placed: func([]chunk.Loc) error { return b.Hole(first, n) }})
	}
	batch := &chunkstore.Batch{Data: p.data, Placed: func(l []chunk.Loc) error { return b.Set(first, l) }}
	if hasParent {
		batch.Parent = make([]chunk.Loc, len(p.data)/chunk.Size)
		if err := b.ParentLocs(first, batch.Parent); err != nil {
			return fmt.Errorf("read the last point's disk map (--full-read does without it): %w", err)
		}
	}
	return s.Append(ctx, batch)
}
