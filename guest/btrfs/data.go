package btrfs

import (
	"context"
	"errors"

	"cairn/guest/filesystem"
)

// Checksums of data lie in a tree of their own, by logical address, one for
// each sector.

// maxVerified bounds how much is read before it is verified, so that it is
// still in the processor's cache.
const maxVerified = 256 << 10

// readData fills p with the data at a logical address. With verify each sector
// that has a checksum is held against it, and another copy is tried when
// it does not fit.
func (fs *FS) readData(p []byte, logical uint64, verify bool) error {
	if !verify || fs.skipSums || fs.sums == nil {
		return fs.read(p, logical)
	}
	sector := fs.sb.sectorSize
	for len(p) > 0 {
		skip := int(logical % uint64(sector))
		n := min(len(p), sector-skip)
		if n < sector {
			b := make([]byte, sector)
			if err := fs.readVerified(b, logical-uint64(skip)); err != nil {
				return err
			}
			copy(p[:n], b[skip:])
		} else {
			n = min(len(p)/sector*sector, maxVerified)
			if err := fs.readVerified(p[:n], logical); err != nil {
				return err
			}
		}
		p, logical = p[n:], logical+uint64(n)
	}
	return nil
}

// readVerified fills p, which is whole sectors.
func (fs *FS) readVerified(p []byte, logical uint64) error {
	unread := fs.read(p, logical) // the error may be of one sector only
	sector, size := fs.sb.sectorSize, fs.sb.sum.size()
	for len(p) > 0 {
		sums, count, err := fs.sumsAt(logical, len(p)/sector)
		if err != nil {
			return err
		}
		for i := range count {
			b := p[i*sector:][:sector]
			var want []byte
			if sums != nil {
				want = sums[i*size:][:size]
			}
			if unread == nil && (want == nil || fs.sb.sum.fits(want, b)) {
				continue
			}
			at := logical + uint64(i*sector)
			err := fs.readChecked(b, at, func(b []byte) error {
				if want != nil && !fs.sb.sum.fits(want, b) {
					return corrupt("data at logical address %d has a wrong checksum", at)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		p, logical = p[count*sector:], logical+uint64(count*sector)
	}
	return nil
}

// sumsAt gives the checksums of up to count sectors, in place, and of how
// many they are; nil for sectors that have none.
func (fs *FS) sumsAt(logical uint64, count int) ([]byte, int, error) {
	ctx := context.Background()
	sector, size := uint64(fs.sb.sectorSize), fs.sb.sum.size()
	k, item, err := fs.sums.floor(ctx, key{extentCsumObject, typeExtentCsum, logical})
	if err == nil && item != nil && k.oid == extentCsumObject && k.typ == typeExtentCsum {
		if first := (logical - k.off) / sector; first < uint64(len(item)/size) {
			n := min(count, len(item)/size-int(first))
			return item[int(first)*size:][:n*size], n, nil
		}
	}
	if err == nil {
		err = fs.sums.scan(ctx, key{extentCsumObject, typeExtentCsum, logical + 1}, key{extentCsumObject, typeExtentCsum, logical + uint64(count-1)*sector}, strict, func(k key, _ []byte) error {
			count = min(count, max(1, int((k.off-logical)/sector)))
			return errStop
		})
	}
	if errors.Is(err, filesystem.ErrCorrupt) {
		fs.note("a part of the tree of data checksums is damaged; contents were read without it: %v", err)
		err = nil
	}
	return nil, count, err
}
