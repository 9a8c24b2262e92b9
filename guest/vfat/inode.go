package vfat

import (
	"context"
	"errors"
	"fmt"

	"cairn/guest/filesystem"
)

const slotBytes = 32 // of a directory entry

// Attributes of a directory entry, the same on FAT and exFAT.
const (
	attrReadOnly  = 0x01
	attrVolume    = 0x08
	attrDirectory = 0x10
	attrLong      = 0x0F // of a piece of a long name
)

// node is a directory entry without its name.
type node struct {
	ino        filesystem.Ino
	attributes uint8
	first      uint32
	contiguous bool  // exFAT's NoFatChain
	size       int64 // bytes; of a directory of exFAT too
	valid      int64 // bytes that were written; the rest reads as zeros
	allocated  int64 // bytes of a contiguous chain
	fixed      bool  // the root of FAT12 and FAT16
	mtime      filesystem.Time
	atime      filesystem.Time
	btime      filesystem.Time
}

func (n *node) isDir() bool { return n.attributes&attrDirectory != 0 }

// inoAt is the inode whose entry lies at a byte of the image.
func inoAt(place int64) filesystem.Ino { return filesystem.Ino(place / slotBytes) }

// node reads the directory entry of an inode.
func (fs *FS) node(ctx context.Context, ino filesystem.Ino) (node, error) {
	if err := ctx.Err(); err != nil {
		return node{}, err
	}
	n, err := fs.readNode(ino)
	if err != nil {
		return node{}, fmt.Errorf("inode %d: %w", ino, err)
	}
	return n, nil
}

func (fs *FS) readNode(ino filesystem.Ino) (node, error) {
	g := &fs.geo
	if ino == rootIno {
		return node{ino: rootIno, attributes: attrDirectory, first: g.rootCluster, fixed: g.rootBytes > 0}, nil
	}
	if ino > filesystem.Ino(fs.size/slotBytes) {
		return node{}, filesystem.ErrNotExist
	}
	place := int64(ino) * slotBytes
	inRoot := g.rootBytes > 0 && place >= g.rootArea && place < g.rootArea+g.rootBytes
	if !inRoot && (place < g.heap || place >= g.end()) {
		return node{}, filesystem.ErrNotExist
	}
	if g.bits == bitsExfat {
		return fs.exfatNode(place)
	}
	b, err := fs.slot(place)
	if err != nil {
		return node{}, err
	}
	if !isFile(b) {
		return node{}, corrupt("no file has its directory entry at byte %d", place)
	}
	return fs.parseNode(b, place), nil
}

// Attr gives an inode's attributes. Those of a directory need a look at all
// its entries, for the count of links and the size.
func (fs *FS) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	n, err := fs.node(ctx, ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	a := filesystem.Attr{
		Ino:   ino,
		Mode:  filesystem.ModeRegular | 0o755,
		Nlink: 1,
		Size:  n.size,
		Atime: n.atime,
		Mtime: n.mtime,
		Ctime: n.mtime,
		Btime: n.btime,
	}
	if n.isDir() {
		a.Mode = filesystem.ModeDir | 0o755
		// A damaged directory keeps its attributes; ReadDir tells.
		var subdirs uint32
		if subdirs, a.Size, err = fs.measure(ctx, &n); err != nil && ctx.Err() != nil {
			return filesystem.Attr{}, err
		}
		a.Nlink = 2 + subdirs
	}
	if n.attributes&attrReadOnly != 0 && (!n.isDir() || fs.geo.bits == bitsExfat) {
		a.Mode &^= 0o222
	}
	a.Blocks = (a.Size + fs.geo.clusterBytes - 1) / fs.geo.clusterBytes * (fs.geo.clusterBytes / 512)
	return a, nil
}

// measure counts a directory's subdirectories and its bytes.
func (fs *FS) measure(ctx context.Context, n *node) (subdirs uint32, size int64, err error) {
	isDir := isSubdir
	if fs.geo.bits == bitsExfat {
		isDir = isExfatSubdir
	}
	ended := false
	err = fs.eachSlot(ctx, n, 0, func(b []byte, place, off int64) bool {
		ended = ended || b[0] == 0
		if !ended && isDir(b) {
			subdirs++
		}
		size = off + slotBytes
		return true
	})
	return subdirs, size, err
}

// Readlink fails: these filesystems have no symbolic links.
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	if _, err := fs.node(ctx, ino); err != nil {
		return "", err
	}
	return "", fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotSymlink)
}

// Xattrs gives none, as Linux does for these filesystems.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	_, err := fs.node(ctx, ino)
	return nil, err
}

func (fs *FS) directory(ctx context.Context, ino filesystem.Ino) (node, error) {
	n, err := fs.node(ctx, ino)
	if err != nil {
		return node{}, err
	}
	if !n.isDir() {
		return node{}, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotDir)
	}
	if g := &fs.geo; ino != rootIno && g.has(n.first) {
		own := int64(ino)*slotBytes - g.place(n.first)
		if n.first == g.rootCluster || own >= 0 && own < g.clusterBytes {
			return node{}, fmt.Errorf("directory inode %d: %w", ino, corrupt("it contains itself"))
		}
	}
	return n, nil
}

// maxDirBytes bounds a directory: on FAT to what Linux accepts, on exFAT to
// what the specification does (7.4, DataLength).
func (g *geometry) maxDirBytes() int64 {
	if g.bits == bitsExfat {
		return 256 << 20
	}
	return 2 << 20
}

// eachSlot calls fn for the directory entries from byte from on, with their
// place in the image and their offset in the directory, until fn returns false
// or there are no more.
func (fs *FS) eachSlot(ctx context.Context, n *node, from int64, fn func(b []byte, place, off int64) bool) error {
	g := &fs.geo
	if n.fixed {
		_, err := fs.slotsIn(ctx, g.rootArea, from, 0, g.rootBytes, fn)
		return err
	}
	limit := g.maxDirBytes()
	sized := g.bits == bitsExfat && n.ino != rootIno
	if sized {
		if n.size > limit || n.size%slotBytes != 0 {
			return corrupt("directory of %d bytes", n.size)
		}
		limit = n.size
	}
	c := fs.newChain(n)
	for off := int64(0); off < limit; off += g.clusterBytes {
		cluster, _, err := c.run(uint32(off/g.clusterBytes), 1)
		var end *chainEnd
		if errors.As(err, &end) && !sized {
			return nil
		}
		if err != nil {
			return err
		}
		if off+g.clusterBytes <= from {
			continue
		}
		more, err := fs.slotsIn(ctx, g.place(cluster), from, off, min(off+g.clusterBytes, limit), fn)
		if err != nil || !more {
			return err
		}
	}
	if !sized {
		return corrupt("directory of more than %d bytes", limit)
	}
	return nil
}

// slotsIn calls fn for the entries of a piece of a directory that lies at
// place: its bytes from start to end, without those before from.
func (fs *FS) slotsIn(ctx context.Context, place, from, start, end int64, fn func(b []byte, place, off int64) bool) (more bool, err error) {
	off := max(start, (from+slotBytes-1)/slotBytes*slotBytes)
	for off < end {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		at := place + off - start
		page, err := fs.pages.Page(at)
		if err != nil {
			return false, err
		}
		page = page[:min(int64(len(page)), end-off)]
		if len(page) < slotBytes {
			return false, corrupt("directory entry at %d: the image ends there", at)
		}
		for ; len(page) >= slotBytes; page = page[slotBytes:] {
			if !fn(page[:slotBytes:slotBytes], at, off) {
				return false, nil
			}
			at, off = at+slotBytes, off+slotBytes
		}
	}
	return true, nil
}
