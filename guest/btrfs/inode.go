package btrfs

import (
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

const (
	inodeItemSize = 160

	inodeNoDataSum = 1 << 0
)

// inode is an INODE_ITEM in place ("On-disk format", "Inode item").
type inode struct {
	place
	ino  filesystem.Ino
	item []byte
}

func (in *inode) size() int64   { return int64(le.Uint64(in.item[16:])) }
func (in *inode) bytes() uint64 { return le.Uint64(in.item[24:]) }
func (in *inode) uid() uint32   { return le.Uint32(in.item[44:]) }
func (in *inode) gid() uint32   { return le.Uint32(in.item[48:]) }
func (in *inode) mode() uint32  { return le.Uint32(in.item[52:]) & 0o177777 }
func (in *inode) rdev() uint64  { return le.Uint64(in.item[56:]) }
func (in *inode) flags() uint64 { return le.Uint64(in.item[64:]) }
func (in *inode) kind() uint32  { return in.mode() & filesystem.ModeType }

// time at 112: of access, 124: of change, 136: of modification, 148: of birth.
func (in *inode) time(offset int) filesystem.Time {
	return filesystem.Time{Sec: int64(le.Uint64(in.item[offset:])), Nsec: le.Uint32(in.item[offset+8:])}
}

// inode reads an inode that is not a stub.
func (fs *FS) inode(ctx context.Context, ino filesystem.Ino) (inode, error) {
	if err := ctx.Err(); err != nil {
		return inode{}, err
	}
	p, err := fs.place(ino)
	if err != nil {
		return inode{}, err
	}
	if p.stub {
		if err := fs.checkStub(ctx, p); err != nil {
			return inode{}, fmt.Errorf("inode %d: %w", ino, err)
		}
		return inode{place: p, ino: ino}, nil
	}
	item, err := p.vol.inodeItem(ctx, p.oid)
	if err != nil {
		return inode{}, fmt.Errorf("inode %d: %w", ino, err)
	}
	return inode{p, ino, item}, nil
}

func (v *subvolume) inodeItem(ctx context.Context, oid uint64) ([]byte, error) {
	item, err := v.get(ctx, key{oid, typeInode, 0})
	switch {
	case err != nil:
		return nil, err
	case item == nil:
		return nil, notExist("inode %d of subvolume %d", oid, v.id)
	case len(item) < inodeItemSize:
		return nil, corrupt("inode item of %d bytes", len(item))
	}
	return item, nil
}

// Root is the top directory of the top level, whatever the default subvolume.
func (fs *FS) Root() filesystem.Ino { return filesystem.Ino(fs.volumes[0].top) }

// Attr gives an inode's attributes.
func (fs *FS) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	if in.stub {
		return fs.stubAttr(ctx, &in)
	}
	a := filesystem.Attr{
		Ino: ino, Mode: in.mode(), UID: in.uid(), GID: in.gid(), Nlink: le.Uint32(in.item[40:]),
		Size:  in.size(),
		Atime: in.time(112), Mtime: in.time(136), Ctime: in.time(124), Btime: in.time(148),
	}
	sector := uint64(fs.sb.sectorSize)
	if n := in.bytes(); n < 1<<62 {
		a.Blocks = int64((n + sector - 1) / sector * sector / 512)
	}
	if k := in.kind(); k == filesystem.ModeChar || k == filesystem.ModeBlock {
		a.Major, a.Minor = uint32(in.rdev()>>20)&0xFFF, uint32(in.rdev()&0xFFFFF)
	}
	if a.Size < 0 {
		return a, fmt.Errorf("inode %d: %w", ino, corrupt("size %d", a.Size))
	}
	return a, nil
}

// stubAttr makes up the attributes of a stub, as Linux does. The owner is the
// one of the directory that holds it, which is found when the subvolume it
// stands for still lies in a directory of that number; the times, which Linux
// sets to the present, are those of that directory too.
func (fs *FS) stubAttr(ctx context.Context, in *inode) (filesystem.Attr, error) {
	a := filesystem.Attr{Ino: in.ino, Mode: filesystem.ModeDir | 0o755, Nlink: 1}
	dir := in.vol.top
	k, item, err := fs.rootTree.floor(ctx, key{in.oid, typeRootBack, 1<<64 - 1})
	if err == nil && item != nil && k.oid == in.oid && k.typ == typeRootBack {
		if ref, err := parseRootRef(item); err == nil {
			dir = ref.dir
		}
	}
	for _, oid := range []uint64{dir, in.vol.top} {
		item, err := in.vol.inodeItem(ctx, oid)
		if err != nil {
			continue
		}
		d := inode{item: item}
		a.UID, a.GID = d.uid(), d.gid()
		a.Atime, a.Mtime, a.Ctime, a.Btime = d.time(112), d.time(136), d.time(136), d.time(136)
		break
	}
	return a, nil
}
