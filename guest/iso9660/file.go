package iso9660

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// Open gives the contents of a regular file.
func (fs *FS) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	n, err := fs.node(ctx, ino)
	if err != nil {
		return nil, err
	}
	switch {
	case n.attr.IsDir():
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	case !n.attr.IsRegular():
		return nil, fmt.Errorf("inode %d: %w: not a regular file", ino, filesystem.ErrUnsupported)
	case n.err != nil:
		return nil, fmt.Errorf("inode %d: %w", ino, n.err)
	}
	return &file{fs: fs, n: n}, nil
}

// file is the contents of one file.
type file struct {
	fs *FS
	n  *node
}

// Size in bytes.
func (f *file) Size() int64 { return f.n.attr.Size }

// ReadAt reads contents.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("inode %d: negative offset %d", f.n.ino, off)
	}
	if off >= f.Size() {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > f.Size()-off {
		p, end = p[:f.Size()-off], io.EOF
	}
	n := 0
	start := int64(0) // of the extent in the file
	for _, e := range f.n.extents {
		skip := off + int64(n) - start
		start += e.size
		if skip >= e.size || n == len(p) {
			continue
		}
		part := p[n:min(int64(len(p)), int64(n)+e.size-skip)]
		if err := f.fs.readAt(part, e.start+skip); err != nil {
			return n, fmt.Errorf("inode %d at byte %d: %w", f.n.ino, off+int64(n), err)
		}
		n += len(part)
	}
	return n, end
}

// NextData gives the rest of the file: there are no holes.
func (f *file) NextData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fmt.Errorf("inode %d: negative offset %d", f.n.ino, off)
	}
	if off >= f.Size() {
		return 0, 0, io.EOF
	}
	return off, f.Size(), nil
}
