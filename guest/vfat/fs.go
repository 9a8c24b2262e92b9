package vfat

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/pages"
)

var le = binary.LittleEndian

const rootIno = 1

// FS is one FAT12, FAT16, FAT32 or exFAT filesystem. It implements
// filesystem.Reader and filesystem.FreeSpace.
type FS struct {
	image io.ReaderAt
	size  int64 // bytes of image
	geo   geometry
	exfat *exfatRoot // what the root directory of exFAT tells; nil on FAT
	label string
	free  int64 // clusters, as far as known
	pages *pages.Image
	hints lookupHints

	notes filesystem.Notes
}

var (
	_ filesystem.Reader    = (*FS)(nil)
	_ filesystem.FreeSpace = (*FS)(nil)
)

// Open reads the boot sector of the filesystem that fills the first size bytes
// of r and finds out which of the four it is. The error wraps ErrCorrupt when
// neither the boot sector nor its backup is usable.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*FS, error) {
	fs := &FS{image: r, size: size, pages: pages.New(r, size)}
	if err := fs.open(ctx); err != nil {
		return nil, fmt.Errorf("vfat: %w", err)
	}
	return fs, nil
}

func (fs *FS) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := fs.readBoot(); err != nil {
		return err
	}
	g := &fs.geo
	if need := g.end(); need > fs.size {
		fs.note("the image ends %d bytes before the filesystem does; what lies there cannot be read", need-fs.size)
	}
	if g.dirty {
		fs.note("the guest had this filesystem in use or did not unmount it")
	}
	if g.failed {
		fs.note("the guest met errors of the medium")
	}
	var err error
	if g.bits == bitsExfat {
		err = fs.readExfatRoot(ctx)
	} else {
		err = fs.readLabel(ctx)
	}
	if err != nil {
		return err
	}
	return fs.countFree(ctx)
}

func (fs *FS) note(format string, args ...any) { fs.notes.Add(format, args...) }

// Info describes the filesystem. Inodes are not counted, for there is no table
// of them.
func (fs *FS) Info() filesystem.Info {
	g := &fs.geo
	info := filesystem.Info{
		Type:       "vfat",
		Label:      fs.label,
		BlockSize:  g.clusterBytes,
		TotalBytes: int64(g.clusters) * g.clusterBytes,
		FreeBytes:  fs.free * g.clusterBytes,
		Notes:      fs.notes.List(),
	}
	if g.bits == bitsExfat {
		info.Type = "exfat"
	}
	if g.hasSerial {
		info.UUID = fmt.Sprintf("%04x-%04x", g.serial>>16, g.serial&0xFFFF)
	}
	return info
}

// Root is inode 1.
func (fs *FS) Root() filesystem.Ino { return rootIno }

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

// readAt fills p from byte offset off of the image.
func (fs *FS) readAt(p []byte, off int64) error {
	return filesystem.ReadFull(fs.image, fs.size, p, off)
}

// slot gives the directory entry at byte off of the image. Entries lie at
// multiples of 32 bytes, so none crosses a page.
func (fs *FS) slot(off int64) ([]byte, error) {
	b, err := fs.pages.Page(off)
	if err != nil {
		return nil, err
	}
	if len(b) < slotBytes {
		return nil, corrupt("directory entry at %d: the image ends there", off)
	}
	return b[:slotBytes], nil
}
