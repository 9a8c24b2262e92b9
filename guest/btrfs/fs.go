package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"cairn/guest/filesystem"
)

// Device is one device of a filesystem.
type Device struct {
	Image io.ReaderAt
	Size  int64 // bytes
}

// FS is one btrfs. It implements filesystem.Reader and filesystem.FreeSpace.
type FS struct {
	super      Super
	devices    map[uint64]Device
	chunks     []chunk // by logical address
	cache      *blockCache
	extents    extentCache
	volumes    []subvolume // by id; the top first
	home       string
	unsure     string // why nothing can be told of free space
	unverified bool   // metadata is not held to its checksums: for tests

	mu    sync.Mutex
	notes []string
}

var (
	_ filesystem.Reader    = (*FS)(nil)
	_ filesystem.FreeSpace = (*FS)(nil)
)

// Open opens the filesystem that lies on the devices, in any order. Devices
// that are missing are noted; what lies on them alone cannot be read. The error
// wraps ErrCorrupt when there is no usable superblock and ErrUnsupported when
// the filesystem needs a feature that is not known here.
func Open(ctx context.Context, devices []Device) (*FS, error) {
	return open(ctx, devices, false)
}

func open(ctx context.Context, devices []Device, unverified bool) (*FS, error) {
	fs := &FS{devices: map[uint64]Device{}, unverified: unverified}
	if len(devices) == 0 {
		return nil, fmt.Errorf("btrfs: no device: %w", filesystem.ErrNotExist)
	}
	var supers []Super
	for _, d := range devices {
		s, err := Probe(ctx, d.Image, d.Size)
		if err != nil {
			return nil, err
		}
		if len(supers) > 0 && s.FSID != supers[0].FSID {
			return nil, fmt.Errorf("btrfs: devices of two filesystems, %s and %s", supers[0].FSID, s.FSID)
		}
		if _, twice := fs.devices[s.DevID]; twice {
			return nil, fmt.Errorf("btrfs: two devices have number %d: one is a copy", s.DevID)
		}
		fs.devices[s.DevID] = d
		supers = append(supers, s)
	}
	// A device that was away for a while is behind; what it has would be wrong.
	newest := slices.MaxFunc(supers, func(a, b Super) int { return int(min(1, max(-1, int64(a.generation)-int64(b.generation)))) })
	for _, s := range supers {
		if s.generation+1 < newest.generation { // one commit may be under way
			delete(fs.devices, s.DevID)
			fs.note("device %d is out of date and is not read", s.DevID)
		}
	}
	fs.super = newest
	if have := uint64(len(fs.devices)); have < newest.Devices {
		fs.note("%d of %d devices are there; what lies on the others alone cannot be read", have, newest.Devices)
	}
	if err := fs.openTrees(ctx); err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	return fs, nil
}

func (fs *FS) openTrees(ctx context.Context) error {
	fs.cache = newCache(fs.super.node)
	if err := fs.openChunks(ctx); err != nil {
		return err
	}
	if len(fs.chunks) == 0 {
		return corrupt("no chunk is known")
	}
	if fs.super.Devices != 1 {
		fs.doubt("it lies on several devices")
	}
	if fs.super.log != 0 {
		fs.doubt("its log tree was not replayed")
		fs.note("the log tree was not replayed: what was synced since the last commit, 30 seconds at most, may be missing")
	}
	if err := fs.openVolumes(ctx); err != nil {
		return err
	}
	if _, _, err := fs.locate(fs.Root()); err != nil {
		return err
	}
	return ctx.Err()
}

func (fs *FS) note(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !slices.Contains(fs.notes, n) && len(fs.notes) < 64 {
		fs.notes = append(fs.notes, n)
	}
}

// doubt says that nothing can be told of free space. The first reason stays.
func (fs *FS) doubt(why string) {
	if fs.unsure == "" {
		fs.unsure = why
	}
}

// Info describes the filesystem. Free is what no extent takes, before copies
// are counted.
func (fs *FS) Info() filesystem.Info {
	fs.mu.Lock()
	notes := slices.Clone(fs.notes)
	fs.mu.Unlock()
	return filesystem.Info{
		Type: "btrfs", Label: fs.super.Label, UUID: fs.super.FSID, BlockSize: fs.super.sector, Home: fs.home,
		TotalBytes: fs.super.total, FreeBytes: max(0, fs.super.total-fs.super.used), Notes: notes,
	}
}

// damaged says whether an error is damage, which does not hide the rest.
func damaged(err error) bool { return errors.Is(err, filesystem.ErrCorrupt) }
