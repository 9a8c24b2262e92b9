package fs

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cairn/guest/filesystem"
)

// disks lists the point's disks as raw images.
func (d *pointDir) disks(ctx context.Context) ([]child, error) {
	o, err := d.point.open(ctx)
	if err != nil {
		return nil, err
	}
	var children []child
	for _, disk := range o.manifest.Disks {
		name := escapeName(disk.Name) + ".raw"
		ino := hash(d.point.summary.ID, "disks", disk.Name) // the same file under latest
		c := named(name, filesystem.ModeRegular, ino, &diskFile{d.point, disk.Name, disk.Size, ino})
		c.costly = true
		children = append(children, c)
	}
	return children, nil
}

// diskFile is a disk's bytes: sparse, seekable, bootable through an overlay.
type diskFile struct {
	point *point
	name  string
	size  int64
	ino   uint64
}

func (f *diskFile) attr(ctx context.Context, out *fuse.Attr) (time.Duration, error) {
	o, err := f.point.open(ctx)
	if err != nil {
		return 0, err
	}
	image, err := f.point.disk(o, f.name)
	if err != nil {
		return 0, err
	}
	blocks, counted, err := o.allocatedOf(f.name).count(ctx, image)
	if err != nil {
		return 0, err
	}
	stamp := f.point.summary.Time
	*out = fuse.Attr{Ino: f.ino, Mode: filesystem.ModeRegular | 0o400, Nlink: 1, Size: uint64(f.size), Blocks: blocks, Blksize: 1 << 20}
	out.SetTimes(&stamp, &stamp, &stamp)
	if !counted {
		return brief, nil
	}
	return forever, nil
}

func (f *diskFile) content(ctx context.Context) (filesystem.File, error) {
	o, err := f.point.open(ctx)
	if err != nil {
		return nil, err
	}
	return f.point.disk(o, f.name)
}

func (o *opened) allocatedOf(disk string) *allocated {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sizes[disk] == nil {
		o.sizes[disk] = &allocated{turn: make(chan struct{}, 1)}
	}
	return o.sizes[disk]
}

// allocated counts how much of a disk is not a hole, for st_blocks. A large
// disk's map takes time to walk, so each call counts for countFor at most and
// the next goes on; until then the rest of the disk counts as data.
type allocated struct {
	turn chan struct{} // holds a token while somebody counts
	off  int64         // counted up to here
	data int64         // bytes of data before off
	done bool
}

const countFor = 500 * time.Millisecond

// count gives st_blocks and whether it is final.
func (a *allocated) count(ctx context.Context, image filesystem.File) (blocks uint64, final bool, err error) {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
	defer func() { <-a.turn }()
	for until := time.Now().Add(countFor); !a.done && time.Now().Before(until); {
		start, end, err := image.NextData(a.off)
		if errors.Is(err, io.EOF) {
			a.done = true
			break
		}
		if err != nil {
			return 0, false, err
		}
		if start < a.off || end <= start {
			return 0, false, errors.New("internal error: an image's data range goes backwards")
		}
		a.data, a.off = a.data+end-start, end
	}
	bytes := a.data
	if !a.done {
		bytes += image.Size() - a.off
	}
	return uint64(bytes+511) / 512, a.done, nil
}

// seek finds the next data or hole from off on, for lseek(2): io.EOF when
// there is none.
func seek(ctx context.Context, f filesystem.File, off int64, hole bool) (int64, error) {
	if off < 0 || off >= f.Size() {
		return 0, io.EOF
	}
	for pos := off; ; {
		start, end, err := f.NextData(pos)
		switch {
		case !hole:
			return start, err
		case errors.Is(err, io.EOF) || err == nil && start > pos:
			return pos, nil
		case err != nil:
			return 0, err
		case end <= pos:
			return 0, errors.New("internal error: a file's data range goes backwards")
		case end >= f.Size():
			return f.Size(), nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		}
		pos = end
	}
}
