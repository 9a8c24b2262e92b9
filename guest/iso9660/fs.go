package iso9660

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/pages"
)

var le = binary.LittleEndian

// FS is one ISO 9660 filesystem. It implements filesystem.Reader.
type FS struct {
	image     io.ReaderAt
	size      int64 // bytes of image
	block     int64 // bytes of a logical block
	blocks    int64 // of the volume
	root      int64 // byte where the root directory begins
	rockRidge bool
	skip      int // bytes of each system use area that belong to somebody else
	joliet    bool
	label     string
	uuid      string
	pages     *pages.Image
	hints     lookupHints

	notes filesystem.Notes
}

var _ filesystem.Reader = (*FS)(nil)

// Open reads the volume descriptors of the filesystem that fills the first
// size bytes of r. The error wraps ErrCorrupt when there is no usable one.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*FS, error) {
	fs := &FS{image: r, size: size, pages: pages.New(r, size)}
	if err := fs.open(ctx); err != nil {
		return nil, fmt.Errorf("iso9660: %w", err)
	}
	return fs, nil
}

const (
	sectorBytes    = 2048
	firstSector    = 16
	maxDescriptors = 64
)

// open reads the volume descriptors (ECMA-119, 8) and chooses between them.
func (fs *FS) open(ctx context.Context) error {
	var primary, joliet []byte
	for i := int64(0); i < maxDescriptors; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := make([]byte, sectorBytes)
		if err := fs.readAt(b, (firstSector+i)*sectorBytes); err != nil {
			if primary == nil {
				return err
			}
			break
		}
		if string(b[1:6]) != "CD001" {
			break
		}
		switch {
		case b[0] == 1 && primary == nil:
			primary = b
		case b[0] == 2 && joliet == nil && isJoliet(b):
			joliet = b
		}
		if b[0] == 255 {
			break
		}
	}
	if primary == nil {
		return corrupt("there is no primary volume descriptor")
	}
	if err := fs.use(primary, false); err != nil {
		return err
	}
	fs.uuid = volumeDate(primary)
	fs.findRockRidge()
	if joliet != nil && !fs.rockRidge {
		if err := fs.use(joliet, true); err != nil {
			fs.note("the Joliet names are not used: %v", err)
		}
	}
	if need := fs.blocks * fs.block; need > fs.size {
		fs.note("the image ends %d bytes before the filesystem does; what lies there cannot be read", need-fs.size)
	}
	return nil
}

// use takes block size, root directory and label of a volume descriptor.
func (fs *FS) use(b []byte, joliet bool) error {
	block := int64(le.Uint16(b[128:]))
	if block != 512 && block != 1024 && block != 2048 {
		return corrupt("logical blocks of %d bytes", block)
	}
	record := b[156:190]
	root := (int64(le.Uint32(record[2:])) + int64(record[1])) * block
	if root == 0 || root >= fs.size {
		return corrupt("the root directory lies at byte %d", root)
	}
	fs.block, fs.blocks, fs.root, fs.joliet = block, int64(le.Uint32(b[80:])), root, joliet
	if joliet {
		fs.label = trimLabel(appendUCS2(nil, b[40:72]))
	} else {
		fs.label = trimLabel(b[40:72])
	}
	return nil
}

func (fs *FS) note(format string, args ...any) { fs.notes.Add(format, args...) }

// Info describes the filesystem. The UUID is what blkid(8) makes of the time
// of the volume.
func (fs *FS) Info() filesystem.Info {
	return filesystem.Info{
		Type:       "iso9660",
		Label:      fs.label,
		UUID:       fs.uuid,
		BlockSize:  fs.block,
		TotalBytes: fs.blocks * fs.block,
		Notes:      fs.notes.List(),
	}
}

// Root is the inode of the root directory.
func (fs *FS) Root() filesystem.Ino { return filesystem.Ino(fs.root) }

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

// readAt fills p from byte offset off of the image.
func (fs *FS) readAt(p []byte, off int64) error {
	return filesystem.ReadFull(fs.image, fs.size, p, off)
}
