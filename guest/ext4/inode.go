package ext4

import (
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

// inode is one inode in place: raw lies in a cached block of the inode table
// and must not be changed (Documentation/filesystems/ext4/inodes.rst).
type inode struct {
	ino uint32
	raw []byte
}

func (in *inode) mode() uint32       { return uint32(le.Uint16(in.raw)) }
func (in *inode) flags() uint32      { return le.Uint32(in.raw[0x20:]) }
func (in *inode) generation() uint32 { return le.Uint32(in.raw[0x64:]) }
func (in *inode) isDir() bool        { return in.mode()&filesystem.ModeType == filesystem.ModeDir }
func (in *inode) isRegular() bool    { return in.mode()&filesystem.ModeType == filesystem.ModeRegular }
func (in *inode) isSymlink() bool    { return in.mode()&filesystem.ModeType == filesystem.ModeSymlink }
func (in *inode) isInline() bool     { return in.flags()&flagInlineData != 0 }

// iblock is i_block: the map's root, a short link target, a device number, or
// the first 60 bytes of inline data.
func (in *inode) iblock() []byte { return in.raw[0x28:0x64] }

// xattrBlock is the block with more extended attributes; 0: none.
func (in *inode) xattrBlock() uint64 {
	return uint64(le.Uint32(in.raw[0x68:])) | uint64(le.Uint16(in.raw[0x76:]))<<32
}

// size is i_size; its high half is only defined for files and directories.
func (in *inode) size() int64 {
	size := int64(le.Uint32(in.raw[0x4:]))
	if in.isRegular() || in.isDir() {
		size |= int64(le.Uint32(in.raw[0x6C:])) << 32
	}
	return size
}

// extraEnd is where the fixed fields end and attributes may begin.
func (in *inode) extraEnd() int {
	if len(in.raw) <= 128 {
		return 128
	}
	return 128 + int(le.Uint16(in.raw[0x80:]))
}

// inode finds inode n and checks that it is in use and undamaged.
func (fs *FS) inode(ctx context.Context, n filesystem.Ino) (inode, error) {
	if err := ctx.Err(); err != nil {
		return inode{}, err
	}
	if n == 0 || n > filesystem.Ino(fs.sb.inodes) {
		return inode{}, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotExist)
	}
	in, err := fs.rawInode(uint32(n))
	if err != nil {
		return inode{}, fmt.Errorf("inode %d: %w", n, err)
	}
	return in, nil
}

func (fs *FS) rawInode(n uint32) (inode, error) {
	s := fs.sb
	group, index := (n-1)/s.inodesPerGroup, (n-1)%s.inodesPerGroup
	perBlock := uint32(int(s.blockSize) / s.inodeSize)
	d, err := fs.descriptor(group)
	if err != nil {
		return inode{}, err
	}
	key := blockKey{
		block: s.inodeTable(d) + uint64(index/perBlock),
		owner: n - index%perBlock,
		kind:  kindInodes,
	}
	v := fs.cache.get(key)
	if v == nil {
		if v, err = fs.readInodes(key, perBlock); err != nil {
			return inode{}, err
		}
	}
	i := int(index % perBlock)
	in := inode{ino: n, raw: v.data[i*s.inodeSize:][:s.inodeSize]}
	if in.mode() == 0 {
		return inode{}, corrupt("not in use")
	}
	if v.isBad(i) {
		return inode{}, corrupt("checksum")
	}
	if le.Uint16(in.raw[0x1A:]) == 0 {
		return inode{}, corrupt("deleted")
	}
	if end := in.extraEnd(); end > len(in.raw) || end&3 != 0 {
		return inode{}, corrupt("extra size %d", end-128)
	}
	if in.size() < 0 {
		return inode{}, corrupt("size")
	}
	return in, nil
}

// readInodes reads a block of the inode table and checks all its inodes.
func (fs *FS) readInodes(key blockKey, perBlock uint32) (*verified, error) {
	b, err := fs.readBlock(key.block)
	if err != nil {
		return nil, err
	}
	v := &verified{data: b}
	if fs.sb.metadataCsum() {
		for i := range perBlock {
			in := inode{ino: key.owner + i, raw: b[int(i)*fs.sb.inodeSize:][:fs.sb.inodeSize]}
			if !fs.inodeFits(&in) {
				v.markBad(int(i), int(perBlock))
			}
		}
	}
	fs.cache.put(key, v)
	return v, nil
}

// inodeSeed starts the checksums of everything that belongs to the inode.
func (fs *FS) inodeSeed(in *inode) uint32 {
	b := le.AppendUint32(le.AppendUint32(make([]byte, 0, 8), in.ino), in.generation())
	return crc32c(fs.sb.seed, b)
}

// inodeFits verifies the inode's checksum: 16 bits, or 32 when the inode is
// large enough for the upper half.
func (fs *FS) inodeFits(in *inode) bool {
	raw, zero := in.raw, []byte{0, 0}
	sum := crc32c(fs.inodeSeed(in), raw[:0x7C])
	sum = crc32c(sum, zero)
	if len(raw) == 128 {
		return uint16(crc32c(sum, raw[0x7E:])) == le.Uint16(raw[0x7C:])
	}
	if in.extraEnd() < 0x84 {
		return uint16(crc32c(sum, raw[0x7E:])) == le.Uint16(raw[0x7C:])
	}
	sum = crc32c(sum, raw[0x7E:0x82])
	sum = crc32c(sum, zero)
	sum = crc32c(sum, raw[0x84:])
	return sum == uint32(le.Uint16(raw[0x7C:]))|uint32(le.Uint16(raw[0x82:]))<<16
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
		UID:    uint32(le.Uint16(raw[0x2:])) | uint32(le.Uint16(raw[0x78:]))<<16,
		GID:    uint32(le.Uint16(raw[0x18:])) | uint32(le.Uint16(raw[0x7A:]))<<16,
		Nlink:  uint32(le.Uint16(raw[0x1A:])),
		Size:   in.size(),
		Blocks: fs.sectors(&in),
		Atime:  in.time(0x8, 0x8C),
		Ctime:  in.time(0xC, 0x84),
		Mtime:  in.time(0x10, 0x88),
	}
	if in.extraEnd() >= 0x94 {
		a.Btime = in.time(0x90, 0x94)
	}
	if t := a.Mode & filesystem.ModeType; t == filesystem.ModeChar || t == filesystem.ModeBlock {
		a.Major, a.Minor = deviceNumber(in.iblock())
	}
	return a, nil
}

// time reads 32 bits of signed seconds and, when the inode has them, 2 more
// bits of seconds and 30 bits of nanoseconds.
func (in *inode) time(sec, extra int) filesystem.Time {
	t := filesystem.Time{Sec: int64(int32(le.Uint32(in.raw[sec:])))}
	if in.extraEnd() >= extra+4 {
		e := le.Uint32(in.raw[extra:])
		t.Sec += int64(e&3) << 32
		t.Nsec = min(e>>2, 999_999_999)
	}
	return t
}

// sectors is st_blocks.
func (fs *FS) sectors(in *inode) int64 {
	n := int64(le.Uint32(in.raw[0x1C:]))
	if fs.sb.roCompat&roHugeFile != 0 {
		n |= int64(le.Uint16(in.raw[0x74:])) << 32
		if in.flags()&flagHugeFile != 0 {
			n *= fs.sb.blockSize / 512
		}
	}
	if in.isRegular() && in.isInline() {
		n += (in.size() + 511) / 512 // as the kernel counts data inside the inode
	}
	return n
}

// deviceNumber reads the old 16-bit or the new 32-bit form.
func deviceNumber(iblock []byte) (major, minor uint32) {
	if d := le.Uint32(iblock); d != 0 {
		return d >> 8 & 0xFF, d & 0xFF
	}
	d := le.Uint32(iblock[4:])
	return d >> 8 & 0xFFF, d&0xFF | d>>12&0xFFF00
}
