package xfs

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// FS is one XFS filesystem. It implements filesystem.Reader,
// filesystem.FreeSpace and filesystem.InodeRecords.
type FS struct {
	image    io.ReaderAt
	size     int64 // bytes of image
	sb       *super
	fromCopy bool // sb is a copy
	cache    *cache
	replayed overlay
	unsure   error // why the log is not replayed although it may hold something
	counts   counts
	// unverified takes all checksums for right.
	unverified bool

	notes filesystem.Notes
}

var (
	_ filesystem.Reader       = (*FS)(nil)
	_ filesystem.FreeSpace    = (*FS)(nil)
	_ filesystem.InodeRecords = (*FS)(nil)
)

// Open reads the superblock of the filesystem that fills the first size bytes
// of r and replays its log in memory when the guest left it unfinished. The
// error wraps ErrCorrupt when there is no usable superblock and ErrUnsupported
// when the filesystem needs a feature that is not known here.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*FS, error) {
	return open(ctx, &FS{image: r, size: size, cache: newCache()})
}

func open(ctx context.Context, fs *FS) (*FS, error) {
	if err := fs.readSuper(ctx); err != nil {
		return nil, fmt.Errorf("xfs: %w", err)
	}
	if err := fs.recoverLog(ctx); err != nil {
		return nil, fmt.Errorf("xfs: %w", err)
	}
	if need := int64(fs.sb.blocks) * fs.sb.blockSize; need > fs.size {
		fs.note("the image ends %d bytes before the filesystem does; what lies there cannot be read", need-fs.size)
	}
	if fs.sb.incompat&incompatNeedsRepair != 0 {
		fs.note("the guest has marked this filesystem as damaged; run xfs_repair in the guest")
	}
	if fs.sb.realtime {
		fs.note("the filesystem has a realtime device, which is another disk: files that lie there cannot be read")
	}
	if err := fs.count(ctx); err != nil {
		return nil, fmt.Errorf("xfs: %w", err)
	}
	return fs, nil
}

func (fs *FS) note(format string, args ...any) { fs.notes.Add(format, args...) }

// Info describes the filesystem. Free counts are those of the allocation
// groups, as the kernel sums them after an unclean end.
func (fs *FS) Info() filesystem.Info {
	s := fs.sb
	u := s.uuid
	return filesystem.Info{
		Type:       "xfs",
		Label:      s.label,
		UUID:       fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16]),
		BlockSize:  s.blockSize,
		TotalBytes: int64(s.blocks) * s.blockSize,
		FreeBytes:  int64(min(fs.counts.blocks, s.blocks)) * s.blockSize,
		Inodes:     fs.counts.inodes,
		FreeInodes: min(fs.counts.freeInodes, fs.counts.inodes),
		Notes:      fs.notes.List(),
	}
}

// Root is the inode of the top directory.
func (fs *FS) Root() filesystem.Ino { return filesystem.Ino(fs.sb.root) }

// readAt fills p from byte offset off of the image as it lies there: file
// contents, which are never logged, and the log itself.
func (fs *FS) readAt(p []byte, off int64) error {
	return filesystem.ReadFull(fs.image, fs.size, p, off)
}

// readMeta fills p with metadata, as the log left it.
func (fs *FS) readMeta(p []byte, off int64) error {
	if err := fs.readAt(p, off); err != nil {
		return err
	}
	fs.replayed.patch(p, off)
	return nil
}
