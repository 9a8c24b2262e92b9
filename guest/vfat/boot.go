package vfat

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"

	"cairn/guest/filesystem"
)

// bitsExfat stands for exFAT where the other filesystems have the width of a
// FAT entry. Its entries have 32 bits, all of them used.
const bitsExfat = 64

const firstCluster = 2 // the number of the first cluster of the heap

// geometry is what the boot sector says. Offsets are bytes of the image.
type geometry struct {
	bits         int // 12, 16, 32, or bitsExfat
	sectorBytes  int64
	clusterBytes int64
	clusters     uint32 // numbered from firstCluster on
	fats         [2]int64
	fatCount     int // 1 or 2 that can be compared
	active       int // the FAT that is read
	mirrored     bool
	fatBytes     int64
	heap         int64 // cluster 2
	rootCluster  uint32
	rootArea     int64 // of FAT12 and FAT16
	rootBytes    int64
	fsinfo       int64 // FAT32's; 0: none
	serial       uint32
	hasSerial    bool
	label        [11]byte // of the boot sector
	dirty        bool
	failed       bool
	volumeBytes  int64
	percentUsed  uint8 // exFAT; above 100: not known
}

func (g *geometry) end() int64 { return g.heap + int64(g.clusters)*g.clusterBytes }

// has says whether c numbers a cluster.
func (g *geometry) has(c uint32) bool { return c >= firstCluster && c-firstCluster < g.clusters }

// place is where a cluster begins.
func (g *geometry) place(c uint32) int64 { return g.heap + int64(c-firstCluster)*g.clusterBytes }

// fatBackup is the sector that all formatters use for FAT32's second boot
// sector; the first one, which would name it, is the one that is damaged.
const fatBackup = 6

// readBoot reads the boot sector, or its backup when it is damaged.
func (fs *FS) readBoot() error {
	err := fs.bootAt(0, 0)
	if err == nil || !errors.Is(err, filesystem.ErrCorrupt) {
		return err
	}
	for shift := 9; shift <= 12; shift++ {
		for _, sector := range []int64{fatBackup, exfatBackup} {
			if fs.bootAt(sector<<shift, shift) == nil {
				fs.note("the boot sector is damaged; its backup was used")
				return nil
			}
		}
	}
	return err
}

// bootAt takes the boot sector at off. A backup must be of sectors of 1<<shift
// bytes; 0 takes any.
func (fs *FS) bootAt(off int64, shift int) error {
	b := make([]byte, 512)
	if err := fs.readAt(b, off); err != nil {
		return err
	}
	var g geometry
	var err error
	if string(b[3:11]) == "EXFAT   " {
		if g, err = parseExfatBoot(b); err == nil {
			err = fs.checkExfatBoot(off, g.sectorBytes)
		}
	} else if g, err = parseBoot(b); err == nil && shift > 0 && g.bits != 32 {
		err = corrupt("only FAT32 has a backup of its boot sector")
	}
	if err == nil && shift > 0 && g.sectorBytes != 1<<shift {
		err = corrupt("boot sector at %d is for sectors of %d bytes", off, g.sectorBytes)
	}
	if err == nil && g.heap >= fs.size {
		err = corrupt("the clusters begin at %d, behind the image's end", g.heap)
	}
	if err != nil {
		return fmt.Errorf("boot sector: %w", err)
	}
	fs.geo = g
	return nil
}

// parseBoot reads the BIOS parameter block of FAT (fatgen103, "Boot Sector and
// BPB"). What it accepts is what Linux does. The width follows from the count
// of clusters, FAT32 from a 16-bit FAT size of zero.
func parseBoot(b []byte) (geometry, error) {
	var g geometry
	sector := int64(le.Uint16(b[11:]))
	perCluster := int64(b[13])
	reserved := int64(le.Uint16(b[14:]))
	fats := int64(b[16])
	rootEntries := int64(le.Uint16(b[17:]))
	sectors := int64(le.Uint16(b[19:]))
	media := b[21]
	fatSectors := int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	switch {
	case sector < 512 || sector > 4096 || bits.OnesCount64(uint64(sector)) != 1:
		return g, corrupt("sectors of %d bytes", sector)
	case perCluster == 0 || bits.OnesCount64(uint64(perCluster)) != 1:
		return g, corrupt("clusters of %d sectors", perCluster)
	case reserved == 0 || fats == 0:
		return g, corrupt("%d reserved sectors, %d FATs", reserved, fats)
	case media != 0xF0 && media < 0xF8:
		return g, corrupt("media type %#x", media)
	}
	g.sectorBytes, g.clusterBytes = sector, sector*perCluster
	extended := 36 // where the extended boot record begins
	if fatSectors == 0 {
		g.bits = 32
		fatSectors = int64(le.Uint32(b[36:]))
		g.rootCluster = le.Uint32(b[44:])
		if s := int64(le.Uint16(b[48:])); s > 0 && s < reserved {
			g.fsinfo = s * sector
		}
		extended = 64
	}
	if fatSectors == 0 {
		return g, corrupt("FATs of no length")
	}
	g.fatBytes = fatSectors * sector
	g.mirrored = true
	if flags := le.Uint16(b[40:]); g.bits == 32 && flags&0x80 != 0 {
		g.mirrored, g.active = false, int(flags&0xF)
	}
	g.fatCount = int(min(fats, 2))
	for i := range g.fats {
		g.fats[i] = (reserved + int64(i)*fatSectors) * sector
	}
	if int64(g.active) >= fats {
		return g, corrupt("FAT %d of %d is active", g.active, fats)
	}
	if g.active > 1 { // none is compared with it
		g.fats[0], g.fatCount, g.active = (reserved+int64(g.active)*fatSectors)*sector, 1, 0
	}
	g.rootArea = (reserved + fats*fatSectors) * sector
	g.rootBytes = rootEntries * slotBytes
	g.heap = g.rootArea + (g.rootBytes+sector-1)/sector*sector
	g.volumeBytes = sectors * sector
	if g.heap >= g.volumeBytes {
		return g, corrupt("%d sectors have no place for a cluster", sectors)
	}
	clusters := (g.volumeBytes - g.heap) / g.clusterBytes
	if g.bits == 0 {
		g.bits = 12
		if clusters > 0xFF4 {
			g.bits = 16
		}
	}
	most := map[int]int64{12: 0xFF4, 16: 0xFFF4, 32: 0x0FFFFFF4}[g.bits] // numbers above are marks
	g.clusters = uint32(max(0, min(clusters, g.fatBytes*8/int64(g.bits)-firstCluster, most)))
	if g.clusters == 0 {
		return g, corrupt("no clusters")
	}
	if g.bits == 32 {
		g.rootArea, g.rootBytes = 0, 0
		if !g.has(g.rootCluster) {
			return g, corrupt("root directory in cluster %d", g.rootCluster)
		}
	}
	g.parseExtended(b[extended:])
	return g, nil
}

// parseExtended reads what FAT12, FAT16 and FAT32 have behind the parameter
// block, in different places: the dirty bits that Linux and Windows set, the
// serial number, the label.
func (g *geometry) parseExtended(b []byte) {
	g.dirty, g.failed = b[1]&1 != 0, b[1]&2 != 0
	if b[2] == 0x28 || b[2] == 0x29 {
		g.serial, g.hasSerial = le.Uint32(b[3:]), true
	}
	if b[2] == 0x29 {
		copy(g.label[:], b[7:18])
	}
}

// readFSInfo gives the count of free clusters of FAT32's FSInfo sector, which
// is no more than a hint (fatgen103, "FAT32 FSInfo Sector Structure").
func (fs *FS) readFSInfo() (free uint32, ok bool) {
	if fs.geo.fsinfo == 0 {
		return 0, false
	}
	b := make([]byte, 512)
	if fs.readAt(b, fs.geo.fsinfo) != nil || le.Uint32(b) != 0x41615252 || le.Uint32(b[484:]) != 0x61417272 {
		return 0, false
	}
	free = le.Uint32(b[488:])
	return free, free <= fs.geo.clusters
}

const exfatBackup = 12 // the sector where the second boot region begins

// parseExfatBoot reads the boot sector of exFAT (specification, 3.1).
func parseExfatBoot(b []byte) (geometry, error) {
	sectorShift, clusterShift := b[108], b[109]
	if sectorShift < 9 || sectorShift > 12 || clusterShift > 25-sectorShift {
		return geometry{}, corrupt("sectors of 1<<%d bytes, clusters of 1<<%d sectors", sectorShift, clusterShift)
	}
	if len(bytes.Trim(b[11:64], "\x00")) > 0 {
		return geometry{}, corrupt("bytes that must be zero are not")
	}
	flags, fats := le.Uint16(b[106:]), b[110]
	if fats != 1 && fats != 2 {
		return geometry{}, corrupt("%d FATs", fats)
	}
	length := le.Uint64(b[72:])
	if length > 1<<62>>sectorShift {
		return geometry{}, corrupt("volume of %d sectors", length)
	}
	g := geometry{
		bits:         bitsExfat,
		sectorBytes:  1 << sectorShift,
		clusterBytes: 1 << (sectorShift + clusterShift),
		clusters:     le.Uint32(b[92:]),
		fatBytes:     int64(le.Uint32(b[84:])) << sectorShift,
		heap:         int64(le.Uint32(b[88:])) << sectorShift,
		rootCluster:  le.Uint32(b[96:]),
		serial:       le.Uint32(b[100:]),
		hasSerial:    true,
		dirty:        flags&2 != 0,
		failed:       flags&4 != 0,
		volumeBytes:  int64(length) << sectorShift,
		percentUsed:  b[112],
		fatCount:     1, // the second is of TexFAT and no copy
	}
	first := int64(le.Uint32(b[80:])) << sectorShift
	g.fats = [2]int64{first, first + g.fatBytes}
	if fats == 2 {
		g.active = int(flags & 1)
	}
	switch {
	case g.clusters == 0 || g.clusters > 0xFFFFFFF5:
		return g, corrupt("%d clusters", g.clusters)
	case g.fatBytes/4 < int64(g.clusters)+firstCluster:
		return g, corrupt("a FAT of %d bytes for %d clusters", g.fatBytes, g.clusters)
	case g.end() > g.volumeBytes:
		return g, corrupt("%d clusters in a volume of %d bytes", g.clusters, g.volumeBytes)
	case !g.has(g.rootCluster):
		return g, corrupt("root directory in cluster %d", g.rootCluster)
	}
	return g, nil
}

// checkExfatBoot verifies the checksum over a boot region's first 11 sectors
// (specification, 3.4). Flags and the count of used clusters, which change in
// use, are not part of it.
func (fs *FS) checkExfatBoot(off, sectorBytes int64) error {
	b := make([]byte, 12*sectorBytes)
	if err := fs.readAt(b, off); err != nil {
		return err
	}
	body, sums := b[:11*sectorBytes], b[11*sectorBytes:]
	var sum uint32
	for i, v := range body {
		if i != 106 && i != 107 && i != 112 {
			sum = bits.RotateLeft32(sum, -1) + uint32(v)
		}
	}
	if le.Uint32(sums) != sum {
		return corrupt("checksum")
	}
	return nil
}
