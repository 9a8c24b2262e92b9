package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"cairn/guest/filesystem"
	"cairn/guest/volume"
	"cairn/index/restorepoint"
)

// Open gives the tree of a point. image opens a disk of the point by its
// name; it is called when the volumes are looked for, not before.
func Open(ctx context.Context, m *restorepoint.Manifest, image func(disk string) (restorepoint.Image, error)) (*Tree, error) {
	return New(m, func(ctx context.Context) (Volumes, error) { return scanDisks(ctx, m, image) }), ctx.Err()
}

// scanDisks looks for volumes on all disks of a point. A disk that cannot be
// opened is noted; so is what a scan cannot read, except when reading only
// took too long: then the scan counts for nothing and is done again.
func scanDisks(ctx context.Context, m *restorepoint.Manifest, image func(disk string) (restorepoint.Image, error)) (Volumes, error) {
	var late atomic.Pointer[error]
	var disks []volume.Disk
	var notes []string
	for _, d := range m.Disks {
		opened, err := image(d.Name)
		if isLate(err) {
			return nil, err
		}
		if err != nil {
			notes = append(notes, fmt.Sprintf("disk %s cannot be opened: %v", d.Name, err))
			continue
		}
		disks = append(disks, volume.Disk{Name: d.Name, Serial: d.Serial, Image: watched{opened, &late}, Size: opened.Size()})
	}
	set, err := volume.Scan(ctx, disks)
	if err != nil {
		return nil, err
	}
	if err := late.Load(); err != nil {
		return nil, *err
	}
	return &scanned{set, append(notes, set.Notes...)}, nil
}

func isLate(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// watched is an image that remembers that a read took too long.
type watched struct {
	io.ReaderAt
	late *atomic.Pointer[error]
}

func (w watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.ReaderAt.ReadAt(p, off)
	if isLate(err) {
		w.late.CompareAndSwap(nil, &err)
	}
	return n, err
}

// scanned is a volume.Set as Volumes.
type scanned struct {
	set   *volume.Set
	notes []string
}

func (s *scanned) Notes() []string { return s.notes }

func (s *scanned) List() []Volume {
	var list []Volume
	for _, v := range s.set.Volumes {
		list = append(list, Volume{
			Name: v.Name, Disk: v.Disk, Partition: v.Partition, Size: v.Size, Type: v.Type, Label: v.Label,
			UUID: v.UUID, PartUUID: v.PartUUID, PartLabel: v.PartLabel, PartType: v.PartType, Start: v.Start, Reason: v.Reason,
			Group: v.Group, Logical: v.Logical, GroupUUID: v.GroupUUID, LogicalUUID: v.LogicalUUID,
			Array: v.Array, ArrayUUID: v.ArrayUUID, Extents: v.Extents,
		})
	}
	return list
}

func (s *scanned) Open(ctx context.Context, index int) (filesystem.Reader, error) {
	return s.set.Open(ctx, &s.set.Volumes[index])
}
