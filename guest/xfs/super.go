package xfs

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"

	"cairn/guest/filesystem"
)

const (
	superSize  = 512 // what is parsed; it fills a sector
	superMagic = "XFSB"
	superCRC   = 224

	// sectorSize is the unit of disk addresses and of the log ("basic block").
	sectorSize = 512
)

// super is what the reader keeps of a superblock (Allocation Groups,
// "Superblocks").
type super struct {
	blockSize             int64 // bytes
	dirBlock              int64 // bytes of a directory block
	blocks                uint64
	agBlocks, agCount     uint32
	agBlockLog, inodeLog  uint // bits of a block number in its group, of an inode number in its block
	sectorSize            int64
	inodeSize             int
	inodeAlign            uint32 // blocks
	root                  uint64
	logStart              uint64 // 0: the log lies on another device
	logBlocks             uint32
	realtime              bool
	v5, ftype, ci, logV2  bool
	incompat, logIncompat uint32
	uuid, metaUUID        [16]byte
	label                 string
	inodes, freeInodes    uint64
	freeBlocks            uint64
	checksumError         error
}

// parseSuper reads a superblock. A wrong checksum is kept in checksumError;
// everything that would mislead the reader is an error.
func parseSuper(b []byte) (*super, error) {
	if len(b) < superSize || string(b[:4]) != superMagic {
		return nil, corrupt("no XFS superblock")
	}
	version := be.Uint16(b[100:])
	s := &super{
		blockSize:  int64(be.Uint32(b[4:])),
		blocks:     be.Uint64(b[8:]),
		realtime:   be.Uint64(b[16:]) != 0,
		logStart:   be.Uint64(b[48:]),
		root:       be.Uint64(b[56:]),
		agBlocks:   be.Uint32(b[84:]),
		agCount:    be.Uint32(b[88:]),
		logBlocks:  be.Uint32(b[96:]),
		sectorSize: int64(be.Uint16(b[102:])),
		inodeSize:  int(be.Uint16(b[104:])),
		label:      string(bytes.TrimRight(b[108:120], "\x00")),
		inodeLog:   uint(b[123]),
		agBlockLog: uint(b[124]),
		inodes:     be.Uint64(b[128:]),
		freeInodes: be.Uint64(b[136:]),
		freeBlocks: be.Uint64(b[144:]),
		inodeAlign: be.Uint32(b[180:]),
		v5:         version&versionMask == 5,
		ci:         version&versionAsciiCI != 0,
	}
	copy(s.uuid[:], b[32:48])
	s.metaUUID = s.uuid
	s.logV2 = s.v5 || version&versionLogV2 != 0
	if err := s.parseFeatures(b, version); err != nil {
		return nil, err
	}
	if b[192] > 7 {
		return nil, corrupt("superblock: directory blocks of 2^%d blocks", b[192])
	}
	s.dirBlock = s.blockSize << b[192]
	return s, s.check()
}

func (s *super) parseFeatures(b []byte, version uint16) error {
	features2 := be.Uint32(b[200:])
	switch version & versionMask {
	case 4:
		if version&versionDirV2 == 0 || version&versionShared != 0 {
			return fmt.Errorf("%w: superblock version %#x", filesystem.ErrUnsupported, version)
		}
		if unknown := features2 &^ features2Known; version&versionMoreBits != 0 && unknown != 0 {
			return fmt.Errorf("%w: superblock features2 %#x", filesystem.ErrUnsupported, unknown)
		}
		s.ftype = version&versionMoreBits != 0 && features2&features2Ftype != 0
	case 5:
		if !checksumFits(b[:s.superLength()], superCRC) {
			s.checksumError = corrupt("checksum")
		}
		s.incompat, s.logIncompat = be.Uint32(b[216:]), be.Uint32(b[220:])
		if unknown := s.incompat &^ knownIncompat; unknown != 0 && s.checksumError == nil {
			return fmt.Errorf("%w: %s", filesystem.ErrUnsupported, featureNames(unknown))
		}
		s.ftype = s.incompat&incompatFtype != 0
		if s.incompat&incompatMetaUUID != 0 {
			copy(s.metaUUID[:], b[248:264])
		}
	default:
		return fmt.Errorf("%w: superblock version %d", filesystem.ErrUnsupported, version&versionMask)
	}
	return nil
}

// superLength is what the checksum covers: the sector. The rest of larger
// sectors is zero, but counts.
func (s *super) superLength() int64 {
	if s.sectorSize >= superSize && s.sectorSize <= 32768 && s.sectorSize&(s.sectorSize-1) == 0 {
		return s.sectorSize
	}
	return superSize
}

// check verifies the geometry.
func (s *super) check() error {
	bs := s.blockSize
	switch {
	case bs < 512 || bs > 65536 || bs&(bs-1) != 0:
		return corrupt("superblock: block size %d", bs)
	case s.sectorSize < 512 || s.sectorSize > bs || s.sectorSize&(s.sectorSize-1) != 0:
		return corrupt("superblock: sector size %d", s.sectorSize)
	case s.inodeSize < 256 || s.inodeSize > 2048 || s.inodeSize&(s.inodeSize-1) != 0 || s.v5 && s.inodeSize < 512:
		return corrupt("superblock: inode size %d", s.inodeSize)
	case s.inodeLog > 8 || int64(s.inodeSize)<<s.inodeLog != bs:
		return corrupt("superblock: 2^%d inodes in a block", s.inodeLog)
	case s.agBlocks < 64 || s.agBlockLog != uint(bits.Len32(s.agBlocks-1)):
		return corrupt("superblock: %d blocks in a group, 2^%d", s.agBlocks, s.agBlockLog)
	case s.agCount == 0 || s.blocks > 1<<54 || s.blocks > uint64(s.agBlocks)*uint64(s.agCount) ||
		s.blocks <= uint64(s.agBlocks)*uint64(s.agCount-1):
		return corrupt("superblock: %d blocks in %d groups of %d", s.blocks, s.agCount, s.agBlocks)
	case s.dirBlock > 65536:
		return corrupt("superblock: directory blocks of %d bytes", s.dirBlock)
	}
	return nil
}

// groupBlocks is the number of blocks in group ag; the last may be short.
func (s *super) groupBlocks(ag uint32) uint32 {
	if ag == s.agCount-1 {
		return uint32(s.blocks - uint64(ag)*uint64(s.agBlocks))
	}
	return s.agBlocks
}

// offset is the byte in the image of count filesystem blocks from block on. A
// block number is a group and a block in it.
func (s *super) offset(block, count uint64) (int64, error) {
	ag, in := block>>s.agBlockLog, block&(1<<s.agBlockLog-1)
	if ag >= uint64(s.agCount) {
		return 0, corrupt("block %#x lies in group %d of %d", block, ag, s.agCount)
	}
	if n := uint64(s.groupBlocks(uint32(ag))); in >= n || count > n-in {
		return 0, corrupt("blocks %#x+%d lie outside their group", block, count)
	}
	return int64(ag*uint64(s.agBlocks)+in) * s.blockSize, nil
}

// readSuper finds the superblock: the first one, or the copy in group 1 with
// a note when the first is damaged.
func (fs *FS) readSuper(ctx context.Context) error {
	first, err := fs.superAt(0)
	if err == nil && first.checksumError == nil {
		fs.sb = first
		return nil
	}
	if first != nil && err == nil {
		err = first.checksumError
	}
	for _, off := range fs.superCopies(first) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s, e := fs.superAt(off)
		if e != nil || s.checksumError != nil || int64(s.agBlocks)*s.blockSize != off {
			continue
		}
		fs.sb, fs.fromCopy = s, true
		fs.note("superblock damaged (%v); the copy in group 1 is used", err)
		return nil
	}
	if first != nil && first.incompat&^knownIncompat == 0 {
		fs.sb = first
		fs.note("superblock damaged (%v) and no copy found; it is used as it is", err)
		return nil
	}
	return err
}

// superAt gives the superblock at a byte of the image.
func (fs *FS) superAt(off int64) (*super, error) {
	b := make([]byte, superSize)
	if err := fs.readMeta(b, off); err != nil {
		return nil, err
	}
	if size := int64(be.Uint16(b[102:])); size > superSize && size <= 32768 && size&(size-1) == 0 {
		b = make([]byte, size)
		if err := fs.readMeta(b, off); err != nil {
			return nil, err
		}
	}
	s, err := parseSuper(b)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// superCopies lists where group 1 may begin: where the damaged superblock says,
// and where mkfs.xfs puts it when it makes four groups.
func (fs *FS) superCopies(first *super) []int64 {
	var places []int64
	if first != nil {
		places = append(places, int64(first.agBlocks)*first.blockSize)
	}
	b := make([]byte, superSize)
	if fs.readMeta(b, 0) == nil {
		places = append(places, int64(be.Uint32(b[84:]))*int64(be.Uint32(b[4:])&0x1FFFF))
	}
	for _, bs := range []int64{4096, 1024, 512, 2048, 8192, 16384, 32768, 65536} {
		places = append(places, fs.size/bs/4*bs, (fs.size/bs+3)/4*bs)
	}
	return places
}
