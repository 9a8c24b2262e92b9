package volume

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
)

// Disk is one disk of a guest at one instant.
type Disk struct {
	Name   string // as the guest's kernel names it, "vda"; or any short name
	Serial string
	Image  io.ReaderAt
	Size   int64 // bytes
}

// Extent is a piece of a volume: Size bytes at Offset of it, and where they lie,
// at DiskOffset of Disk.
type Extent = device.Extent

// Volume is a part of a disk, an array or a logical volume that may hold a
// filesystem.
type Volume struct {
	// Name is <device>-<type>[-<label or partition name>], where device is
	// "vda1", "md0", or "group-volume". It is safe as the name of a directory
	// and unique in its Set.
	Name      string
	Disk      string // "" when it is a logical volume or lies on an array
	Partition int    // 0: the whole disk, array or logical volume
	Start     int64  // byte offset on what has the partition
	Size      int64  // bytes
	Type      string // as blkid names it, with the exceptions in kind.go; "unknown"
	Label     string
	UUID      string // as blkid prints it
	PartUUID  string
	PartLabel string
	PartType  string // GPT: lower-case UUID; MBR: "0x83"

	Group, Logical         string // of a logical volume: the names of its group and its own
	GroupUUID, LogicalUUID string // as lvm prints them
	Array                  string // of what lies on an array: its name below /dev, "md0" or "data"
	ArrayUUID              string // as blkid prints it

	Reason string // why it cannot be opened as a tree; "" when it can

	// Extents says where the volume's bytes lie, ascending by Offset, with all
	// copies of those that are mirrored. It is empty when that cannot be said
	// simply: thin volumes, snapshots and what has them, parity, filesystems on
	// several volumes, and partitions that overlap.
	Extents []Extent

	stem     string // the beginning of Name
	device   device.Device
	shared   bool     // others use its bytes, too
	overlaps bool     // and come before it
	several  *several // of a filesystem that may lie on several volumes
	parts    []Part   // of one that does
}

// Set is what was found on the disks of one restore point.
type Set struct {
	Volumes []Volume
	// Notes says in plain words what was damaged or refused.
	Notes []string

	kinds map[string]kind
}

// Scan finds the volumes on all disks of a point: partitions, what arrays and
// volume groups are made of, and what lies in those in turn. The only error is
// ctx's, or two disks of one name; what is damaged or cannot be read is noted.
func Scan(ctx context.Context, disks []Disk) (*Set, error) {
	return scanKinds(ctx, disks, kinds)
}

func (s *Set) note(where, format string, args ...any) {
	const maxNotes = 200
	if len(s.Notes) < maxNotes {
		s.Notes = append(s.Notes, where+": "+fmt.Sprintf(format, args...))
	}
}

// Open opens the filesystem on a volume of this set. For what has no reader
// the error wraps filesystem.ErrUnsupported (or ErrEncrypted) and says what
// the volume is.
func (s *Set) Open(ctx context.Context, v *Volume) (filesystem.Reader, error) {
	k := s.kinds[v.Type]
	if v.Reason != "" {
		err := filesystem.ErrUnsupported
		if k.encrypted {
			err = filesystem.ErrEncrypted
		}
		return nil, fmt.Errorf("volume %s: %w: %s", v.Name, err, v.Reason)
	}
	image := s.Image(v)
	if image == nil || k.open == nil && k.openSeveral == nil {
		return nil, fmt.Errorf("volume %s: %w: no reader for %s", v.Name, filesystem.ErrUnsupported, v.Type)
	}
	var r filesystem.Reader
	var err error
	if k.openSeveral != nil {
		parts := v.parts
		if len(parts) == 0 {
			parts = []Part{{image, v.Size}}
		}
		r, err = k.openSeveral(ctx, parts)
	} else {
		r, err = k.open(ctx, image, v.Size)
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return r, nil
}

// Image gives a volume's raw bytes, v.Size of them; nil when they cannot be
// read at all. Of a partition or a disk they come straight from the disk's image.
func (s *Set) Image(v *Volume) io.ReaderAt {
	if v.device == nil {
		return nil // not an interface around a nil
	}
	return v.device
}
