package tree

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"

	"cairn/guest/filesystem"
	"cairn/guest/object"
	"cairn/guest/volume"
	"cairn/index/restorepoint"
)

// Errors that callers branch on, besides those of guest/filesystem.
var (
	// ErrNoRoot says that no volume could be found that holds the guest's "/".
	ErrNoRoot = errors.New("no root filesystem found")
	// ErrLoop says that a path follows more than MaxLinks symbolic links.
	ErrLoop = errors.New("too many levels of symbolic links")
	// ErrTooLong says that a path or a link's target is over Linux' limit.
	ErrTooLong = errors.New("path too long")
)

// Volume describes one volume of a point: the part of guest/volume's Volume
// that finding mounts and showing the volume need.
type Volume struct {
	Name      string // unique and safe as a directory name: "vda1-ext4-boot"
	Disk      string // the point's disk it lies on; "" when on several
	Partition int    // number on Disk; 0 when the whole disk
	Size      int64  // bytes
	Type      string // "ext4", "swap", "" when unknown
	Label     string
	UUID      string
	PartUUID  string
	PartLabel string
	PartType  string // GPT: lower-case UUID; MBR: "0x82"
	Start     int64  // of a partition: its offset on what has it, bytes

	Group, Logical         string // of a logical volume: the names of its group and its own
	GroupUUID, LogicalUUID string // as lvm prints them
	Array                  string // of what lies on an array: its name below /dev
	ArrayUUID              string // as blkid prints it

	Reason string // why it cannot be opened; "" when it can, as far as known
	// Extents is where it lies on the point's disks; empty when that is not simple.
	Extents []volume.Extent
}

// Volumes is what a scan of a point's disks found.
type Volumes interface {
	// List gives the volumes, always in the same order for the same point.
	List() []Volume
	// Notes says in plain words what the scan could not make sense of.
	Notes() []string
	// Open gives the reader of the volume at an index of List.
	Open(ctx context.Context, index int) (filesystem.Reader, error)
}

// Scanner finds the volumes of one point. It is called once, unless it fails
// in a way that may pass.
type Scanner func(ctx context.Context) (Volumes, error)

// Node is an inode of one of a tree's volumes. Node numbers are the same
// whenever the same point is opened.
type Node struct {
	Volume int32 // index in Tree.Volumes, or Drives
	Ino    filesystem.Ino
}

// Problem is a gap in what a tree shows.
type Problem struct {
	Where  string `json:"where"`  // a volume's name, a mount point, "disks", or "apps"
	Reason string `json:"reason"` // in plain words
}

// Tree is the guest's view of one point. See the package comment.
type Tree struct {
	manifest *restorepoint.Manifest
	document func() (*object.Document, error)
	scan     Scanner
	found    *lazy[*found]
	stitched *lazy[*stitch]
	problems *lazy[[]Problem]
}

// found is a finished scan with the readers opened since.
type found struct {
	volumes Volumes
	list    []Volume
	readers []*lazy[filesystem.Reader]
}

// New gives the tree of a point whose volumes scan will find.
func New(m *restorepoint.Manifest, scan Scanner) *Tree {
	return &Tree{
		manifest: m,
		document: sync.OnceValues(m.Guest.Document),
		scan:     scan,
		found:    newLazy[*found](),
		stitched: newLazy[*stitch](),
		problems: newLazy[[]Problem](),
	}
}

func (t *Tree) load(ctx context.Context) (*found, error) {
	return t.found.get(ctx, func(ctx context.Context) (*found, error) {
		volumes, err := t.scan(ctx)
		if err != nil {
			return nil, fmt.Errorf("scan the disks for volumes: %w", err)
		}
		f := &found{volumes: volumes, list: volumes.List()}
		for range f.list {
			f.readers = append(f.readers, newLazy[filesystem.Reader]())
		}
		return f, nil
	})
}

// Volumes gives the point's volumes; Node.Volume counts in this list.
func (t *Tree) Volumes(ctx context.Context) ([]Volume, error) {
	f, err := t.load(ctx)
	if err != nil {
		return nil, err
	}
	return f.list, nil
}

// Reader gives the filesystem of the volume at an index of Volumes.
func (t *Tree) Reader(ctx context.Context, index int32) (filesystem.Reader, error) {
	f, err := t.load(ctx)
	if err != nil {
		return nil, err
	}
	if index == Drives {
		return drives{}, nil
	}
	if index < 0 || int(index) >= len(f.readers) {
		return nil, fmt.Errorf("volume %d of %d: %w", index, len(f.readers), filesystem.ErrNotExist)
	}
	return f.readers[index].get(ctx, func(ctx context.Context) (filesystem.Reader, error) {
		r, err := f.volumes.Open(ctx, int(index))
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", f.list[index].Name, err)
		}
		return r, nil
	})
}

// Attr gives a node's attributes. Attr.Ino is the guest's own number.
func (t *Tree) Attr(ctx context.Context, n Node) (filesystem.Attr, error) {
	r, err := t.Reader(ctx, n.Volume)
	if err != nil {
		return filesystem.Attr{}, err
	}
	return r.Attr(ctx, n.Ino)
}

// Readlink gives a symbolic link's raw target.
func (t *Tree) Readlink(ctx context.Context, n Node) (string, error) {
	r, err := t.Reader(ctx, n.Volume)
	if err != nil {
		return "", err
	}
	return r.Readlink(ctx, n.Ino)
}

// Xattrs gives a node's extended attributes under the guest's names.
func (t *Tree) Xattrs(ctx context.Context, n Node) ([]filesystem.Xattr, error) {
	r, err := t.Reader(ctx, n.Volume)
	if err != nil {
		return nil, err
	}
	return r.Xattrs(ctx, n.Ino)
}

// Open gives the contents of a regular file.
func (t *Tree) Open(ctx context.Context, n Node) (filesystem.File, error) {
	r, err := t.Reader(ctx, n.Volume)
	if err != nil {
		return nil, err
	}
	return r.Open(ctx, n.Ino)
}

// Problems opens every volume and says what the tree cannot show, sorted by
// place. The list does not change once it was given.
func (t *Tree) Problems(ctx context.Context) ([]Problem, error) {
	return t.problems.get(ctx, func(ctx context.Context) ([]Problem, error) {
		var list []Problem
		if _, err := t.Document(); err != nil {
			list = append(list, Problem{"apps", err.Error()})
		}
		f, err := t.load(ctx)
		if err != nil {
			if !Lasting(err) {
				return nil, err
			}
			return append(list, Problem{"disks", err.Error()}), nil
		}
		for _, note := range f.volumes.Notes() {
			list = append(list, Problem{"disks", note})
		}
		for i, v := range f.list {
			if v.Reason != "" {
				list = append(list, Problem{v.Name, v.Reason})
			} else if _, err := t.Reader(ctx, int32(i)); err != nil {
				if ctx.Err() != nil {
					return nil, err
				}
				list = append(list, Problem{v.Name, err.Error()})
			}
		}
		s, err := t.stitch(ctx)
		switch {
		case err == nil:
			list = append(list, s.problems...)
		case Lasting(err):
			list = append(list, Problem{"/", err.Error()})
		default:
			return nil, err
		}
		sort.SliceStable(list, func(i, j int) bool { return list[i].Where < list[j].Where })
		return list, nil
	})
}
