package ext4

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// FS is one ext2, ext3 or ext4 filesystem. It implements filesystem.Reader.
type FS struct {
	image      io.ReaderAt
	size       int64 // bytes of image
	sb         *super
	fromBackup bool // sb is a backup copy
	cache      *cache
	replayed   overlay
	free       freeCounts
	unsure     string // why the bitmaps may not be the last word; "" when they are
	hints      lookupHints

	notes filesystem.Notes
}

var _ filesystem.Reader = (*FS)(nil)

// Open reads the superblock of the filesystem that fills the first size bytes
// of r and replays its journal in memory when the guest left it unfinished.
// The error wraps ErrCorrupt when there is no usable superblock and
// ErrUnsupported when the filesystem needs a feature that is not known here.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*FS, error) {
	fs := &FS{image: r, size: size}
	if err := fs.readSuper(ctx); err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	fs.cache = newCache(fs.sb.blockSize)
	if err := fs.recoverJournal(ctx); err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	if need := int64(fs.sb.blocks) * fs.sb.blockSize; need > size {
		fs.note("the image ends %d bytes before the filesystem does; what lies there cannot be read", need-size)
	}
	if fs.fromBackup {
		fs.doubt("its superblock is damaged")
	}
	if fs.sb.hasErrors {
		fs.doubt("the guest's kernel has marked the filesystem as damaged")
		fs.note("the guest's kernel has marked this filesystem as damaged; run e2fsck in the guest")
	}
	if fs.sb.incompat&incompatEncrypt != 0 {
		fs.note("the guest uses encryption: encrypted names are shown coded, their contents cannot be read")
	}
	if err := fs.countFree(ctx); err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	return fs, nil
}

// doubt says that the bitmaps may not be the last word. The first reason stays.
func (fs *FS) doubt(why string) {
	if fs.unsure == "" {
		fs.unsure = why
	}
}

func (fs *FS) note(format string, args ...any) { fs.notes.Add(format, args...) }

// Info describes the filesystem. Free counts are those of the group
// descriptors, as statfs(2) sums them.
func (fs *FS) Info() filesystem.Info {
	s := fs.sb
	u := s.uuid
	return filesystem.Info{
		Type:       s.typeName(),
		Label:      s.label,
		UUID:       fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16]),
		BlockSize:  s.blockSize,
		TotalBytes: int64(s.blocks) * s.blockSize,
		FreeBytes:  int64(min(fs.free.clusters, s.blocks)) * s.clusterSize,
		Inodes:     uint64(s.inodes),
		FreeInodes: min(fs.free.inodes, uint64(s.inodes)),
		Notes:      fs.notes.List(),
	}
}

// Root is inode 2.
func (fs *FS) Root() filesystem.Ino { return rootIno }

// readAt fills p from byte offset off of the image, without the journal.
func (fs *FS) readAt(p []byte, off int64) error {
	return filesystem.ReadFull(fs.image, fs.size, p, off)
}

// readBlocks fills p from byte offset skip of block on. Blocks that the
// journal replaces are read from there. p may span several blocks, all of
// them inside the filesystem.
func (fs *FS) readBlocks(p []byte, block uint64, skip int64) error {
	bs := fs.sb.blockSize
	block, skip = block+uint64(skip/bs), skip%bs
	count := (uint64(skip) + uint64(len(p)) + uint64(bs) - 1) / uint64(bs)
	if block >= fs.sb.blocks || count > fs.sb.blocks-block {
		return corrupt("blocks %d+%d lie outside the filesystem", block, count)
	}
	for i := fs.replayed.search(block); len(p) > 0; i++ {
		plain := int64(len(p)) // up to the next replaced block
		replaced := i < len(fs.replayed.blocks) && fs.replayed.blocks[i].home < block+count
		if replaced {
			plain = int64(fs.replayed.blocks[i].home-block)*bs - skip
		}
		if plain > 0 {
			if err := fs.readAt(p[:plain], int64(block)*bs+skip); err != nil {
				return err
			}
			p = p[plain:]
			block, skip, count = block+uint64((skip+plain)/bs), 0, count-uint64((skip+plain)/bs)
		}
		if !replaced {
			return nil
		}
		n := min(int64(len(p)), bs-skip)
		if err := fs.readReplayed(p[:n], fs.replayed.blocks[i], skip); err != nil {
			return err
		}
		p = p[n:]
		block, skip, count = block+1, 0, count-1
	}
	return nil
}

// readBlock reads one whole block into new memory.
func (fs *FS) readBlock(block uint64) ([]byte, error) {
	b := make([]byte, fs.sb.blockSize)
	return b, fs.readBlocks(b, block, 0)
}
