package qmp

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/qmp/nbd"
)

// samplesInFlight is how many pieces of a sample are read at once.
const samplesInFlight = 8

// Sample implements Source.
func (s *Pull) Sample(ctx context.Context, offsets []int64, length int, fn func(off int64, data []byte) error) error {
	clean, err := s.clean(ctx, offsets, length)
	if err != nil {
		return s.broken(err)
	}
	var mu sync.Mutex // fn's
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(samplesInFlight)
	for _, off := range clean {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			p := make([]byte, min(int64(length), s.Size()-off))
			if _, err := s.ReadAt(gctx, p, off); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			return fn(off, p)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// clean gives those of the offsets, in their order, from which on length bytes
// are marked by no bitmap. What lies outside of the disk is left out.
func (s *Pull) clean(ctx context.Context, offsets []int64, length int) ([]int64, error) {
	u := newUnmarked(offsets, length, s.Size())
	if s.Dirty != nil {
		err := s.Dirty.Extents(ctx, s.Context, 0, s.Size(), func(e nbd.Extent) error {
			if e.Flags&nbd.FlagDirty != 0 {
				u.mark(e.Offset, e.End())
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return u.left(), nil
}

// unmarked keeps those pieces that no marked range touches. Ranges are told in
// the order of the disk.
type unmarked struct {
	offsets []int64
	length  int64
	order   []int // of offsets, by offset
	next    int   // in order: all before lie before every further range
	drop    []bool
}

func newUnmarked(offsets []int64, length int, size int64) *unmarked {
	u := &unmarked{offsets: offsets, length: int64(length), drop: make([]bool, len(offsets)), order: make([]int, len(offsets))}
	for i, off := range offsets {
		u.order[i] = i
		u.drop[i] = off < 0 || off >= size
	}
	slices.SortFunc(u.order, func(a, b int) int { return cmp.Compare(offsets[a], offsets[b]) })
	return u
}

// mark drops the pieces that touch a range.
func (u *unmarked) mark(begin, end int64) {
	for u.next < len(u.order) && u.offsets[u.order[u.next]]+u.length <= begin {
		u.next++
	}
	for i := u.next; i < len(u.order) && u.offsets[u.order[i]] < end; i++ {
		u.drop[u.order[i]] = true
	}
}

// left gives what was not dropped, in the order that was given.
func (u *unmarked) left() []int64 {
	var out []int64
	for i, off := range u.offsets {
		if !u.drop[i] {
			out = append(out, off)
		}
	}
	return out
}
