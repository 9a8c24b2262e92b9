package ext4

import (
	"bytes"
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53
)

// super is what the reader keeps of a superblock
// (Documentation/filesystems/ext4/super.rst).
type super struct {
	inodes                     uint32
	blocks                     uint64
	freeBlocks                 uint64 // clusters with bigalloc
	freeInodes                 uint32
	firstBlock                 uint32
	blockSize, clusterSize     int64 // bytes
	blocksPerGroup             uint32
	inodesPerGroup             uint32
	groups                     uint32
	inodeSize, descSize        int
	groupNr                    uint16 // the group that this copy lies in
	compat, incompat, roCompat uint32
	firstMetaBG                uint32
	backupGroups               [2]uint32 // of sparse_super2
	uuid                       [16]byte
	label                      string
	journalIno                 uint32
	journalBackup              [17]uint32 // i_block, i_size_high, i_size
	journalBackupValid         bool
	hashSeed                   [4]uint32
	hashVersion                uint8
	hashUnsigned               bool
	seed                       uint32 // CRC-32C of the UUID, or csum_seed
	hasErrors                  bool   // the guest kernel found damage
	clean                      bool   // unmounted
	reservedDescs              uint16 // blocks kept for more descriptors, behind them
	checksumError              error  // the copy's own checksum does not fit
}

func (s *super) metadataCsum() bool { return s.roCompat&roMetadataCsum != 0 }

// parseSuper reads a superblock of 1024 bytes. A wrong checksum is kept in
// checksumError; everything that would mislead the reader is an error.
func parseSuper(b []byte) (*super, error) {
	if len(b) < superSize || le.Uint16(b[0x38:]) != superMagic {
		return nil, corrupt("no ext superblock")
	}
	s := &super{
		inodes:         le.Uint32(b[0x0:]),
		blocks:         uint64(le.Uint32(b[0x4:])),
		freeBlocks:     uint64(le.Uint32(b[0xC:])),
		freeInodes:     le.Uint32(b[0x10:]),
		firstBlock:     le.Uint32(b[0x14:]),
		blocksPerGroup: le.Uint32(b[0x20:]),
		inodesPerGroup: le.Uint32(b[0x28:]),
		inodeSize:      128,
		descSize:       32,
	}
	if le.Uint32(b[0x4C:]) > 0 { // revision 0 has none of these fields
		s.inodeSize = int(le.Uint16(b[0x58:]))
		s.groupNr = le.Uint16(b[0x5A:])
		s.compat, s.incompat, s.roCompat = le.Uint32(b[0x5C:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	}
	copy(s.uuid[:], b[0x68:])
	label, _, _ := bytes.Cut(b[0x78:0x88], []byte{0})
	s.label = string(label)
	if s.incompat&incompatJournalDev != 0 {
		return nil, fmt.Errorf("%w: an external ext journal, not a filesystem", filesystem.ErrUnsupported)
	}
	if unknown := s.incompat &^ knownIncompat; unknown != 0 {
		return nil, fmt.Errorf("%w: ext filesystem with %s", filesystem.ErrUnsupported, featureNames(unknown))
	}
	s.parseVariable(b)
	if err := s.checkGeometry(le.Uint32(b[0x18:]), le.Uint32(b[0x1C:])); err != nil {
		return nil, err
	}
	if s.metadataCsum() && crc32c(^uint32(0), b[:0x3FC]) != le.Uint32(b[0x3FC:]) {
		s.checksumError = corrupt("superblock checksum")
	}
	return s, nil
}

// parseVariable reads the fields whose meaning depends on features.
func (s *super) parseVariable(b []byte) {
	if s.incompat&incompat64Bit != 0 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.freeBlocks |= uint64(le.Uint32(b[0x158:])) << 32
		s.descSize = int(le.Uint16(b[0xFE:]))
	}
	s.firstMetaBG = le.Uint32(b[0x104:])
	s.backupGroups = [2]uint32{le.Uint32(b[0x24C:]), le.Uint32(b[0x250:])}
	s.journalIno = le.Uint32(b[0xE0:])
	state := le.Uint16(b[0x3A:])
	s.clean, s.hasErrors = state&1 != 0, state&2 != 0
	s.reservedDescs = le.Uint16(b[0xCE:])
	for i := range s.hashSeed {
		s.hashSeed[i] = le.Uint32(b[0xEC+4*i:])
	}
	s.hashVersion = b[0xFC]
	s.hashUnsigned = le.Uint32(b[0x160:])&2 != 0
	s.journalBackupValid = b[0xFD] == 1
	for i := range s.journalBackup {
		s.journalBackup[i] = le.Uint32(b[0x10C+4*i:])
	}
	s.seed = crc32c(^uint32(0), s.uuid[:])
	if s.incompat&incompatCsumSeed != 0 {
		s.seed = le.Uint32(b[0x270:])
	}
}

func (s *super) checkGeometry(logBlock, logCluster uint32) error {
	if logBlock > 6 {
		return corrupt("superblock: block size 2^%d KiB", logBlock)
	}
	s.blockSize = 1024 << logBlock
	s.clusterSize = s.blockSize
	if s.roCompat&roBigalloc != 0 {
		if logCluster > 20 || logCluster < logBlock {
			return corrupt("superblock: cluster size 2^%d KiB", logCluster)
		}
		s.clusterSize = 1024 << logCluster
	}
	bs := int(s.blockSize)
	switch {
	case s.inodeSize < 128 || s.inodeSize > bs || s.inodeSize&(s.inodeSize-1) != 0:
		return corrupt("superblock: inode size %d", s.inodeSize)
	case s.descSize < 32 || s.descSize > bs || s.descSize&(s.descSize-1) != 0,
		s.incompat&incompat64Bit != 0 && s.descSize < 64:
		return corrupt("superblock: group descriptor size %d", s.descSize)
	case s.inodesPerGroup == 0 || int64(s.inodesPerGroup) > 8*s.blockSize:
		return corrupt("superblock: %d inodes per group", s.inodesPerGroup)
	case s.blocksPerGroup == 0 || int64(s.blocksPerGroup) > 8*s.blockSize*(s.clusterSize/s.blockSize):
		return corrupt("superblock: %d blocks per group", s.blocksPerGroup)
	case s.firstBlock > 1 || s.blocks <= uint64(s.firstBlock) || s.blocks > 1<<62/uint64(s.blockSize):
		return corrupt("superblock: %d blocks", s.blocks)
	}
	groups := (s.blocks - uint64(s.firstBlock) + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup)
	if groups > 1<<32-1 || uint64(s.inodes) > groups*uint64(s.inodesPerGroup) || s.inodes < rootIno {
		return corrupt("superblock: %d inodes in %d groups", s.inodes, groups)
	}
	s.groups = uint32(groups)
	return nil
}

// typeName is what blkid and mount call the filesystem.
func (s *super) typeName() string {
	switch {
	case s.incompat&^ext3Incompat != 0 || s.roCompat&^ext3RoCompat != 0:
		return "ext4"
	case s.compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// hasBackup says whether group g begins with a copy of the superblock.
func (s *super) hasBackup(g uint32) bool {
	if g == 0 {
		return true
	}
	if s.compat&compatSparseSuper2 != 0 {
		return g == s.backupGroups[0] || g == s.backupGroups[1]
	}
	if g == 1 || s.roCompat&roSparseSuper == 0 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		for p := base; p <= uint64(g); p *= base {
			if p == uint64(g) {
				return true
			}
		}
	}
	return false
}

// groupStart is the first block of group g.
func (s *super) groupStart(g uint32) uint64 {
	return uint64(s.firstBlock) + uint64(g)*uint64(s.blocksPerGroup)
}

// descBlock is the block with group g's descriptor in the copy that belongs
// to group home (0: the first).
func (s *super) descBlock(g, home uint32) uint64 {
	perBlock := uint32(int(s.blockSize) / s.descSize)
	table := g / perBlock
	one := uint64(1)
	if s.blockSize == 1024 && s.firstBlock == 0 { // bigalloc with 1 KiB blocks
		one = 2
	}
	if s.incompat&incompatMetaBG == 0 || table < s.firstMetaBG {
		if home != 0 {
			one = 1
		}
		return s.groupStart(home) + one + uint64(table)
	}
	first := table * perBlock // of the meta group, whose copies lie in its groups 0, 1 and last
	block := s.groupStart(first + home)
	if s.hasBackup(first + home) {
		if first+home == 0 {
			return block + one
		}
		block++
	}
	return block
}

// readSuper finds the superblock: the first one, or a backup with a note when
// the first is damaged.
func (fs *FS) readSuper(ctx context.Context) error {
	b := make([]byte, superSize)
	err := fs.readAt(b, superOffset)
	var first *super
	if err == nil {
		first, err = parseSuper(b)
	}
	if err == nil && first.checksumError == nil && first.groupNr == 0 {
		fs.sb = first
		return nil
	}
	if err == nil && first.checksumError != nil {
		err = first.checksumError
	}
	if s := fs.findBackup(ctx); s != nil {
		fs.sb, fs.fromBackup = s, true
		if err == nil {
			err = corrupt("superblock claims to be a backup")
		}
		fs.note("superblock damaged (%v); the backup in group %d is used", err, s.groupNr)
		return nil
	}
	if first != nil {
		fs.sb = first
		fs.note("superblock damaged (%v) and no backup found; it is used as it is", err)
		return nil
	}
	return err
}

// findBackup tries the places where mke2fs puts backups, for all block sizes.
// A group has as many clusters as its bitmap of one block has bits; clusters
// are blocks, or 16 of them with bigalloc.
func (fs *FS) findBackup(ctx context.Context) *super {
	for log := range 7 {
		blockSize := int64(1024) << log
		for _, cluster := range []int64{1, 16} {
			for _, g := range []int64{1, 3, 5, 7, 9, 25, 27, 49} {
				off := g * 8 * blockSize * blockSize * cluster
				if log == 0 && cluster == 1 {
					off += blockSize
				}
				if ctx.Err() != nil || off+superSize > fs.size {
					break
				}
				if s := fs.backupAt(off); s != nil && s.blockSize == blockSize && int64(s.groupNr) == g {
					return s
				}
			}
		}
	}
	return nil
}

func (fs *FS) backupAt(off int64) *super {
	b := make([]byte, superSize)
	if fs.readAt(b, off) != nil {
		return nil
	}
	s, err := parseSuper(b)
	if err != nil || s.checksumError != nil {
		return nil
	}
	return s
}
