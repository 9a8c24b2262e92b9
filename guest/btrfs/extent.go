package btrfs

import (
	"context"
	"fmt"
	"math"

	"cairn/guest/filesystem"
)

// Kinds of file extents, and compression ("On-disk format", "File extents").
const (
	extentInline   = 0
	extentRegular  = 1
	extentPrealloc = 2

	extentHead = 21
	extentSize = 53

	compressNone = 0
	compressZlib = 1
	compressLZO  = 2
	compressZstd = 3

	// maxCompressed is the most that one compressed extent holds, packed or
	// not, in bytes.
	maxCompressed = 128 << 10
	// maxInline is the most that an inline extent can stand for.
	maxInline = 64 << 10
)

// extent is an EXTENT_DATA item.
type extent struct {
	start, end  int64 // in the file
	kind        uint8
	compression uint8
	ram         int64  // bytes of the whole extent, unpacked
	inline      []byte // of an inline extent, in place
	bytenr      uint64 // 0: a hole
	diskLen     uint64
	offset      uint64 // of start in the unpacked extent
}

// isHole says that the extent reads as zeros and counts as a hole.
func (e *extent) isHole() bool {
	return e.kind == extentPrealloc || e.kind == extentRegular && e.bytenr == 0
}

func (fs *FS) parseExtent(start uint64, b []byte) (extent, error) {
	if len(b) < extentHead || start > math.MaxInt64 {
		return extent{}, corrupt("extent at %d: item of %d bytes", start, len(b))
	}
	ram := le.Uint64(b[8:])
	e := extent{start: int64(start), kind: b[20], compression: b[16]}
	if b[17] != 0 {
		return e, filesystem.ErrEncrypted
	}
	if e.compression > compressZstd || le.Uint16(b[18:]) != 0 {
		return e, fmt.Errorf("%w: compression %d", filesystem.ErrUnsupported, e.compression)
	}
	if e.kind == extentInline {
		if ram > maxInline {
			return e, corrupt("inline extent at %d: %d bytes", start, ram)
		}
		e.ram, e.inline = int64(ram), b[extentHead:]
		sector := int64(fs.sb.sectorSize)
		if e.start > math.MaxInt64-maxInline-sector {
			return e, corrupt("inline extent at %d", start)
		}
		// It stands for whole sectors, as any extent; zeros follow its bytes.
		e.end = (e.start + e.ram + sector - 1) / sector * sector
		return e, nil
	}
	if e.kind > extentPrealloc || len(b) < extentSize {
		return e, corrupt("extent at %d: type %d, item of %d bytes", start, e.kind, len(b))
	}
	e.bytenr, e.diskLen, e.offset = le.Uint64(b[21:]), le.Uint64(b[29:]), le.Uint64(b[37:])
	length := le.Uint64(b[45:])
	if length == 0 || length > math.MaxInt64-start {
		return e, corrupt("extent at %d: %d bytes", start, length)
	}
	e.end = e.start + int64(length)
	if e.bytenr == 0 {
		return e, nil
	}
	whole := e.diskLen
	if e.compression != compressNone {
		if ram > maxCompressed || e.diskLen > maxCompressed {
			return e, corrupt("extent at %d: %d bytes compressed to %d", start, ram, e.diskLen)
		}
		whole = ram
	}
	sector := uint64(fs.sb.sectorSize)
	if e.bytenr%sector != 0 || e.diskLen%sector != 0 || e.offset > whole || length > whole-e.offset || e.bytenr+e.diskLen < e.bytenr {
		return e, corrupt("extent at %d: bytes %d+%d of %d", start, e.offset, length, whole)
	}
	e.ram = int64(min(ram, math.MaxInt64))
	return e, nil
}

// run gives what lies at a byte of a file: the extent, or for a gap between
// two a hole of that size.
func (f *file) run(off int64) (extent, error) {
	ctx := context.Background()
	last := key{f.in.oid, typeExtentData, math.MaxInt64}
	k, item, err := f.in.vol.floor(ctx, key{f.in.oid, typeExtentData, uint64(off)})
	if err != nil {
		return extent{}, err
	}
	if item != nil && k.oid == f.in.oid && k.typ == typeExtentData {
		e, err := f.fs.parseExtent(k.off, item)
		if err != nil || off < e.end {
			return e, err
		}
	}
	gap := extent{start: off, end: math.MaxInt64, kind: extentRegular}
	err = f.in.vol.scan(ctx, key{f.in.oid, typeExtentData, uint64(off) + 1}, last, strict, func(k key, _ []byte) error {
		gap.end = int64(k.off)
		return errStop
	})
	return gap, err
}
