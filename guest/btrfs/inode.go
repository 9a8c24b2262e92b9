package btrfs

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/guest/filesystem"
)

const inodeSize = 160

// inode reads an inode's item.
func (fs *FS) inode(ctx context.Context, ino filesystem.Ino) (v *subvolume, object uint64, b []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, nil, err
	}
	v, object, err = fs.locate(ino)
	if err != nil {
		return nil, 0, nil, err
	}
	if object == stub {
		b = make([]byte, inodeSize)
		le.PutUint32(b[40:], 1)
		le.PutUint32(b[52:], filesystem.ModeDir|0o755)
		return v, object, b, nil
	}
	b, err = fs.item(ctx, v.root, key{object, typeInode, 0})
	switch {
	case err != nil:
	case b == nil:
		err = filesystem.ErrNotExist
	case len(b) < inodeSize:
		err = corrupt("an inode of %d bytes", len(b))
	case int64(le.Uint64(b[16:])) < 0:
		err = corrupt("size")
	}
	if err != nil {
		return nil, 0, nil, fmt.Errorf("inode %d of subvolume %d: %w", object, v.id, err)
	}
	return v, object, b, nil
}

func modeOf(b []byte) uint32 { return le.Uint32(b[52:]) }

func typeOf(b []byte) uint32 { return modeOf(b) & filesystem.ModeType }

// Attr gives an inode's attributes.
func (fs *FS) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	_, _, b, err := fs.inode(ctx, ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	at := func(off int) filesystem.Time {
		return filesystem.Time{Sec: int64(le.Uint64(b[off:])), Nsec: min(le.Uint32(b[off+8:]), 999_999_999)}
	}
	a := filesystem.Attr{
		Ino: ino, Mode: modeOf(b) & 0o177777, UID: le.Uint32(b[44:]), GID: le.Uint32(b[48:]), Nlink: le.Uint32(b[40:]), Size: int64(le.Uint64(b[16:])),
		Atime: at(112), Ctime: at(124), Mtime: at(136), Btime: at(148),
	}
	if bytes := le.Uint64(b[24:]); bytes < 1<<62 {
		a.Blocks = (int64(bytes) + fs.super.sector - 1) / fs.super.sector * fs.super.sector / 512
	}
	if t := typeOf(b); t == filesystem.ModeChar || t == filesystem.ModeBlock {
		device := le.Uint64(b[56:])
		a.Major, a.Minor = uint32(device>>20)&0xFFF, uint32(device)&0xFFFFF
	}
	return a, nil
}

// maxTarget bounds a symbolic link (PATH_MAX).
const maxTarget = 4096

// Readlink gives a symbolic link's raw target.
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	v, object, b, err := fs.inode(ctx, ino)
	if err != nil {
		return "", err
	}
	if typeOf(b) != filesystem.ModeSymlink {
		return "", filesystem.ErrNotSymlink
	}
	size := int64(le.Uint64(b[16:]))
	if size > maxTarget {
		return "", corrupt("link %d has a target of %d bytes", object, size)
	}
	f, err := fs.openFile(ctx, v, object, size)
	if err != nil {
		return "", err
	}
	target := make([]byte, size)
	if n, err := f.ReadAt(target, 0); int64(n) < size {
		return "", fmt.Errorf("link %d: %w", object, err)
	}
	return string(target), nil
}

// maxXattrs bounds the attributes of one inode, in bytes.
const maxXattrs = 4 << 20

// Xattrs gives all extended attributes, sorted by name.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	v, object, _, err := fs.inode(ctx, ino)
	if err != nil || object == stub {
		return nil, err
	}
	var list []filesystem.Xattr
	bytes := 0
	err = fs.search(ctx, v.root, key{object, typeXattr, 0}, func(k key, b []byte) (bool, error) {
		if k.object != object || k.kind != typeXattr {
			return false, nil
		}
		if bytes += len(b); bytes > maxXattrs {
			return false, corrupt("more than %d bytes of attributes", maxXattrs)
		}
		return true, eachName(b, func(e dirEntry) {
			list = append(list, filesystem.Xattr{Name: e.name, Value: slices.Clone(e.data)})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w", object, err)
	}
	slices.SortFunc(list, func(a, b filesystem.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(list, func(a, b filesystem.Xattr) bool { return a.Name == b.Name }), nil
}
