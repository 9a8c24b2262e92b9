package ext4

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// Open gives the contents of a regular file. It reads nothing but the inode;
// ReadAt finds its way through the block map in cached blocks.
func (fs *FS) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	switch {
	case in.isDir():
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	case !in.isRegular():
		return nil, fmt.Errorf("inode %d: %w: not a regular file", ino, filesystem.ErrUnsupported)
	case in.flags()&flagEncrypt != 0:
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrEncrypted)
	}
	return fs.newFile(in)
}

// file is the contents of an inode that is not changed any more.
type file struct {
	fs     *FS
	in     inode
	size   int64
	inline []byte // of files with inline data
}

func (fs *FS) newFile(in inode) (*file, error) {
	f := &file{fs: fs, in: in, size: in.size()}
	if in.isInline() {
		var err error
		if f.inline, err = fs.inlineData(&in); err != nil {
			return nil, fmt.Errorf("inode %d: %w", in.ino, err)
		}
	}
	return f, nil
}

// Size in bytes.
func (f *file) Size() int64 { return f.size }

// ReadAt reads contents; what has no block reads as zeros.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("inode %d: negative offset %d", f.in.ino, off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > f.size-off {
		p, end = p[:f.size-off], io.EOF
	}
	if f.in.isInline() {
		n := 0
		if off < int64(len(f.inline)) {
			n = copy(p, f.inline[off:])
		}
		clear(p[n:])
		return len(p), end
	}
	n := 0
	for n < len(p) {
		k, err := f.readRun(p[n:], off+int64(n))
		if err != nil {
			return n, fmt.Errorf("inode %d: %w", f.in.ino, err)
		}
		n += k
	}
	return n, end
}

// readRun fills the start of p from the run that off lies in.
func (f *file) readRun(p []byte, off int64) (int, error) {
	bs := f.fs.sb.blockSize
	r, err := f.fs.mapBlock(&f.in, uint64(off/bs))
	if err != nil {
		return 0, err
	}
	skip := off % bs
	if n := int64(r.count)*bs - skip; n < int64(len(p)) {
		p = p[:n]
	}
	if r.phys == 0 {
		clear(p)
		return len(p), nil
	}
	return len(p), f.fs.readBlocks(p, r.phys, skip)
}

// maxJoinedRuns bounds the work of one NextData; a longer piece of data is
// given in parts.
const maxJoinedRuns = 1 << 16

// NextData gives the first range of data at or behind off. Unwritten blocks
// count as a hole, as the kernel's SEEK_DATA has it. Blocks that hold data
// only in parts count as data; inline data is one range.
func (f *file) NextData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fmt.Errorf("inode %d: negative offset %d", f.in.ino, off)
	}
	if off >= f.size {
		return 0, 0, io.EOF
	}
	if f.in.isInline() {
		return off, f.size, nil
	}
	bs := f.fs.sb.blockSize
	start = -1
	block := uint64(off / bs)
	for range maxJoinedRuns {
		if int64(block)*bs >= f.size {
			break
		}
		r, err := f.fs.mapBlock(&f.in, block)
		if err != nil {
			if start >= 0 {
				break // what comes before the damage is good
			}
			return 0, 0, fmt.Errorf("inode %d: %w", f.in.ino, err)
		}
		if r.phys != 0 && start < 0 {
			start = max(off, int64(block)*bs)
		}
		if r.phys == 0 && start >= 0 {
			break
		}
		block += r.count
	}
	if start >= 0 {
		return start, min(f.size, int64(block)*bs), nil
	}
	if int64(block)*bs >= f.size {
		return 0, 0, io.EOF
	}
	// Too many holes in a row to walk at once: calling the rest data is
	// correct, for holes read as zeros.
	return int64(block) * bs, f.size, nil
}

// Readlink gives a symbolic link's target.
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return "", err
	}
	switch {
	case !in.isSymlink():
		return "", fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotSymlink)
	case in.flags()&flagEncrypt != 0:
		return "", fmt.Errorf("inode %d: %w", ino, filesystem.ErrEncrypted)
	case in.size() > fs.sb.blockSize: // a target fills at most one block
		return "", fmt.Errorf("inode %d: %w", ino, corrupt("symbolic link of %d bytes", in.size()))
	case fs.isFastSymlink(&in):
		return string(in.iblock()[:in.size()]), nil
	}
	f, err := fs.newFile(in)
	if err != nil {
		return "", err
	}
	b := make([]byte, f.size)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return "", err
	}
	return string(b), nil
}

// isFastSymlink says whether the target lies in i_block: it is short, and the
// inode owns no block beside the one of its attributes.
func (fs *FS) isFastSymlink(in *inode) bool {
	if in.isInline() || in.size() >= int64(len(in.iblock())) {
		return false
	}
	own := fs.sectors(in)
	if in.xattrBlock() != 0 {
		own -= fs.sb.clusterSize / 512
	}
	return own <= 0
}
