package vfat

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// Open gives the contents of a file. The cluster chain is walked when it is
// read.
func (fs *FS) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	n, err := fs.node(ctx, ino)
	if err != nil {
		return nil, err
	}
	if n.isDir() {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	}
	return &file{fs: fs, ino: ino, size: n.size, valid: n.valid, chain: fs.newChain(&n)}, nil
}

// file is the contents of one file.
type file struct {
	fs    *FS
	ino   filesystem.Ino
	size  int64
	valid int64 // what lies behind was never written and reads as zeros
	chain *chain
}

// Size in bytes.
func (f *file) Size() int64 { return f.size }

// ReadAt reads contents. What the chain has no cluster for gives ErrCorrupt
// there.
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
	n := 0
	for n < len(p) {
		k, err := f.readRun(p[n:], off+int64(n))
		if err != nil {
			return n, fmt.Errorf("inode %d at byte %d: %w", f.ino, off+int64(n), err)
		}
		n += k
	}
	return n, end
}

// readRun fills the start of p from the clusters that lie behind each other
// from off on.
func (f *file) readRun(p []byte, off int64) (int, error) {
	g := &f.fs.geo
	if off >= int64(g.clusters)*g.clusterBytes {
		return 0, corrupt("a file of %d bytes is larger than the volume", f.size)
	}
	if off >= f.valid {
		p = p[:min(int64(len(p)), int64(g.clusters)*g.clusterBytes-off)]
		clear(p)
		return len(p), nil
	}
	p = p[:min(int64(len(p)), f.valid-off)]
	skip := off % g.clusterBytes
	want := (skip + int64(len(p)) + g.clusterBytes - 1) / g.clusterBytes
	cluster, count, err := f.chain.run(uint32(off/g.clusterBytes), uint32(min(want, int64(g.clusters))))
	if err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), int64(count)*g.clusterBytes-skip)]
	return len(p), f.fs.readAt(p, g.place(cluster)+skip)
}

// NextData gives what was ever written as one range; FAT has no holes.
func (f *file) NextData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fmt.Errorf("inode %d: negative offset %d", f.ino, off)
	}
	if off >= f.valid {
		return 0, 0, io.EOF
	}
	return off, f.valid, nil
}
