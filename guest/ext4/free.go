package ext4

import (
	"context"
	"errors"
	"fmt"
	"math/bits"

	"cairn/guest/filesystem"
)

var (
	_ filesystem.FreeSpace    = (*FS)(nil)
	_ filesystem.InodeRecords = (*FS)(nil)
)

// Flags of a group descriptor (Documentation/filesystems/ext4/group_descr.rst).
const groupBlockUninit = 0x2 // the block bitmap was never written

// Free gives the blocks that the bitmaps call free, as a replay of the journal
// leaves them. A group whose bitmap does not fit its checksum or its count of
// free blocks is passed over. Nothing is given when the bitmaps may not be the
// last word: no journal and not cleanly unmounted, a journal that could not be
// replayed, fast commits, errors found by the guest.
func (fs *FS) Free(ctx context.Context, fn func(start, end int64) error) error {
	if fs.unsure != "" {
		return fmt.Errorf("ext4: free space is not told: %s", fs.unsure)
	}
	s := fs.sb
	var start, end int64 // the range that is being gathered
	give := func(from, to int64) error {
		if from == end {
			end = to
			return nil
		}
		var err error
		if start < end {
			err = fn(start, end)
		}
		start, end = from, to
		return err
	}
	for g := range s.groups {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fs.freeInGroup(g, give); err != nil {
			return err
		}
	}
	return give(-1, -1) // the last one
}

// freeInGroup calls fn for the free ranges of group g, in bytes.
func (fs *FS) freeInGroup(g uint32, fn func(start, end int64) error) error {
	s := fs.sb
	d, err := fs.descriptor(g)
	if err != nil {
		return passCorrupt(err)
	}
	first := s.groupStart(g)
	blocks := min(uint64(s.blocksPerGroup), s.blocks-first)
	ratio := uint64(s.clusterSize / s.blockSize)
	clusters := (blocks + ratio - 1) / ratio
	want := uint64(le.Uint16(d[0xC:]))
	if s.descSize >= 64 {
		want |= uint64(le.Uint16(d[0x2C:])) << 16
	}
	var bitmap []byte
	if le.Uint16(d[0x12:])&groupBlockUninit != 0 && s.hasGroupChecksums() {
		bitmap = fs.freshBitmap(g, d, clusters)
	} else if bitmap, err = fs.blockBitmap(g, d, clusters); err != nil {
		return passCorrupt(err)
	}
	used := uint64(0)
	for i := uint64(0); i < clusters; i += 8 {
		b := bitmap[i/8]
		if clusters-i < 8 {
			b &= 1<<(clusters-i) - 1
		}
		used += uint64(bits.OnesCount8(b))
	}
	if clusters-used != want {
		return nil
	}
	limit := min(fs.size, int64(s.blocks)*s.blockSize)
	for i := uint64(0); i < clusters; {
		if bitmap[i/8] == 0xFF && i%8 == 0 {
			i += 8
			continue
		}
		if bitmap[i/8]>>(i%8)&1 != 0 {
			i++
			continue
		}
		from := i
		for i < clusters && bitmap[i/8]>>(i%8)&1 == 0 {
			if bitmap[i/8] == 0 && i%8 == 0 && clusters-i >= 8 {
				i += 8
			} else {
				i++
			}
		}
		a := int64(first+from*ratio) * s.blockSize
		b := min(int64(first+min(i*ratio, blocks))*s.blockSize, limit)
		if a < b {
			if err := fn(a, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// passCorrupt passes over a damaged group, whose blocks are taken for used.
func passCorrupt(err error) error {
	if errors.Is(err, filesystem.ErrCorrupt) {
		return nil
	}
	return err
}

func (s *super) hasGroupChecksums() bool {
	return s.metadataCsum() || s.roCompat&roGdtCsum != 0
}

// blockBitmap reads group g's bitmap, one bit for each cluster, and verifies
// its checksum.
func (fs *FS) blockBitmap(g uint32, d []byte, clusters uint64) ([]byte, error) {
	s := fs.sb
	block := uint64(le.Uint32(d))
	sum := uint32(le.Uint16(d[0x18:]))
	if s.descSize >= 64 {
		block |= uint64(le.Uint32(d[0x20:])) << 32
		sum |= uint32(le.Uint16(d[0x38:])) << 16
	}
	b, err := fs.readBlock(block)
	if err != nil {
		return nil, err
	}
	if s.metadataCsum() {
		got := crc32c(s.seed, b[:s.blocksPerGroup/uint32(s.clusterSize/s.blockSize)/8])
		if s.descSize < 64 {
			got &= 0xFFFF
		}
		if got != sum {
			return nil, corrupt("checksum of the block bitmap of group %d", g)
		}
	}
	if uint64(len(b))*8 < clusters {
		return nil, corrupt("group %d has more clusters than bits", g)
	}
	return b, nil
}

// freshBitmap is the bitmap of a group that was never written to: what lies in
// it of the filesystem itself. What of another group's lies in it is found by
// the descriptor's count, which is less then.
func (fs *FS) freshBitmap(g uint32, d []byte, clusters uint64) []byte {
	s := fs.sb
	bitmap := make([]byte, (clusters+7)/8)
	first, ratio := s.groupStart(g), uint64(s.clusterSize/s.blockSize)
	mark := func(block, n uint64) {
		for b := max(block, first); b < block+n && b < first+clusters*ratio; b++ {
			c := (b - first) / ratio
			bitmap[c/8] |= 1 << (c % 8)
		}
	}
	perBlock := uint32(int(s.blockSize) / s.descSize)
	meta := s.incompat&incompatMetaBG != 0 && g/perBlock >= s.firstMetaBG
	if s.hasBackup(g) {
		mark(first, 1)
		if !meta {
			tables := uint64((s.groups + perBlock - 1) / perBlock)
			if s.incompat&incompatMetaBG != 0 {
				tables = min(tables, uint64(s.firstMetaBG))
			}
			mark(first+1, tables+uint64(s.reservedDescs))
		}
	}
	if in := g % perBlock; meta && (in == 0 || in == 1 || in == perBlock-1) {
		mark(first, 2) // the superblock, if it has one, and the descriptors
	}
	high := func(off int) uint64 {
		if s.descSize < 64 {
			return 0
		}
		return uint64(le.Uint32(d[off:])) << 32
	}
	mark(uint64(le.Uint32(d))|high(0x20), 1)
	mark(uint64(le.Uint32(d[4:]))|high(0x24), 1)
	mark(s.inodeTable(d), (uint64(s.inodesPerGroup)*uint64(s.inodeSize)+uint64(s.blockSize)-1)/uint64(s.blockSize))
	return bitmap
}

// Record gives where an inode lies in the inode table. Setting anything of an
// inode, also an attribute that lies in a block of its own, changes its ctime.
func (fs *FS) Record(ctx context.Context, ino filesystem.Ino) (start, end int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	if fs.unsure != "" {
		return 0, 0, fmt.Errorf("inode %d: %w: an inode and its contents may not be of one instant: %s", ino, filesystem.ErrUnsupported, fs.unsure)
	}
	s := fs.sb
	if ino == 0 || ino > filesystem.Ino(s.inodes) {
		return 0, 0, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotExist)
	}
	n := uint32(ino)
	d, err := fs.descriptor((n - 1) / s.inodesPerGroup)
	if err != nil {
		return 0, 0, fmt.Errorf("inode %d: %w", ino, err)
	}
	start = int64(s.inodeTable(d))*s.blockSize + int64((n-1)%s.inodesPerGroup)*int64(s.inodeSize)
	return start, start + int64(s.inodeSize), nil
}

// Replayed gives the blocks that the journal replaces.
func (fs *FS) Replayed(fn func(start, end int64)) {
	for _, r := range fs.replayed.blocks {
		fn(int64(r.home)*fs.sb.blockSize, int64(r.home+1)*fs.sb.blockSize)
	}
}
