package wire

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"
	"time"

	"cairn/cmd/internal/job"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// FindFiles gives a job.FileFinder that takes no longer than limit for all
// points together.
//
// No reader of a filesystem says where a file's bytes lie. But each reads them
// from the image, straight into its caller's buffer: such a read is only held
// against what is lost, and nothing is read. What a reader wants for itself
// (directories, inodes, maps of blocks) is read, or fails where it is lost. So
// a point is searched at the speed of a walk, not of its data.
func (c *Catalogue) FindFiles(limit time.Duration) job.FileFinder {
	var end time.Time
	return func(ctx context.Context, m *restorepoint.Manifest, lost map[string][][2]int64, most int) ([]job.GuestFile, string, error) {
		if end.IsZero() {
			end = time.Now().Add(limit)
		}
		tctx, cancel := context.WithDeadline(ctx, end)
		defer cancel()
		s := newSufferers(lost, most)
		err := s.find(tctx, m, func(disk string) (restorepoint.Image, error) { return c.Image(tctx, m, disk) })
		switch {
		case ctx.Err() != nil:
			return nil, "", ctx.Err()
		case errors.Is(err, errEnough):
			return s.files, fmt.Sprintf("these are the first %d", most), nil
		case tctx.Err() != nil:
			return s.files, fmt.Sprintf("the time for looking is over (--files-time %s)", limit), nil
		case err != nil:
			return s.files, "its filesystems cannot all be looked at: " + err.Error(), nil
		}
		return s.files, strings.Join(s.gaps, "; "), nil
	}
}

// errEnough ends a search.
var errEnough = errors.New("enough files were found")

// lostError is met where bytes of a disk are lost.
type lostError struct {
	disk   string
	offset int64
}

func (e *lostError) Error() string {
	return fmt.Sprintf("byte %d of disk %s is lost", e.offset, e.disk)
}

// Is makes it a damage that stays.
func (e *lostError) Is(target error) bool { return target == filesystem.ErrCorrupt }

// gapError is met in a file's bytes.
type gapError struct {
	from int64 // byte of the file
	lost *lostError
}

func (e *gapError) Error() string {
	return fmt.Sprintf("from byte %d of the file on: %v", e.from, e.lost)
}

func (e *gapError) Unwrap() error { return e.lost }

// probe is a disk's image of which the ranges in lost cannot be read, and of
// which the bytes of files are not.
type probe struct {
	restorepoint.Image
	disk string
	lost [][2]int64
	skip []byte // reads into this buffer are not done
}

// ReadAt implements restorepoint.Image.
func (p *probe) ReadAt(b []byte, off int64) (int, error) {
	end := off + int64(len(b))
	i := sort.Search(len(p.lost), func(i int) bool { return p.lost[i][1] > off })
	if i < len(p.lost) && p.lost[i][0] < end {
		return 0, &lostError{p.disk, max(off, p.lost[i][0])}
	}
	// A piece of a buffer reaches to the buffer's end in memory.
	if n := cap(b); len(b) > 0 && end <= p.Size() && &b[:n][n-1] == &p.skip[len(p.skip)-1] {
		return len(b), nil
	}
	return p.Image.ReadAt(b, off)
}

// sufferers is one search in one point.
type sufferers struct {
	lost   map[string][][2]int64
	most   int
	buffer []byte // files are read into it
	skip   []byte // the same: their bytes are of no interest
	real   []byte // for those that are; nil: not needed yet
	files  []job.GuestFile
	gaps   []string // why there may be more

	tree   *tree.Tree
	mounts []tree.Mount
	volume int32
	name   string // the volume's
}

func newSufferers(lost map[string][][2]int64, most int) *sufferers {
	buffer := make([]byte, 1<<20)
	return &sufferers{lost: lost, most: most, buffer: buffer, skip: buffer}
}

func (s *sufferers) find(ctx context.Context, m *restorepoint.Manifest, image func(disk string) (restorepoint.Image, error)) (err error) {
	s.tree, err = tree.Open(ctx, m, func(disk string) (restorepoint.Image, error) {
		i, err := image(disk)
		if err != nil {
			return nil, err
		}
		return &probe{i, disk, s.lost[disk], s.skip}, nil
	})
	if err != nil {
		return err
	}
	volumes, err := s.tree.Volumes(ctx)
	if err != nil {
		return err
	}
	if s.mounts, err = s.tree.Mounts(ctx); err != nil && ctx.Err() != nil {
		return err // else the volumes are shown by themselves
	}
	for i := range volumes {
		v := &volumes[i]
		if !s.touches(v) {
			continue
		}
		s.volume, s.name = int32(i), v.Name
		if v.Reason != "" {
			if v.Type != "" && v.Type != "swap" {
				s.gaps = append(s.gaps, fmt.Sprintf("volume %s cannot be looked at: %s", v.Name, v.Reason))
			}
			continue
		}
		view, err := s.tree.Volume(ctx, int32(i))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if err := s.found("", fmt.Errorf("the filesystem cannot be opened: %w", err)); err != nil {
				return err
			}
			continue
		}
		if err := tree.Visit(ctx, view, view.Root(), "v", visitor{s, ctx}); err != nil {
			return err
		}
	}
	return nil
}

// touches says whether lost bytes can lie in a volume.
func (s *sufferers) touches(v *tree.Volume) bool {
	if len(v.Extents) == 0 {
		return true // its layout is not simple
	}
	for _, e := range v.Extents {
		for _, r := range s.lost[e.Disk] {
			if r[0] < e.DiskOffset+e.Size && e.DiskOffset < r[1] {
				return true
			}
		}
	}
	return false
}

// found takes a file or directory of the volume, by its path there.
func (s *sufferers) found(inside string, why error) error {
	if len(s.files) == s.most {
		return errEnough
	}
	s.files = append(s.files, job.GuestFile{Path: s.pathOf(inside), Error: why.Error()})
	return nil
}

// pathOf gives a path of the volume as the guest sees it.
func (s *sufferers) pathOf(inside string) string {
	inside = "/" + strings.TrimPrefix(inside, "/")
	for _, m := range s.mounts {
		if m.Volume != s.volume {
			continue
		}
		if m.Dir == "/" || m.Dir == "" {
			return path.Join(m.Path, inside)
		}
		if rest, ok := strings.CutPrefix(inside, m.Dir); ok && (rest == "" || rest[0] == '/') {
			return path.Join(m.Path, rest)
		}
	}
	return s.name + ":" + inside
}

// visitor is the tree.Sink of a search.
type visitor struct {
	*sufferers
	ctx context.Context // of the visit, which calls it
}

// Enter implements tree.Sink.
func (visitor) Enter(*tree.Item) error { return nil }

// Leave implements tree.Sink.
func (visitor) Leave(*tree.Item) error { return nil }

// Take implements tree.Sink.
func (v visitor) Take(i *tree.Item) error {
	switch {
	case i.Again:
		return nil
	case i.Attr.Mode&filesystem.ModeType == filesystem.ModeSymlink:
		_, err := v.tree.Readlink(v.ctx, i.Node)
		return err
	case !i.Attr.IsRegular():
		return nil
	}
	f, err := v.tree.Open(v.ctx, i.Node)
	if err != nil {
		return err
	}
	return tree.Extents(v.ctx, f, func(off, end int64) error {
		for ; off < end; off += int64(len(v.buffer)) {
			if err := v.piece(f, off, min(int64(len(v.buffer)), end-off)); err != nil {
				return err
			}
		}
		return v.ctx.Err()
	})
}

// piece looks at n bytes of a file. A reader that checks what it read, or makes
// something of it, fails on bytes that were not read: then they are.
func (v visitor) piece(f filesystem.File, off, n int64) error {
	var lost *lostError
	got, err := f.ReadAt(v.buffer[:n], off)
	if int64(got) < n && !errors.As(err, &lost) {
		if v.real == nil {
			v.real = make([]byte, len(v.buffer))
		}
		got, err = f.ReadAt(v.real[:n], off)
	}
	if int64(got) < n && errors.As(err, &lost) {
		return &gapError{off + int64(got), lost}
	}
	return nil // what else is wrong with it was so in the guest
}

// Failed implements tree.Sink: of what fails, that is told which fails because
// bytes are lost.
func (v visitor) Failed(p string, why error) error {
	var lost *lostError
	if !errors.As(why, &lost) {
		return nil
	}
	if gap := (*gapError)(nil); errors.As(why, &gap) {
		return v.found(strings.TrimPrefix(p, "v"), gap)
	}
	return v.found(strings.TrimPrefix(p, "v"), fmt.Errorf("its attributes, its names, or the map of its blocks: %w", lost))
}
