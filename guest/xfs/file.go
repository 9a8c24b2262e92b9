package xfs

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// Open gives the contents of a regular file. It reads nothing but the inode;
// ReadAt finds its way through the extents in cached blocks.
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
	case in.flags()&flagRealtime != 0:
		return nil, fmt.Errorf("inode %d: %w: it lies on the realtime device", ino, filesystem.ErrUnsupported)
	}
	return &file{fs: fs, ino: uint64(ino), extents: in.dataMap(), size: in.size()}, nil
}

// file is the contents of an inode that is not changed any more.
type file struct {
	fs      *FS
	ino     uint64
	extents fork
	size    int64
}

// Size in bytes.
func (f *file) Size() int64 { return f.size }

// ReadAt reads contents; what has no block reads as zeros.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("inode %d: negative offset %d", f.ino, off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > f.size-off {
		p, end = p[:f.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		k, err := f.readRun(p[n:], off+int64(n))
		if err != nil {
			return n, fmt.Errorf("inode %d: %w", f.ino, err)
		}
		n += k
	}
	return len(p), end
}

// readRun fills the start of p from the run that off lies in. Contents are
// never logged, so they are read past the overlay: a block of them may have
// held metadata before.
func (f *file) readRun(p []byte, off int64) (int, error) {
	bs := f.fs.sb.blockSize
	r, err := f.fs.lookup(&f.extents, uint64(off/bs))
	if err != nil {
		return 0, err
	}
	skip := off % bs
	if blocks := (uint64(len(p)) + uint64(skip) + uint64(bs) - 1) / uint64(bs); r.count < blocks {
		p = p[:int64(r.count)*bs-skip]
	}
	if r.hole || r.unwritten {
		clear(p)
		return len(p), nil
	}
	start, err := f.fs.sb.offset(r.block, 1)
	if err != nil {
		return 0, err
	}
	return len(p), f.fs.readAt(p, start+skip)
}

// maxJoinedRuns bounds the work of one NextData; a longer piece of data is
// given in parts.
const maxJoinedRuns = 1 << 16

// NextData gives the first range of data at or behind off. Unwritten extents
// count as a hole, as the kernel's SEEK_DATA has it when no page of them is
// in its cache.
func (f *file) NextData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fmt.Errorf("inode %d: negative offset %d", f.ino, off)
	}
	if off >= f.size {
		return 0, 0, io.EOF
	}
	bs := f.fs.sb.blockSize
	start = -1
	block, last := uint64(off/bs), uint64((f.size-1)/bs)
	for range maxJoinedRuns {
		if block > last {
			break
		}
		r, err := f.fs.lookup(&f.extents, block)
		if err != nil {
			if start >= 0 {
				break // what comes before the damage is good
			}
			return 0, 0, fmt.Errorf("inode %d: %w", f.ino, err)
		}
		data := !r.hole && !r.unwritten
		if data && start < 0 {
			start = max(off, int64(block)*bs)
		}
		if !data && start >= 0 {
			break
		}
		block += min(r.count, last+1-block)
	}
	if start >= 0 {
		return start, f.endOf(block, last), nil
	}
	if block > last {
		return 0, 0, io.EOF
	}
	// Too many holes in a row to walk at once: calling the rest data is
	// correct, for holes read as zeros.
	return int64(block) * bs, f.size, nil
}

// endOf is the byte where block begins, or the file's end behind the last.
func (f *file) endOf(block, last uint64) int64 {
	if block > last {
		return f.size
	}
	return int64(block) * f.fs.sb.blockSize
}
