package ntfs

import (
	"encoding/binary"
	"fmt"

	"cairn/guest/filesystem"
)

var le = binary.LittleEndian

// corrupt is an error that wraps ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

const (
	sectorUnit  = 512     // of fixups, whatever the device's sectors are
	maxCluster  = 2 << 20 // bytes
	maxRecord   = 4 << 10 // bytes of a record of the MFT
	maxIndex    = 64 << 10
	maxClusters = 1 << 48
)

// geometry is what the boot sector says.
type geometry struct {
	cluster    int64 // bytes
	clusters   int64
	record     int // bytes of an MFT record
	index      int // bytes of an index block
	mft, mirr  int64
	serial     uint64
	sectorSize int64
	sectors    int64
}

// parseBoot reads a boot sector.
func parseBoot(b []byte) (geometry, error) {
	var g geometry
	if len(b) < sectorUnit || string(b[3:11]) != "NTFS    " {
		return g, corrupt("no NTFS boot sector")
	}
	g.sectorSize = int64(le.Uint16(b[0x0B:]))
	if g.sectorSize < 256 || g.sectorSize > 4096 || g.sectorSize&(g.sectorSize-1) != 0 {
		return g, corrupt("boot sector: sectors of %d bytes", g.sectorSize)
	}
	perCluster := int64(b[0x0D])
	if perCluster > 0x80 { // a negative power of two, for clusters over 64 KiB
		perCluster = 1 << (256 - perCluster)
	}
	g.cluster = perCluster * g.sectorSize
	if perCluster == 0 || perCluster&(perCluster-1) != 0 || g.cluster > maxCluster {
		return g, corrupt("boot sector: %d sectors per cluster", perCluster)
	}
	g.sectors = int64(le.Uint64(b[0x28:]))
	if g.sectors <= 0 || g.sectors > maxClusters {
		return g, corrupt("boot sector: %d sectors", g.sectors)
	}
	g.clusters = g.sectors / perCluster
	g.mft, g.mirr = int64(le.Uint64(b[0x30:])), int64(le.Uint64(b[0x38:]))
	if g.mft < 0 || g.mft >= g.clusters || g.mirr < 0 || g.mirr >= g.clusters {
		return g, corrupt("boot sector: the MFT at cluster %d or its mirror at %d lie outside", g.mft, g.mirr)
	}
	size := func(v int8) int64 {
		if v < 0 {
			return 1 << min(-int(v), 30)
		}
		return int64(v) * g.cluster
	}
	record, index := size(int8(b[0x40])), size(int8(b[0x44]))
	if record < 512 || record > maxRecord || record&(record-1) != 0 {
		return g, corrupt("boot sector: MFT records of %d bytes", record)
	}
	if index < 512 || index > maxIndex || index&(index-1) != 0 {
		return g, corrupt("boot sector: index blocks of %d bytes", index)
	}
	g.record, g.index = int(record), int(index)
	g.serial = le.Uint64(b[0x48:])
	return g, nil
}

// readBoot reads the boot sector, or its copy in the volume's last sector.
func (fs *FS) readBoot() error {
	b := make([]byte, sectorUnit)
	err := fs.readAt(b, 0)
	if err == nil {
		if fs.geometry, err = parseBoot(b); err == nil {
			return nil
		}
	}
	for _, off := range []int64{fs.size - sectorUnit, fs.size - 4096} {
		if off <= 0 || fs.readAt(b, off) != nil {
			continue
		}
		if g, berr := parseBoot(b); berr == nil {
			fs.geometry = g
			fs.note("the boot sector is damaged (%v); its copy at the end is used", err)
			return nil
		}
	}
	return err
}

// readAt fills p from byte off of the image.
func (fs *FS) readAt(p []byte, off int64) error {
	return filesystem.ReadFull(fs.image, fs.size, p, off)
}

// fixup undoes the update sequence of a record or an index block: the last two
// bytes of each 512 lie in an array, and a number stands in their place
// (libfsntfs, "Fix-up values"). It changes b.
func fixup(b []byte, magic string) error {
	if len(b) < sectorUnit || string(b[:4]) != magic {
		return corrupt("no %s record", magic)
	}
	off, count := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if count != len(b)/sectorUnit+1 || off&1 != 0 || off < 8 || off+2*count > sectorUnit-2 {
		return corrupt("update sequence of %d values at %d", count, off)
	}
	for i := 1; i < count; i++ {
		at := i*sectorUnit - 2
		if b[at] != b[off] || b[at+1] != b[off+1] {
			return corrupt("a torn write in sector %d of a %s record", i-1, magic)
		}
		copy(b[at:], b[off+2*i:off+2*i+2])
	}
	return nil
}
