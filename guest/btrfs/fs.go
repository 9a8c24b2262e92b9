package btrfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"cairn/guest/filesystem"
)

// FS is one btrfs filesystem. It implements filesystem.Reader and
// filesystem.FreeSpace.
type FS struct {
	devices  map[uint64]*device // by devid
	missing  []uint64           // devids that the chunk tree names
	sb       *super
	skipSums bool // tests only: no checksum is looked at
	chunks   chunkMap
	// chunksDamaged says that chunks may be missing in the map.
	chunksDamaged bool
	nodes         *nodeCache
	plain         clock[plainKey, []byte]
	zstd          *zstd.Decoder

	rootTree tree
	sums     *tree // of data checksums; nil: there is none
	volumes  []subvolume
	home     string

	rootDamage error // of the part of the root tree that names subvolumes

	notes filesystem.Notes
}

var (
	_ filesystem.Reader    = (*FS)(nil)
	_ filesystem.FreeSpace = (*FS)(nil)
)

// Open reads the filesystem that lies on the given devices, in any order; each
// one's superblock tells which it is. Devices may be missing when another copy
// of what must be read is there. The error wraps ErrCorrupt when nothing can
// be read, ErrUnsupported when the filesystem needs a feature that is not known
// here, and ErrDeviceMissing, with the device's number, when nothing can be
// read without it.
func Open(ctx context.Context, devices []Device) (*FS, error) {
	return open(ctx, devices, false)
}

func open(ctx context.Context, devices []Device, skipSums bool) (*FS, error) {
	fs := &FS{devices: make(map[uint64]*device), skipSums: skipSums}
	if err := fs.open(ctx, devices); err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	return fs, nil
}

func (fs *FS) open(ctx context.Context, devices []Device) error {
	if err := fs.openDevices(ctx, devices); err != nil {
		return err
	}
	fs.nodes = newNodeCache(fs.sb.nodeSize)
	fs.plain.init(plainBytes / maxCompressed)
	var err error
	fs.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxCompressed))
	if err != nil {
		return err
	}
	if err := fs.readChunks(ctx); err != nil {
		return fmt.Errorf("chunk tree: %w", err)
	}
	fs.noteDevices()
	fs.rootTree = tree{fs: fs, root: fs.sb.root}
	if err := fs.readRoots(ctx); err != nil {
		return fmt.Errorf("root tree: %w", err)
	}
	if err := fs.replayLog(ctx); err != nil {
		return err
	}
	return fs.findHome(ctx)
}

// openDevices reads the superblocks. The newest of all decides.
func (fs *FS) openDevices(ctx context.Context, devices []Device) error {
	if len(devices) == 0 {
		return errors.New("no device given")
	}
	var supers []*super
	for i, d := range devices {
		s, err := readSuper(ctx, d.Image, d.Size, fs.skipSums)
		if err != nil {
			if len(devices) == 1 || ctx.Err() != nil {
				return err
			}
			return fmt.Errorf("device %d of %d given: %w", i+1, len(devices), err)
		}
		supers = append(supers, s)
		if fs.sb == nil || s.generation > fs.sb.generation {
			fs.sb = s
		}
	}
	for i, s := range supers {
		if s.fsid != fs.sb.fsid {
			return fmt.Errorf("%w: the devices belong to different filesystems, %s and %s", filesystem.ErrUnsupported, uuidText(s.fsid), uuidText(fs.sb.fsid))
		}
		if s.sectorSize != fs.sb.sectorSize || s.nodeSize != fs.sb.nodeSize {
			return corrupt("device %d says nodes of %d bytes, device %d of %d", s.devID, s.nodeSize, fs.sb.devID, fs.sb.nodeSize)
		}
		stale := s.generation != fs.sb.generation
		if d := fs.devices[s.devID]; d != nil {
			fs.note("device %d was given twice; the newer one is used", s.devID)
			if !d.stale {
				continue
			}
		}
		fs.devices[s.devID] = &device{devices[i], stale}
		if stale {
			fs.note("device %d missed the commits from %d to %d and is read last", s.devID, s.generation+1, fs.sb.generation)
		}
		if s.copyNr > 0 {
			fs.note("device %d: copy %d of the superblock is used, for the ones before are damaged or older", s.devID, s.copyNr)
		}
		if uint64(devices[i].Size) < s.devBytes {
			fs.note("device %d ends %d bytes before the filesystem does; what lies there cannot be read", s.devID, s.devBytes-uint64(devices[i].Size))
		}
	}
	return nil
}

func (fs *FS) note(format string, args ...any) { fs.notes.Add(format, args...) }

// Info describes the filesystem. Sizes are sums over all devices; FreeBytes
// counts what is stored twice as used once, as the superblock does. btrfs has
// no limit of inodes.
func (fs *FS) Info() filesystem.Info {
	return filesystem.Info{
		Type:       "btrfs",
		Label:      fs.sb.label,
		UUID:       uuidText(fs.sb.fsid),
		BlockSize:  int64(fs.sb.sectorSize),
		TotalBytes: int64(fs.sb.totalBytes),
		FreeBytes:  int64(fs.sb.totalBytes - min(fs.sb.bytesUsed, fs.sb.totalBytes)),
		Home:       fs.home,
		Notes:      fs.notes.List(),
	}
}
