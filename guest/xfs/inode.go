package xfs

import (
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

// Data fork formats (On-disk Inode, "Inode Core").
const (
	formatDevice  = 0
	formatLocal   = 1
	formatExtents = 2
	formatBtree   = 3

	inodeMagic = 0x494E // "IN"
	coreV2     = 100    // bytes of an inode before its data fork
	coreV3     = 176
	inodeCRC   = 100

	flagRealtime  = 0x1
	flags2Bigtime = 0x8
	flags2Nrext64 = 0x10
)

// inode is one inode in place: raw lies in a cached block and must not be
// changed (On-disk Inode).
type inode struct {
	ino uint64
	raw []byte
}

func (in *inode) mode() uint32    { return uint32(be.Uint16(in.raw[2:])) }
func (in *inode) version() uint8  { return in.raw[4] }
func (in *inode) format() uint8   { return in.raw[5] }
func (in *inode) isDir() bool     { return in.mode()&filesystem.ModeType == filesystem.ModeDir }
func (in *inode) isRegular() bool { return in.mode()&filesystem.ModeType == filesystem.ModeRegular }
func (in *inode) isSymlink() bool { return in.mode()&filesystem.ModeType == filesystem.ModeSymlink }
func (in *inode) size() int64     { return int64(be.Uint64(in.raw[56:])) }
func (in *inode) flags() uint16   { return be.Uint16(in.raw[90:]) }

func (in *inode) flags2() uint64 {
	if in.version() < 3 {
		return 0
	}
	return be.Uint64(in.raw[120:])
}

func (in *inode) nlink() uint32 {
	if in.version() == 1 {
		return uint32(be.Uint16(in.raw[6:]))
	}
	return be.Uint32(in.raw[16:])
}

// core is the length of the fixed fields.
func (in *inode) core() int {
	if in.version() >= 3 {
		return coreV3
	}
	return coreV2
}

// extents gives the number of extents of the data and of the attribute fork;
// nrext64 moved the counters.
func (in *inode) extents() (data, attr uint64) {
	if in.flags2()&flags2Nrext64 != 0 {
		return be.Uint64(in.raw[24:]), uint64(be.Uint32(in.raw[76:]))
	}
	return uint64(be.Uint32(in.raw[76:])), uint64(be.Uint16(in.raw[80:]))
}

// forkOffset is where the attribute fork begins in the inode; 0: there is none.
func (in *inode) forkOffset() int {
	if in.raw[82] == 0 {
		return 0
	}
	return in.core() + int(in.raw[82])*8
}

// dataFork is what lies behind the fixed fields.
func (in *inode) dataFork() []byte {
	if o := in.forkOffset(); o != 0 {
		return in.raw[in.core():o]
	}
	return in.raw[in.core():]
}

// inodeOffset is the byte in the image where an inode's record lies.
func (s *super) inodeOffset(n uint64) (int64, error) {
	off, err := s.offset(n>>s.inodeLog, 1)
	if n == 0 || err != nil {
		return 0, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotExist)
	}
	return off + int64(n&(1<<s.inodeLog-1))*int64(s.inodeSize), nil
}

// inode finds inode n and checks that it is in use and undamaged.
func (fs *FS) inode(ctx context.Context, n filesystem.Ino) (inode, error) {
	if err := ctx.Err(); err != nil {
		return inode{}, err
	}
	off, err := fs.sb.inodeOffset(uint64(n))
	if err != nil {
		return inode{}, err
	}
	in, err := fs.rawInode(uint64(n), off)
	if err != nil {
		return inode{}, fmt.Errorf("inode %d at %d: %w", n, off, err)
	}
	return in, nil
}

func (fs *FS) rawInode(n uint64, off int64) (inode, error) {
	s := fs.sb
	key := blockKey{offset: off &^ (s.blockSize - 1), kind: kindInodes}
	v := fs.cache.get(key)
	if v == nil {
		var err error
		if v, err = fs.readInodes(key); err != nil {
			return inode{}, err
		}
	}
	i := int(off-key.offset) / s.inodeSize
	in := inode{ino: n, raw: v.data[i*s.inodeSize:][:s.inodeSize]}
	switch {
	case be.Uint16(in.raw) != inodeMagic:
		return inode{}, corrupt("no inode here")
	case v.isBad(i):
		return inode{}, corrupt("checksum")
	}
	return in, in.check(fs.sb)
}

// check verifies what the rest of the code relies on.
func (in *inode) check(s *super) error {
	version := in.version()
	switch {
	case s.v5 && version != 3 || !s.v5 && version != 1 && version != 2:
		return corrupt("inode version %d", version)
	case version == 3 && be.Uint64(in.raw[152:]) != in.ino:
		return corrupt("it says that it is inode %d", be.Uint64(in.raw[152:]))
	case version == 3 && [16]byte(in.raw[160:176]) != s.metaUUID:
		return corrupt("it belongs to another filesystem")
	case in.mode() == 0:
		return corrupt("not in use")
	case in.nlink() == 0:
		return corrupt("deleted")
	case in.size() < 0:
		return corrupt("size")
	case in.forkOffset() >= len(in.raw):
		return corrupt("attribute fork at %d", in.forkOffset())
	}
	return nil
}

// readInodes reads a block of inodes and verifies the checksums of all.
func (fs *FS) readInodes(key blockKey) (*verified, error) {
	s := fs.sb
	v := &verified{data: make([]byte, s.blockSize)}
	if err := fs.readMeta(v.data, key.offset); err != nil {
		return nil, err
	}
	total := len(v.data) / s.inodeSize
	for i := range total {
		if raw := v.data[i*s.inodeSize:][:s.inodeSize]; s.v5 && !fs.checksumFits(raw, inodeCRC) &&
			!fs.replayed.touches(key.offset+int64(i*s.inodeSize), s.inodeSize) {
			v.markBad(i, total)
		}
	}
	fs.cache.put(key, v)
	return v, nil
}

// Attr gives an inode's attributes.
func (fs *FS) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	raw := in.raw
	a := filesystem.Attr{
		Ino:    ino,
		Mode:   in.mode(),
		UID:    be.Uint32(raw[8:]),
		GID:    be.Uint32(raw[12:]),
		Nlink:  in.nlink(),
		Size:   in.size(),
		Blocks: int64(min(be.Uint64(raw[64:]), fs.sb.blocks)) * (fs.sb.blockSize / 512),
		Atime:  in.time(32),
		Mtime:  in.time(40),
		Ctime:  in.time(48),
	}
	if in.version() >= 3 {
		a.Btime = in.time(144)
	}
	if t := a.Mode & filesystem.ModeType; (t == filesystem.ModeChar || t == filesystem.ModeBlock) && in.format() == formatDevice {
		if fork := in.dataFork(); len(fork) >= 4 {
			d := be.Uint32(fork)
			a.Major, a.Minor = d>>18, d&0x3FFFF
		}
	}
	return a, nil
}

// bigtimeEpoch is how many seconds before 1970 bigtime's nanoseconds begin.
const bigtimeEpoch = 1 << 31

// time reads a time stamp: 64 bits of nanoseconds since 1901 with bigtime,
// 32 bits of signed seconds and nanoseconds without.
func (in *inode) time(at int) filesystem.Time {
	if in.flags2()&flags2Bigtime != 0 {
		v := be.Uint64(in.raw[at:])
		return filesystem.Time{Sec: int64(v/1e9) - bigtimeEpoch, Nsec: uint32(v % 1e9)}
	}
	return filesystem.Time{
		Sec:  int64(int32(be.Uint32(in.raw[at:]))),
		Nsec: min(be.Uint32(in.raw[at+4:]), 999_999_999),
	}
}

// Record gives the place of an inode in the image.
func (fs *FS) Record(ctx context.Context, ino filesystem.Ino) (start, end int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	if fs.unsure != nil {
		return 0, 0, fmt.Errorf("inode %d: %w: an inode and its contents may not be of one instant: %w", ino, filesystem.ErrUnsupported, fs.unsure)
	}
	off, err := fs.sb.inodeOffset(uint64(ino))
	return off, off + int64(fs.sb.inodeSize), err
}

// Replayed calls fn for the sectors that the log changed.
func (fs *FS) Replayed(fn func(start, end int64)) { fs.replayed.each(fn) }
