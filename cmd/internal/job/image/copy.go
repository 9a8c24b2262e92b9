package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore/chunk"
)

// restorePiece is how much one worker reads and writes at once, in bytes.
const restorePiece = 2 << 20

// span is a range of a disk, in bytes.
type span struct{ off, n int64 }

// pieceSet says which pieces of a disk were written to. It may be used by many
// goroutines.
type pieceSet struct {
	mu   sync.Mutex
	bits []uint64
}

func newPieceSet(size int64) *pieceSet {
	return &pieceSet{bits: make([]uint64, size/restorePiece/64+1)}
}

func (p *pieceSet) add(off int64) {
	i := off / restorePiece
	p.mu.Lock()
	p.bits[i/64] |= 1 << (i % 64)
	p.mu.Unlock()
}

func (p *pieceSet) has(off int64) bool {
	i := off / restorePiece
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bits[i/64]&(1<<(i%64)) != 0
}

// inParallel runs work for each span that next gives, until it says io.EOF.
// Each worker has a buffer of restorePiece bytes. Spans that are longer are cut
// at multiples of restorePiece, so that frames, which lie in disk order, are
// rarely cut.
func inParallel(ctx context.Context, next func() (span, error), work func(ctx context.Context, buf []byte, s span) error) error {
	spans := make(chan span)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(spans)
		for {
			s, err := next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			for end := s.off + s.n; s.off < end; {
				n := min(restorePiece-s.off%restorePiece, end-s.off)
				select {
				case spans <- span{s.off, n}:
				case <-gctx.Done():
					return gctx.Err()
				}
				s.off += n
			}
		}
	})
	// Twice the processors: while one half waits for the disk the other decodes.
	for range 2 * runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			buf := alignedBuffer(restorePiece)
			for s := range spans {
				if err := gctx.Err(); err != nil {
					return err
				}
				if err := work(gctx, buf, s); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// copy writes what is not a hole. With zeroHoles the holes are made to read as
// zeros, because other data may lie there.
func (d *Disk) copy(ctx context.Context, t target, zeroHoles bool, prog Progress, r *Restored) error {
	add, end := prog("restoring "+d.Name, d.Image.Size())
	defer end()
	hole := func(off, n int64) error {
		defer add(n)
		if !zeroHoles || n == 0 {
			return nil
		}
		r.BytesZeroed += n // only by the goroutine that gives the spans
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.zero(off, n); err != nil {
			return fmt.Errorf("write zeros at %d: %w", off, err)
		}
		return nil
	}
	at := int64(0)
	next := func() (span, error) {
		start, stop, err := d.Image.NextData(at)
		if errors.Is(err, io.EOF) {
			if err := hole(at, d.Image.Size()-at); err != nil {
				return span{}, err
			}
			return span{}, io.EOF
		}
		if err == nil {
			err = hole(at, start-at)
		}
		at = stop
		return span{start, stop - start}, err
	}
	var written atomic.Int64
	err := inParallel(ctx, next, func(_ context.Context, buf []byte, s span) error {
		if err := d.write(t, buf[:s.n], s.off); err != nil {
			return err
		}
		written.Add(s.n)
		add(s.n)
		return nil
	})
	r.BytesWritten += written.Load()
	return err
}

// write copies len(buf) bytes at off from the image.
func (d *Disk) write(t target, buf []byte, off int64) error {
	if _, err := d.Image.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read at %d: %w", off, err)
	}
	if _, err := t.WriteAt(buf, off); err != nil {
		return fmt.Errorf("write at %d: %w", off, err)
	}
	return nil
}

// either gives, in order, what is not a hole in the image or in the target.
func (d *Disk) either(t target, add func(int64)) func() (span, error) {
	at := int64(0)
	return func() (span, error) {
		if at >= d.Image.Size() {
			return span{}, io.EOF
		}
		start, _, err1 := d.Image.NextData(at)
		there, err2 := t.nextData(at)
		switch {
		case errors.Is(err1, io.EOF) && errors.Is(err2, io.EOF):
			add(d.Image.Size() - at)
			return span{}, io.EOF
		case errors.Is(err1, io.EOF):
			start, err1 = there, nil
		case err2 == nil:
			start = min(start, there)
		case errors.Is(err2, io.EOF):
			err2 = nil
		}
		if err := errors.Join(err1, err2); err != nil {
			return span{}, err
		}
		start = start / chunk.Size * chunk.Size
		stop := min((start/restorePiece+1)*restorePiece, d.Image.Size())
		add(start - at)
		at = stop
		return span{start, stop - start}, nil
	}
}

// compare reads a span of the target and calls differs for each run of chunks
// that are not the point's; hole says what the point has there. buf may be
// used in it.
func (d *Disk) compare(ctx context.Context, t target, h *chunk.Hasher, buf []byte, s span, differs func(off, n int64, hole bool) error) error {
	p := buf[:whole(s.n)]
	if _, err := readFull(t, p[:s.n], s.off); err != nil {
		return fmt.Errorf("read back at %d: %w", s.off, err)
	}
	clear(p[s.n:])
	ids := make([]chunk.ID, len(p)/chunk.Size)
	if err := d.IDs(ctx, s.off/chunk.Size, ids); err != nil {
		return err
	}
	same := make([]bool, len(ids))
	for i, id := range ids {
		c := p[i*chunk.Size : (i+1)*chunk.Size]
		if id == (chunk.ID{}) {
			same[i] = chunk.IsZero(c)
		} else {
			same[i] = h.Sum(c) == id
		}
	}
	for i := 0; i < len(ids); i++ {
		if same[i] {
			continue
		}
		first, hole := i, ids[i] == (chunk.ID{})
		for i+1 < len(ids) && !same[i+1] && (ids[i+1] == chunk.ID{}) == hole {
			i++
		}
		off := s.off + int64(first)*chunk.Size
		if err := differs(off, min(int64(i+1-first)*chunk.Size, s.off+s.n-off), hole); err != nil {
			return err
		}
	}
	return nil
}

// readFull reads all of p; what ends before is an error.
func readFull(t io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := t.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("it ends at %d: %w", off+int64(n), io.ErrUnexpectedEOF)
	}
	return n, err
}

// hashers keeps one for each worker.
func (d *Disk) hashers() *sync.Pool {
	return &sync.Pool{New: func() any { return d.Hasher() }}
}

// writeDifferences writes the chunks of the target that are not the point's.
func (d *Disk) writeDifferences(ctx context.Context, t target, touched *pieceSet, prog Progress, r *Restored) error {
	add, end := prog("comparing "+d.Name, d.Image.Size())
	defer end()
	var compared, written, zeroed atomic.Int64
	pool := d.hashers()
	err := inParallel(ctx, d.either(t, add), func(ctx context.Context, buf []byte, s span) error {
		h := pool.Get().(*chunk.Hasher)
		defer pool.Put(h)
		err := d.compare(ctx, t, h, buf, s, func(off, n int64, hole bool) error {
			touched.add(off)
			if hole {
				zeroed.Add(n)
				return t.zero(off, n)
			}
			written.Add(n)
			at := off - s.off
			return d.write(t, buf[at:at+n], off)
		})
		compared.Add(s.n)
		add(s.n)
		return err
	})
	r.BytesCompared += compared.Load()
	r.BytesWritten += written.Load()
	r.BytesZeroed += zeroed.Load()
	return err
}

// ErrVerify: what was read back is not what was written.
var ErrVerify = errors.New("what was written reads back wrong")

// verify reads back what was written, or with only the pieces in it.
func (d *Disk) verify(ctx context.Context, t target, o Options, only *pieceSet, prog Progress, r *Restored) error {
	if o.NoVerify {
		return nil
	}
	add, end := prog("verifying "+d.Name, d.Image.Size())
	defer end()
	next := d.either(t, add)
	var verified atomic.Int64
	pool := d.hashers()
	err := inParallel(ctx, next, func(ctx context.Context, buf []byte, s span) error {
		defer add(s.n)
		if only != nil && !only.has(s.off) {
			return nil
		}
		h := pool.Get().(*chunk.Hasher)
		defer pool.Put(h)
		verified.Add(s.n)
		return d.compare(ctx, t, h, buf, s, func(off, n int64, _ bool) error {
			return fmt.Errorf("%w: %d bytes at offset %d are not the point's: check the storage (dmesg, SMART) and this machine's memory, then restore again", ErrVerify, n, off)
		})
	})
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if q, ok := t.(*qcow2Target); ok {
		if err := q.verifyTables(); err != nil {
			return err
		}
	}
	r.BytesVerified += verified.Load()
	return nil
}
