package xfs

import (
	"context"
	"fmt"
)

// Allocation groups (Allocation Groups): the superblock's copy, the AGF, the
// AGI and the AGFL fill the first four sectors.
const (
	agfMagic = "XAGF"
	agiMagic = "XAGI"

	// maxCountedGroups bounds how many groups Open reads to sum the free
	// space. Larger filesystems give what the superblock last recorded.
	maxCountedGroups = 1024
)

// counts are those of statfs(2).
type counts struct {
	blocks, inodes, freeInodes uint64
}

// groupOffset is the byte where group ag begins.
func (s *super) groupOffset(ag uint32) int64 {
	return int64(ag) * int64(s.agBlocks) * s.blockSize
}

// groupHeader reads sector n of group ag and verifies it.
func (fs *FS) groupHeader(ag uint32, n int, magic string, crc, uuid int) ([]byte, error) {
	s := fs.sb
	off := s.groupOffset(ag) + int64(n)*s.sectorSize
	b := make([]byte, s.sectorSize)
	if err := fs.readMeta(b, off); err != nil {
		return nil, err
	}
	fail := func(what string) error {
		return fmt.Errorf("%s of group %d at %d: %w", magic, ag, off, corrupt("%s", what))
	}
	switch {
	case string(b[:4]) != magic:
		return nil, fail("magic number")
	case magic != agflMagic && be.Uint32(b[8:]) != ag || magic == agflMagic && be.Uint32(b[4:]) != ag:
		return nil, fail("it belongs to another group")
	case !s.v5:
		return b, nil
	case !fs.checksumFits(b, crc) && !fs.replayed.touches(off, len(b)):
		return nil, fail("checksum")
	case [16]byte(b[uuid:uuid+16]) != s.metaUUID:
		return nil, fail("it belongs to another filesystem")
	}
	return b, nil
}

// agf reads the header of a group's free space.
func (fs *FS) agf(ag uint32) ([]byte, error) {
	b, err := fs.groupHeader(ag, 1, agfMagic, 216, 64)
	if err != nil {
		return nil, err
	}
	if n := be.Uint32(b[12:]); n != fs.sb.groupBlocks(ag) {
		return nil, corrupt("AGF of group %d: %d blocks, want %d", ag, n, fs.sb.groupBlocks(ag))
	}
	return b, nil
}

// count sums the free blocks and inodes of the groups, as the kernel does at a
// mount after an unclean end.
func (fs *FS) count(ctx context.Context) error {
	s := fs.sb
	fs.counts = counts{blocks: s.freeBlocks, inodes: s.inodes, freeInodes: s.freeInodes}
	if s.agCount > maxCountedGroups {
		return nil
	}
	var sum counts
	for ag := range s.agCount {
		if err := ctx.Err(); err != nil {
			return err
		}
		agf, err := fs.agf(ag)
		if err != nil {
			return nil // the superblock's numbers must do
		}
		agi, err := fs.groupHeader(ag, 2, agiMagic, 312, 296)
		if err != nil {
			return nil
		}
		sum.blocks += uint64(be.Uint32(agf[52:])) + uint64(be.Uint32(agf[48:])) + uint64(be.Uint32(agf[60:]))
		sum.inodes += uint64(be.Uint32(agi[16:]))
		sum.freeInodes += uint64(be.Uint32(agi[28:]))
	}
	fs.counts = sum
	return nil
}
