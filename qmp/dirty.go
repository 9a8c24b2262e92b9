package qmp

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"cairn/qmp/nbd"
)

// Source is a disk of a fleece. Extents is for one goroutine at a time, ReadAt
// for many, until the fleece is released.
type Source interface {
	// Size gives the disk's size in bytes.
	Size() int64
	// DirtyBytes gives what the bitmaps marked; for a full read the disk's size.
	DirtyBytes() int64
	// Extents calls fn for what must be read, in disk order: for an
	// incremental read the dirty ranges, otherwise the whole disk. zero means
	// that the range reads as zeros and need not be read. An error of fn ends
	// it and is returned as it is.
	Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error
	// ReadAt reads len(p) bytes of the point in time at off, as io.ReaderAt
	// does. Only what Extents has told of is sure to be there, and only once:
	// a disk that QEMU pushes is read as it comes. Pieces of 256 KiB, 4 to 16
	// at the same time, are fastest. An error that wraps ErrFleeceBroken means
	// that nothing more can be read.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Anywhere says that ReadAt works at any offset and any number of times,
	// before Extents, too.
	Anywhere() bool
	// Sample calls fn with the content of those of the pieces of length bytes
	// at the offsets that no bitmap marks, in about the given order; data is
	// only fn's until it returns, and calls come one at a time. It is for an
	// incremental source, before its Extents.
	Sample(ctx context.Context, offsets []int64, length int, fn func(off int64, data []byte) error) error
	// Whole gives a source of the same point in time that reads the disk
	// whole: after a Sample showed that the bitmaps lie.
	Whole() Source
}

// Pull is a source that is read over NBD. A user of another hypervisor's
// exports makes one; a Fleece makes its own.
type Pull struct {
	Name    string    // the disk's, for messages
	Data    *nbd.Conn // with the context base:allocation
	Dirty   *nbd.Conn // with Context; nil for a full read
	Context string    // the dirty bitmap's
	Bytes   int64     // DirtyBytes of an incremental read
}

// Size implements Source.
func (s *Pull) Size() int64 { return s.Data.Size() }

// DirtyBytes implements Source.
func (s *Pull) DirtyBytes() int64 {
	if s.Dirty == nil {
		return s.Size()
	}
	return s.Bytes
}

// Anywhere implements Source.
func (s *Pull) Anywhere() bool { return true }

// Whole implements Source.
func (s *Pull) Whole() Source { return &Pull{Name: s.Name, Data: s.Data} }

// ReadAt implements Source.
func (s *Pull) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.Data.ReadAtContext(ctx, p, off)
	return n, s.broken(err)
}

// broken finds the words for a read error. QEMU sends no event when a fleece
// breaks: EINVAL on the wire is the only sign (EACCES inside of QEMU).
func (s *Pull) broken(err error) error {
	var refused *nbd.Error
	if errors.As(err, &refused) && (refused.Errno == syscall.EINVAL || refused.Errno == syscall.EACCES || refused.Errno == syscall.EPERM) {
		return fmt.Errorf("disk %s: %w (%w)", s.Name, ErrFleeceBroken, err)
	}
	return err
}

// Bounds of one question about the allocation of several dirty extents.
const (
	maxBatchSpan    = 16 << 20 // bytes from the first to the last
	maxBatchExtents = 1024
)

// Extents implements Source.
//
// Only the zero bit of base:allocation counts. A hole without it is no zero
// range: an overlay reports what its backing file holds as such.
func (s *Pull) Extents(ctx context.Context, fn func(off, length int64, zero bool) error) error {
	var own error // fn's, to be told from the server's
	call := func(e nbd.Extent) error {
		own = fn(e.Offset, e.Length, e.Flags&nbd.FlagZero != 0)
		return own
	}
	err := s.extents(ctx, call)
	if own != nil {
		return own
	}
	return s.broken(err)
}

func (s *Pull) extents(ctx context.Context, fn func(nbd.Extent) error) error {
	if s.Dirty == nil {
		return s.Data.Extents(ctx, nbd.BaseAllocation, 0, s.Size(), fn)
	}
	var batch []nbd.Extent
	flush := func() error {
		err := s.allocation(ctx, batch, fn)
		batch = batch[:0]
		return err
	}
	err := s.Dirty.Extents(ctx, s.Context, 0, s.Size(), func(e nbd.Extent) error {
		if e.Flags&nbd.FlagDirty == 0 {
			return nil
		}
		if len(batch) > 0 && (e.End()-batch[0].Offset > maxBatchSpan || len(batch) == maxBatchExtents) {
			if err := flush(); err != nil {
				return err
			}
		}
		batch = append(batch, e)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// allocation calls fn for the dirty extents of a batch, cut where their
// allocation changes. It asks once for all of them: asking for the whole disk
// costs more than it saves, and asking for each costs a round trip.
func (s *Pull) allocation(ctx context.Context, dirty []nbd.Extent, fn func(nbd.Extent) error) error {
	if len(dirty) == 0 {
		return nil
	}
	begin, end := dirty[0].Offset, dirty[len(dirty)-1].End()
	return s.Data.Extents(ctx, nbd.BaseAllocation, begin, end-begin, func(e nbd.Extent) error {
		for len(dirty) > 0 && dirty[0].Offset < e.End() {
			start := max(dirty[0].Offset, e.Offset)
			stop := min(dirty[0].End(), e.End())
			if err := fn(nbd.Extent{Offset: start, Length: stop - start, Flags: e.Flags}); err != nil {
				return err
			}
			if stop < dirty[0].End() {
				break // its rest lies in the next extent
			}
			dirty = dirty[1:]
		}
		return nil
	})
}
