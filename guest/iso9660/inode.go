package iso9660

import (
	"context"
	"fmt"

	"cairn/guest/filesystem"
)

// node is a file or directory.
type node struct {
	ino     filesystem.Ino
	attr    filesystem.Attr
	extents []extent // of regular files
	start   int64    // of a directory: the byte where it begins
	size    int64    // of a directory
	target  string
	err     error // why contents cannot be read
}

// extent is a piece of a file.
type extent struct {
	start int64 // byte of the image
	size  int64
}

// recordAt gives the record at a byte of the image. No record crosses a sector.
func (fs *FS) recordAt(off int64) (record, error) {
	if off < firstSector*sectorBytes {
		return nil, filesystem.ErrNotExist
	}
	b, err := fs.pages.Page(off)
	if err != nil {
		return nil, err
	}
	if end := sectorBytes - off%sectorBytes; int64(len(b)) > end {
		b = b[:end]
	}
	r := parseRecord(b)
	if r == nil {
		return nil, corrupt("there is no directory record at byte %d", off)
	}
	return r, nil
}

func (fs *FS) node(ctx context.Context, ino filesystem.Ino) (*node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, err := fs.readNode(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	return n, nil
}

func (fs *FS) readNode(ctx context.Context, ino filesystem.Ino) (*node, error) {
	if ino == 0 || ino >= filesystem.Ino(fs.size) {
		return nil, filesystem.ErrNotExist
	}
	off := int64(ino)
	r, err := fs.recordAt(off)
	if err != nil {
		return nil, err
	}
	when := shortTime(r[18:])
	n := &node{ino: ino, attr: filesystem.Attr{
		Ino: ino, Mode: filesystem.ModeRegular | 0o555, Nlink: 1, Size: r.size(), Mtime: when, Atime: when, Ctime: when,
	}}
	if r.isDir() {
		n.attr.Mode = filesystem.ModeDir | 0o555
	}
	if fs.rockRidge {
		k, err := fs.rockRidgeOf(r)
		if err != nil {
			return nil, err
		}
		n.apply(&k)
	}
	switch {
	case n.attr.IsDir():
		n.start, n.size = r.extent()*fs.block, r.size()
	case n.attr.IsRegular():
		if r.isMixed() {
			n.err = fmt.Errorf("%w: an interleaved file", filesystem.ErrUnsupported)
		}
		if err := fs.gather(ctx, n, off, r); err != nil {
			return nil, err
		}
	case n.attr.Mode&filesystem.ModeType == filesystem.ModeSymlink:
		n.attr.Size = int64(len(n.target))
	default:
		n.attr.Size = 0
	}
	if n.attr.Mode&filesystem.ModeType != filesystem.ModeSymlink {
		n.attr.Blocks = (n.attr.Size + 511) / 512
	}
	return n, nil
}

// apply takes over what Rock Ridge tells.
func (n *node) apply(k *rock) {
	a := &n.attr
	if k.hasMode {
		// Only the type may not disagree: a directory record has contents of
		// its own kind.
		if dir := k.mode&filesystem.ModeType == filesystem.ModeDir; dir == a.IsDir() {
			a.Mode = k.mode & 0o177777
		}
		a.Nlink, a.UID, a.GID = k.nlink, k.uid, k.gid
	}
	if kind := a.Mode & filesystem.ModeType; kind == filesystem.ModeChar || kind == filesystem.ModeBlock {
		a.Major, a.Minor = k.major, k.minor
	}
	if k.hasMtime {
		a.Mtime = k.mtime
	}
	if k.hasAtime {
		a.Atime = k.atime
	}
	if k.hasCtime {
		a.Ctime = k.ctime
	}
	n.target = string(k.target)
	if k.unsupported != "" {
		n.err = fmt.Errorf("%w: %s", filesystem.ErrUnsupported, k.unsupported)
	}
}

// maxExtents bounds the pieces of one file; each but the last is of 4 GiB.
const maxExtents = 1024

// gather collects the extents of a file. The records of all pieces follow each
// other; the last one does not say that more come.
func (fs *FS) gather(ctx context.Context, n *node, off int64, r record) error {
	n.attr.Size = 0
	for {
		if size := r.size(); size > 0 {
			n.extents = append(n.extents, extent{r.extent() * fs.block, size})
			n.attr.Size += size
		}
		if r.flags()&flagMultiExtent == 0 {
			return nil
		}
		if len(n.extents) > maxExtents || ctx.Err() != nil {
			return corrupt("a file of more than %d extents", maxExtents)
		}
		off += int64(len(r))
		next, err := fs.recordAt(off)
		if err != nil { // the rest of the sector is empty
			off = (off + sectorBytes - 1) / sectorBytes * sectorBytes
			if next, err = fs.recordAt(off); err != nil {
				return err
			}
		}
		if string(next.name()) != string(r.name()) {
			return corrupt("a file's last extent is missing")
		}
		r = next
	}
}

// Attr gives an inode's attributes.
func (fs *FS) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	n, err := fs.node(ctx, ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	return n.attr, nil
}

// Readlink gives a symbolic link's target.
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	n, err := fs.node(ctx, ino)
	if err != nil {
		return "", err
	}
	if n.attr.Mode&filesystem.ModeType != filesystem.ModeSymlink {
		return "", fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotSymlink)
	}
	return n.target, nil
}

// Xattrs gives none, as Linux does for this filesystem.
func (fs *FS) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	_, err := fs.node(ctx, ino)
	return nil, err
}
