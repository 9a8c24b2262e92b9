package ext4

import (
	"context"
)

// maxCountedGroups bounds how many group descriptors Open reads to sum the
// free space (4,096 groups of 4 KiB blocks are 512 GiB). Larger filesystems
// give what the superblock last recorded.
const maxCountedGroups = 4096

type freeCounts struct {
	clusters, inodes uint64
}

// descriptor gives group g's descriptor, from a backup copy when the first
// one's checksum is wrong or it cannot be read.
func (fs *FS) descriptor(g uint32) ([]byte, error) {
	d, err := fs.descriptorIn(g, 0)
	if err == nil {
		return d, nil
	}
	s := fs.sb
	perBlock := uint32(int(s.blockSize) / s.descSize)
	metaBG := s.incompat&incompatMetaBG != 0 && g/perBlock >= s.firstMetaBG
	homes := []uint32{1, 3, 5, 7, s.backupGroups[0], s.backupGroups[1]}
	if metaBG {
		homes = []uint32{1, perBlock - 1}
	}
	for _, home := range homes {
		if home == 0 || home >= s.groups || !metaBG && !s.hasBackup(home) {
			continue
		}
		if b, e := fs.descriptorIn(g, home); e == nil {
			fs.note("group descriptors damaged; the copies in group %d are used", home)
			return b, nil
		}
	}
	return nil, err
}

// descriptorIn gives group g's descriptor of the copy that belongs to group home.
func (fs *FS) descriptorIn(g, home uint32) ([]byte, error) {
	s := fs.sb
	perBlock := uint32(int(s.blockSize) / s.descSize)
	key := blockKey{block: s.descBlock(g, home), owner: g / perBlock, kind: kindDescriptors}
	v := fs.cache.get(key)
	if v == nil {
		b, err := fs.readBlock(key.block)
		if err != nil {
			return nil, err
		}
		v = &verified{data: b}
		for i := range perBlock {
			if !s.descriptorFits(b[int(i)*s.descSize:][:s.descSize], g/perBlock*perBlock+i) {
				v.markBad(int(i), int(perBlock))
			}
		}
		fs.cache.put(key, v)
	}
	i := int(g % perBlock)
	if v.isBad(i) {
		return nil, corrupt("checksum of group descriptor %d", g)
	}
	d := v.data[i*s.descSize:][:s.descSize]
	if t := s.inodeTable(d); t == 0 || t >= s.blocks {
		return nil, corrupt("group descriptor %d: inode table at block %d", g, t)
	}
	return d, nil
}

// descriptorFits verifies the checksum of group g's descriptor.
func (s *super) descriptorFits(d []byte, g uint32) bool {
	sum := le.Uint16(d[0x1E:])
	switch {
	case s.metadataCsum():
		c := crc32cUint32(s.seed, g)
		c = crc32c(c, d[:0x1E])
		c = crc32c(c, []byte{0, 0})
		return uint16(crc32c(c, d[0x20:])) == sum
	case s.roCompat&roGdtCsum != 0:
		c := crc16(0xFFFF, s.uuid[:])
		c = crc16(c, le.AppendUint32(nil, g))
		c = crc16(c, d[:0x1E])
		if s.incompat&incompat64Bit != 0 {
			c = crc16(c, d[0x20:])
		}
		return c == sum
	}
	return true
}

func (s *super) inodeTable(d []byte) uint64 {
	t := uint64(le.Uint32(d[0x8:]))
	if s.descSize >= 64 {
		t |= uint64(le.Uint32(d[0x28:])) << 32
	}
	return t
}

func (fs *FS) countFree(ctx context.Context) error {
	s := fs.sb
	fs.free = freeCounts{clusters: s.freeBlocks, inodes: uint64(s.freeInodes)}
	if s.groups > maxCountedGroups {
		return nil
	}
	var sum freeCounts
	for g := range s.groups {
		if err := ctx.Err(); err != nil {
			return err
		}
		d, err := fs.descriptor(g)
		if err != nil {
			return nil // the superblock's numbers must do; the group's inodes will tell
		}
		sum.clusters += uint64(le.Uint16(d[0xC:]))
		sum.inodes += uint64(le.Uint16(d[0xE:]))
		if s.descSize >= 64 {
			sum.clusters += uint64(le.Uint16(d[0x2C:])) << 16
			sum.inodes += uint64(le.Uint16(d[0x2E:])) << 16
		}
	}
	fs.free = sum
	return nil
}
