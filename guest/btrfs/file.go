package btrfs

import (
	"context"
	"fmt"
	"io"
	"sort"

	"cairn/guest/filesystem"
)

// Types of a file's extents, and ways in which they are compressed.
const (
	extentInline   = 0
	extentRegular  = 1
	extentPrealloc = 2

	compressZlib = 1
	compressLZO  = 2
	compressZstd = 3
)

// extent is a range of a file.
type extent struct {
	off, size int64 // in the file
	inline    []byte
	logical   int64 // 0: a hole, or zeros
	stored    int64 // bytes there
	in        int64 // where the range begins in what is stored, decompressed
	ram       int64 // bytes of all that is stored, decompressed
	packed    uint8
}

// file is the contents of a regular file. It implements filesystem.File.
type file struct {
	fs      *FS
	size    int64
	extents []extent
}

const (
	maxExtents = 2 << 20
	maxPacked  = 128 << 10 // bytes of a compressed extent, stored or not
	maxInline  = 64 << 10
)

// Open gives the contents of a regular file.
func (fs *FS) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	v, object, b, err := fs.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	switch typeOf(b) {
	case filesystem.ModeRegular:
	case filesystem.ModeDir:
		return nil, filesystem.ErrIsDir
	default:
		return nil, fmt.Errorf("inode %d is not a regular file: %w", object, filesystem.ErrUnsupported)
	}
	f, err := fs.openFile(ctx, v, object, int64(le.Uint64(b[16:])))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (fs *FS) openFile(ctx context.Context, v *subvolume, object uint64, size int64) (*file, error) {
	f := &file{fs: fs, size: size}
	err := fs.search(ctx, v.root, key{object, typeExtent, 0}, func(k key, b []byte) (bool, error) {
		if k.object != object || k.kind != typeExtent {
			return false, nil
		}
		e, err := fs.parseExtent(int64(k.offset), b)
		if err != nil {
			return false, fmt.Errorf("extent at %d: %w", k.offset, err)
		}
		if n := len(f.extents); n > 0 && e.off < f.extents[n-1].off+f.extents[n-1].size {
			return false, corrupt("extents overlap at %d", k.offset)
		}
		if len(f.extents) == maxExtents {
			return false, fmt.Errorf("%w: a file of more than %d extents", filesystem.ErrUnsupported, maxExtents)
		}
		f.extents = append(f.extents, e)
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("inode %d of subvolume %d: %w", object, v.id, err)
	}
	return f, nil
}

func (fs *FS) parseExtent(off int64, b []byte) (extent, error) {
	if len(b) < 21 || off < 0 {
		return extent{}, corrupt("%d bytes", len(b))
	}
	e := extent{off: off, ram: int64(le.Uint64(b[8:])), packed: b[16]}
	if b[17] != 0 || le.Uint16(b[18:]) != 0 {
		return e, fmt.Errorf("%w: encoding %d, encryption %d", filesystem.ErrUnsupported, le.Uint16(b[18:]), b[17])
	}
	if e.packed > compressZstd {
		return e, fmt.Errorf("%w: compression %d", filesystem.ErrUnsupported, e.packed)
	}
	if b[20] == extentInline {
		e.inline = b[21:]
		e.size = e.ram
		if e.packed == 0 {
			e.size = int64(len(e.inline))
		}
		if e.ram < 0 || e.ram > maxInline || e.size > maxInline {
			return e, corrupt("%d bytes inline", e.ram)
		}
		return e, nil
	}
	if len(b) < 53 {
		return e, corrupt("%d bytes", len(b))
	}
	e.logical, e.stored, e.in, e.size = int64(le.Uint64(b[21:])), int64(le.Uint64(b[29:])), int64(le.Uint64(b[37:])), int64(le.Uint64(b[45:]))
	switch {
	case e.size <= 0 || e.off+e.size < 0 || e.in < 0 || e.logical < 0 || e.stored < 0 || e.ram < 0 || e.in+e.size < 0:
		return e, corrupt("impossible numbers")
	case b[20] == extentPrealloc:
		e.logical = 0
	case b[20] != extentRegular:
		return e, corrupt("type %d", b[20])
	case e.logical == 0:
	case e.packed == 0 && e.in+e.size > e.stored:
		return e, corrupt("%d bytes at %d of %d", e.size, e.in, e.stored)
	case e.packed != 0 && (e.stored > maxPacked || e.ram > maxPacked || e.in+e.size > e.ram):
		return e, corrupt("%d compressed bytes, %d plain, of which %d at %d", e.stored, e.ram, e.size, e.in)
	}
	return e, nil
}

// Size implements filesystem.File.
func (f *file) Size() int64 { return f.size }

func (f *file) at(off int64) int {
	return sort.Search(len(f.extents), func(i int) bool { return f.extents[i].off+f.extents[i].size > off })
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("btrfs: negative offset %d", off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(len(p)), f.size-off)]
	done := 0
	for i := f.at(off); done < len(p); i++ {
		at := off + int64(done)
		if i == len(f.extents) {
			clear(p[done:])
			done = len(p)
			break
		}
		e := &f.extents[i]
		if e.off > at {
			n := int(min(int64(len(p)-done), e.off-at))
			clear(p[done : done+n])
			if done += n; done == len(p) {
				break
			}
			at = e.off
		}
		piece := p[done:min(int64(len(p)), int64(done)+e.off+e.size-at)]
		if err := f.fs.readExtent(e, piece, at-e.off); err != nil {
			return done, fmt.Errorf("at byte %d: %w", at, err)
		}
		done += len(piece)
	}
	if done < want {
		return done, io.EOF
	}
	return done, nil
}

// readExtent reads from byte off of an extent on.
func (fs *FS) readExtent(e *extent, p []byte, off int64) error {
	switch {
	case e.packed != 0 && (e.inline != nil || e.logical != 0):
		b, err := fs.extents.get(fs, e)
		if err != nil {
			return err
		}
		copy(p, b[e.in+off:])
		return nil
	case e.inline != nil:
		copy(p, e.inline[off:])
		return nil
	case e.logical == 0:
		clear(p)
		return nil
	}
	return fs.read(p, e.logical+e.in+off)
}

// NextData implements filesystem.File.
func (f *file) NextData(off int64) (start, end int64, err error) {
	if off < 0 {
		return 0, 0, fmt.Errorf("btrfs: negative offset %d", off)
	}
	for i := f.at(off); i < len(f.extents) && f.extents[i].off < f.size; i++ {
		e := &f.extents[i]
		if e.inline == nil && e.logical == 0 {
			continue
		}
		start, end = max(off, e.off), e.off+e.size
		if start >= f.size {
			break
		}
		for i++; i < len(f.extents) && f.extents[i].off == end && (f.extents[i].inline != nil || f.extents[i].logical != 0); i++ {
			end += f.extents[i].size
		}
		if e.inline != nil { // it stands for a whole sector
			end = max(end, f.size)
		}
		return start, min(end, f.size), nil
	}
	return 0, 0, io.EOF
}
