package btrfs

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// maxTarget bounds a symbolic link: more than Linux takes.
const maxTarget = 4096

// Open gives the contents of a regular file. It reads nothing but the inode;
// ReadAt finds the extents in cached nodes.
func (fs *FS) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	switch {
	case in.stub || in.kind() == filesystem.ModeDir:
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	case in.kind() != filesystem.ModeRegular:
		return nil, fmt.Errorf("inode %d: %w: not a regular file", ino, filesystem.ErrUnsupported)
	}
	return fs.newFile(in)
}

// file is the contents of an inode that is not changed any more.
type file struct {
	fs     *FS
	in     inode
	size   int64
	verify bool // the data has checksums
}

func (fs *FS) newFile(in inode) (*file, error) {
	f := &file{fs: fs, in: in, size: in.size(), verify: in.flags()&inodeNoDataSum == 0}
	if f.size < 0 {
		return nil, fmt.Errorf("inode %d: %w", in.ino, corrupt("size %d", f.size))
	}
	return f, nil
}

// Size in bytes.
func (f *file) Size() int64 { return f.size }

// ReadAt reads contents; what has no extent reads as zeros.
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
	n := 0
	for n < len(p) {
		k, err := f.readRun(p[n:], off+int64(n))
		if err != nil {
			return n, fmt.Errorf("inode %d at %d: %w", f.in.ino, off+int64(n), err)
		}
		n += k
	}
	return n, end
}

// readRun fills the start of p from the extent or gap that off lies in.
func (f *file) readRun(p []byte, off int64) (int, error) {
	e, err := f.run(off)
	if err != nil {
		return 0, err
	}
	if n := e.end - off; n < int64(len(p)) {
		p = p[:n]
	}
	skip := off - e.start
	switch {
	case e.isHole():
		clear(p)
	case e.compression != compressNone:
		b, err := f.fs.unpacked(&e, f.verify)
		if err != nil {
			return 0, err
		}
		copyAt(p, b, skip+int64(e.offset))
	case e.kind == extentInline:
		copyAt(p, e.inline, skip)
	default:
		err = f.fs.readData(p, e.bytenr+e.offset+uint64(skip), f.verify)
	}
	return len(p), err
}

// copyAt fills p from byte off of b; behind b there are zeros.
func copyAt(p, b []byte, off int64) {
	n := 0
	if off < int64(len(b)) {
		n = copy(p, b[off:])
	}
	clear(p[n:])
}

// maxJoinedRuns bounds the work of one NextData; a longer piece of data is
// given in parts.
const maxJoinedRuns = 1 << 14

// NextData gives the first range of data at or behind off. Preallocated
// extents count as holes, as the kernel's SEEK_DATA has it.
func (f *file) NextData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fmt.Errorf("inode %d: negative offset %d", f.in.ino, off)
	}
	start = -1
	pos := off
	for range maxJoinedRuns {
		if pos >= f.size {
			break
		}
		e, err := f.run(pos)
		if err != nil {
			if start >= 0 {
				break // what comes before the damage is good
			}
			return 0, 0, fmt.Errorf("inode %d at %d: %w", f.in.ino, pos, err)
		}
		if e.isHole() && start >= 0 {
			break
		}
		if !e.isHole() && start < 0 {
			start = pos
		}
		pos = e.end
	}
	switch {
	case start >= 0:
		return start, min(f.size, pos), nil
	case pos >= f.size:
		return 0, 0, io.EOF
	}
	// Too many holes in a row to walk at once: calling the rest data is
	// correct, for holes read as zeros.
	return pos, f.size, nil
}

// Readlink gives a symbolic link's target.
func (fs *FS) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	in, err := fs.inode(ctx, ino)
	if err != nil {
		return "", err
	}
	if in.stub || in.kind() != filesystem.ModeSymlink {
		return "", fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotSymlink)
	}
	f, err := fs.newFile(in)
	if err != nil {
		return "", err
	}
	if f.size > maxTarget {
		return "", fmt.Errorf("inode %d: %w", ino, corrupt("symbolic link of %d bytes", f.size))
	}
	b := make([]byte, f.size)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return "", err
	}
	return string(b), nil
}
