package volume

import (
	"context"
	"fmt"
	"io"

	"cairn/guest/filesystem"
)

// Disk is one disk of a guest at one instant.
type Disk struct {
	Name   string // as the guest's kernel names it, "vda"; or any short name
	Serial string
	Image  io.ReaderAt
	Size   int64 // bytes
}

// Volume is a part of a disk that may hold a filesystem.
type Volume struct {
	// Name is <disk><partition>-<type>[-<label or partition name>]. It is
	// safe as the name of a directory and unique in its Set.
	Name      string
	Disk      string
	Partition int    // 0: the whole disk
	Start     int64  // byte offset on the disk
	Size      int64  // bytes
	Type      string // as blkid names it, with the exceptions in kind.go; "unknown"
	Label     string
	UUID      string // as blkid prints it
	PartUUID  string
	PartLabel string
	PartType  string // GPT: lower-case UUID; MBR: "0x83"
	Reason    string // why it cannot be opened as a tree; "" when it can
	// Extents says where the volume's bytes lie on the disks, by ascending
	// Offset; what is mirrored has several with one Offset. Empty when that
	// cannot be said simply.
	Extents []Extent
}

// Extent is a range of a volume that lies in one piece on a disk.
type Extent struct {
	Offset, Size int64 // bytes, in the volume
	Disk         string
	DiskOffset   int64 // bytes
}

// Set is what was found on the disks of one restore point.
type Set struct {
	Volumes []Volume
	// Notes says in plain words what was damaged or refused.
	Notes []string

	disks map[string]Disk
}

// Scan reads the partition tables and probes what lies in the partitions.
// The only error is ctx's, or two disks of one name; what is damaged or
// cannot be read is noted.
func Scan(ctx context.Context, disks []Disk) (*Set, error) {
	s := &Set{disks: make(map[string]Disk, len(disks))}
	for _, d := range disks {
		if _, twice := s.disks[d.Name]; twice {
			return nil, fmt.Errorf("volume: two disks are named %q", d.Name)
		}
		s.disks[d.Name] = d
		if err := s.scanDisk(ctx, d); err != nil {
			return nil, fmt.Errorf("volume: disk %s: %w", d.Name, err)
		}
	}
	s.nameVolumes()
	for i := range s.Volumes {
		v := &s.Volumes[i]
		v.Extents = []Extent{{Size: v.Size, Disk: v.Disk, DiskOffset: v.Start}}
	}
	return s, nil
}

func (s *Set) note(disk, format string, args ...any) {
	const maxNotes = 200
	if len(s.Notes) < maxNotes {
		s.Notes = append(s.Notes, disk+": "+fmt.Sprintf(format, args...))
	}
}

func (s *Set) scanDisk(ctx context.Context, d Disk) error {
	if d.Size <= 0 || d.Image == nil {
		s.note(d.Name, "the disk is empty")
		return ctx.Err()
	}
	t, err := readTable(ctx, d)
	if err != nil {
		return err
	}
	parts := t.fit(d)
	for _, n := range t.notes {
		s.note(d.Name, "%s", n)
	}
	if !t.found {
		v := Volume{Disk: d.Name, Size: d.Size}
		probe(d.Image, &v)
		s.Volumes = append(s.Volumes, v)
		return nil
	}
	for _, v := range parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		refused := v.Reason
		probe(io.NewSectionReader(d.Image, v.Start, v.Size), &v)
		if refused != "" {
			v.Reason = refused
			s.note(d.Name, "partition %d: %s", v.Partition, refused)
		}
		s.Volumes = append(s.Volumes, v)
	}
	return nil
}

// Open opens the filesystem on a volume of this set. For what has no reader
// the error wraps filesystem.ErrUnsupported (or ErrEncrypted) and says what
// the volume is.
func (s *Set) Open(ctx context.Context, v *Volume) (filesystem.Reader, error) {
	if v.Reason != "" {
		err := filesystem.ErrUnsupported
		if kinds[v.Type].encrypted {
			err = filesystem.ErrEncrypted
		}
		return nil, fmt.Errorf("volume %s: %w: %s", v.Name, err, v.Reason)
	}
	open := kinds[v.Type].open
	section := s.Section(v)
	if open == nil || section == nil {
		return nil, fmt.Errorf("volume %s: %w: no reader for %s", v.Name, filesystem.ErrUnsupported, v.Type)
	}
	r, err := open(ctx, section, v.Size)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return r, nil
}

// Section gives a volume's raw bytes; nil when its disk is not in the set.
func (s *Set) Section(v *Volume) *io.SectionReader {
	d, ok := s.disks[v.Disk]
	if !ok || d.Image == nil || v.Start < 0 || v.Size < 0 || v.Start > d.Size || v.Size > d.Size-v.Start {
		return nil
	}
	return io.NewSectionReader(d.Image, v.Start, v.Size)
}
