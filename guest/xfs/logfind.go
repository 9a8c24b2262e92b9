package xfs

import (
	"context"
	"errors"
	"fmt"

	"cairn/guest/filesystem"
)

// The log (Journaling Log; xfs_log_format.h). It is a ring of sectors whose
// first four bytes are the number of times that the ring was filled, the
// cycle; a record's header keeps the bytes that stood there. All positions
// are sectors from the log's start.
const (
	recordMagic = 0xFEEDBABE

	cyclesPerHeader = 64  // sectors whose first bytes one header sector keeps
	maxRecord       = 512 // sectors of data in the largest record
	maxHeaders      = 8   // of it
	maxInFlight     = 8   // records that are written at once

	// scanBack is how far before the end records may be missing, because
	// several are written at once.
	scanBack = maxInFlight * maxRecord

	minLogSectors = 512
	maxLogSectors = 1 << 22 // 2 GiB
)

// logRing reads the log.
type logRing struct {
	fs      *FS
	start   int64 // bytes in the image
	sectors int64
	// torn says that the end has records which are not whole. They count as
	// never written, as for a mount.
	torn bool
}

func (fs *FS) openLog() (*logRing, error) {
	s := fs.sb
	off, err := s.offset(s.logStart, uint64(s.logBlocks))
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	n := int64(s.logBlocks) * s.blockSize / sectorSize
	if n < minLogSectors || n > maxLogSectors {
		return nil, corrupt("log of %d sectors", n)
	}
	return &logRing{fs: fs, start: off, sectors: n}, nil
}

// read fills b with sectors from at on, across the end of the ring.
func (l *logRing) read(b []byte, at int64) error {
	for at %= l.sectors; len(b) > 0; at = 0 {
		n := min(int64(len(b)), (l.sectors-at)*sectorSize)
		if err := l.fs.readAt(b[:n], l.start+at*sectorSize); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// cycleOf is the cycle of a sector. A header has it behind its magic number.
func cycleOf(sector []byte) uint32 {
	if c := be.Uint32(sector); c != recordMagic {
		return c
	}
	return be.Uint32(sector[4:])
}

func (l *logRing) cycleAt(at int64) (uint32, error) {
	b := make([]byte, sectorSize)
	err := l.read(b, at)
	return cycleOf(b), err
}

var errEmptyLog = errors.New("the log was never written")

// findEnd gives the sector behind the last one that was written, as a number
// in 1..sectors. cycle is the one of the sectors from there on.
func (l *logRing) findEnd(ctx context.Context) (end int64, cycle uint32, err error) {
	first, err := l.cycleAt(0)
	if err != nil {
		return 0, 0, err
	}
	last, err := l.cycleAt(l.sectors - 1)
	if err != nil {
		return 0, 0, err
	}
	switch {
	case first == 0:
		return 0, 0, errEmptyLog
	case first == last: // filled to its end, but perhaps for a gap near it
		return l.sectors, first - 1, nil
	}
	low, high := int64(0), l.sectors-1
	for high-low > 1 {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		middle := (low + high) / 2
		c, err := l.cycleAt(middle)
		if err != nil {
			return 0, 0, err
		}
		if c == last {
			high = middle
		} else {
			low = middle
		}
	}
	return high, last, nil
}

// backOverGap looks for sectors shortly before end that still have the older
// cycle: records are written in parallel, and what lies behind a missing one
// does not count.
func (l *logRing) backOverGap(end int64, old uint32) (int64, error) {
	back := min(int64(scanBack), l.sectors)
	if end < back { // the gap may lie before the ring's seam
		at := l.sectors - (back - end)
		found, err := l.findCycle(at, l.sectors, old-1)
		if err != nil || found >= 0 {
			return found, err
		}
		back = end
	}
	found, err := l.findCycle(end-back, end, old)
	if err != nil || found >= 0 {
		return found, err
	}
	return end, nil
}

// findCycle gives the first sector of a range with a cycle; -1: none.
func (l *logRing) findCycle(from, to int64, cycle uint32) (int64, error) {
	b := make([]byte, 256*sectorSize)
	for at := from; at < to; at += int64(len(b) / sectorSize) {
		b = b[:min(int64(cap(b)), (to-at)*sectorSize)]
		if err := l.read(b, at); err != nil {
			return -1, err
		}
		for i := range int64(len(b) / sectorSize) {
			if cycleOf(b[i*sectorSize:]) == cycle {
				return at + i, nil
			}
		}
	}
	return -1, nil
}

// recordBefore finds the last record whose header lies in the reach of the
// largest record before end.
func (l *logRing) recordBefore(end int64) (record, error) {
	b := make([]byte, 64*sectorSize)
	for back := int64(0); back < min(maxRecord+maxHeaders, l.sectors); back += 64 {
		at := end - back - 64
		if err := l.read(b, (at+2*l.sectors)%l.sectors); err != nil {
			return record{}, err
		}
		for i := int64(63); i >= 0; i-- {
			if h := b[i*sectorSize:][:sectorSize]; be.Uint32(h) == recordMagic {
				r, err := l.parseHeader(h, (at+i+2*l.sectors)%l.sectors)
				if err == nil || errors.Is(err, errForeignLog) {
					return r, err
				}
			}
		}
	}
	return record{}, corrupt("no record before sector %d of the log", end)
}

// lastRecord finds the newest record that is whole, and whether it says that
// the filesystem was unmounted.
func (l *logRing) lastRecord(ctx context.Context) (last record, clean bool, err error) {
	end, old, err := l.findEnd(ctx)
	if err != nil {
		return record{}, false, err
	}
	last, err = l.recordBefore(end)
	if err == nil && last.ops == 1 {
		// A record of an unmount is written when all others are.
		clean, err := l.isUnmount(last)
		if clean && err == nil {
			clean, err = l.isOlder(last, end)
		}
		if clean || err != nil {
			return last, clean, err
		}
	}
	whole, err := l.backOverGap(end, old)
	if err != nil {
		return record{}, false, err
	}
	l.torn = whole != end
	if last, err = l.wholeRecordBefore(ctx, whole); err != nil {
		return record{}, false, err
	}
	if last.ops == 1 {
		clean, err = l.isUnmount(last)
	}
	return last, clean, err
}

// isOlder says that nothing was written behind a record up to end. xfs_db
// leaves sectors there that were never written, when it clears a log.
func (l *logRing) isOlder(r record, end int64) (bool, error) {
	b := make([]byte, l.distance(r.end(l), end)*sectorSize)
	if err := l.read(b, r.end(l)); err != nil {
		return false, err
	}
	for ; len(b) > 0; b = b[sectorSize:] {
		if cycleOf(b) >= uint32(r.lsn>>32) {
			return false, nil
		}
	}
	return true, nil
}

// wholeRecordBefore leaves out a record that does not end at end, and all from
// the first of the last few on that has a wrong checksum.
func (l *logRing) wholeRecordBefore(ctx context.Context, end int64) (record, error) {
	r, err := l.recordBefore(end)
	if err != nil {
		return record{}, err
	}
	if r.end(l) != end%l.sectors {
		l.torn = true
		if r, err = l.recordBefore(r.at); err != nil {
			return record{}, err
		}
	}
	recent := []record{r} // newest first
	for len(recent) < maxInFlight {
		if err := ctx.Err(); err != nil {
			return record{}, err
		}
		before, err := l.recordBefore(r.at)
		if err != nil || before.end(l) != r.at || before.lsn >= r.lsn {
			break // as far back as the log goes
		}
		r = before
		recent = append(recent, r)
	}
	good := -1
	for i := len(recent) - 1; i >= 0; i-- {
		if _, err := l.loadEnd(recent[i]); err != nil {
			if !errors.Is(err, filesystem.ErrCorrupt) {
				return record{}, err
			}
			break
		}
		good = i
	}
	if good < 0 {
		return record{}, corrupt("no whole record at the end of the log")
	}
	l.torn = l.torn || good > 0
	return recent[good], nil
}

// isUnmount says whether a record of one operation is an unmount.
func (l *logRing) isUnmount(r record) (bool, error) {
	data, err := l.loadEnd(r)
	if err != nil {
		if errors.Is(err, filesystem.ErrCorrupt) {
			return false, nil
		}
		return false, err
	}
	return len(data) >= opHeader && data[9]&opUnmount != 0, nil
}
