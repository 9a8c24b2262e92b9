package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"

	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// stitch is the guest's own view and the mounts that are missing from it.
type stitch struct {
	view     *View
	mounts   []Mount
	problems []Problem
}

// Mount is one filesystem, or a directory of one, in the guest's view.
type Mount struct {
	Path   string // in the view, "/" for the root
	Volume int32  // index in Tree.Volumes
	Dir    string // what of the volume is shown, absolute; "/": all of it
}

// Mounts gives what the guest's view is made of: the root first, each behind
// the one it lies in. The error is that of Guest.
func (t *Tree) Mounts(ctx context.Context) ([]Mount, error) {
	s, err := t.stitch(ctx)
	if err != nil {
		return nil, err
	}
	return s.mounts, nil
}

// mount is one filesystem to be mounted in the guest's view.
type mount struct {
	point  string
	volume int32
	dir    string // of the volume, absolute: what is mounted; "" or "/": all of it
}

func (t *Tree) stitch(ctx context.Context) (*stitch, error) {
	return t.stitched.get(ctx, func(ctx context.Context) (*stitch, error) {
		f, err := t.load(ctx)
		if err != nil {
			return nil, err
		}
		s := stitcher{tree: t, list: f.list}
		mounts, err := s.mounts(ctx)
		if err != nil {
			return nil, err
		}
		view, err := s.mountAll(ctx, mounts)
		if err != nil {
			return nil, err
		}
		return &stitch{view, s.made, s.problems}, nil
	})
}

// stitcher finds out what was mounted where. What an inside agent said comes
// first: it is what really was mounted. /etc/fstab in the image comes last.
type stitcher struct {
	tree     *Tree
	list     []Volume
	layout   layout
	made     []Mount
	problems []Problem
}

func (s *stitcher) problem(where, format string, args ...any) {
	s.problems = append(s.problems, Problem{where, fmt.Sprintf(format, args...)})
}

// mounts gives what to mount, the root first.
func (s *stitcher) mounts(ctx context.Context) ([]mount, error) {
	if d, _ := s.tree.Document(); d != nil { // Problems says that it is damaged
		if mounts := s.fromDocument(d.Mounts); len(mounts) > 0 && mounts[0].point == "/" {
			return mounts, nil
		}
		s.problems = nil // what its list lacks, others may still tell
	}
	if g := s.tree.manifest.Guest; g != nil {
		if mounts := s.fromAgent(g.Filesystems); len(mounts) > 0 && mounts[0].point == "/" {
			return mounts, nil
		}
		s.problems = nil
	}
	root, entries, err := s.findRoot(ctx)
	if err != nil {
		return nil, err
	}
	return s.fromFstab(root, entries), nil
}

// fromAgent matches the mounts that the stock agent listed with volumes.
func (s *stitcher) fromAgent(listed []restorepoint.Mount) []mount {
	var mounts []mount
	if len(listed) > maxMounts {
		s.problem("/", "the inside agent listed %d mounts; only the first %d are shown", len(listed), maxMounts)
		listed = listed[:maxMounts]
	}
	for _, m := range listed {
		if !strings.HasPrefix(m.Mountpoint, "/") {
			s.problem(m.Mountpoint, "drive letters are not stitched together yet; see volumes/")
			continue
		}
		if index := s.volumeOf(m); index >= 0 {
			mounts = append(mounts, mount{point: path.Clean(m.Mountpoint), volume: index})
		} else {
			s.problem(m.Mountpoint, "no volume found for %s (%s), which was mounted here", m.Name, m.Type)
		}
	}
	return shallowFirst(mounts)
}

// volumeOf finds the volume that an agent's mount lies on, or -1: by the
// serial of its disk, else by the kernel's name of it, with the partition's
// number from the device name.
func (s *stitcher) volumeOf(m restorepoint.Mount) int32 {
	for _, below := range m.Disks {
		kernel, partition := splitDevice(strings.TrimPrefix(below.Dev, "/dev/"))
		for i, v := range s.list {
			if v.Disk == "" || v.Partition != partition {
				continue
			}
			if serial := s.serial(v.Disk); serial != "" && below.Serial != "" {
				if serial == below.Serial {
					return int32(i)
				}
			} else if v.Disk == kernel {
				return int32(i)
			}
		}
	}
	if len(m.Disks) > 0 {
		return -1
	}
	for i, v := range s.list {
		if matchSpec("/dev/"+m.Name, v) {
			return int32(i)
		}
	}
	return -1
}

func (s *stitcher) serial(disk string) string {
	for _, d := range s.tree.manifest.Disks {
		if d.Name == disk {
			return d.Serial
		}
	}
	return ""
}

// findRoot finds the volume of "/" by its /etc/fstab: the one whose fstab
// names itself as "/"; else the only one that has an fstab; else, without any
// fstab, the only volume that can be opened.
func (s *stitcher) findRoot(ctx context.Context) (root int32, entries []fstabEntry, err error) {
	var opened, tabled []int32
	tables := map[int32][]fstabEntry{}
	var lastErr error
	for i := range s.list {
		index := int32(i)
		view, err := s.tree.Volume(ctx, index)
		if err != nil {
			if !Lasting(err) {
				return 0, nil, err
			}
			lastErr = err
			continue
		}
		opened = append(opened, index)
		text, err := view.readSmall(ctx, "/etc/fstab")
		if err != nil {
			if !Lasting(err) {
				return 0, nil, err
			}
			continue
		}
		tabled = append(tabled, index)
		tables[index] = parseFstab(text)
		for _, e := range tables[index] {
			if e.point == "/" && matchSpec(e.spec, s.list[i]) {
				return index, tables[index], nil
			}
		}
	}
	switch {
	case len(tabled) > 0:
		if len(tabled) > 1 {
			s.problem("/", "%d volumes have an /etc/fstab and none names itself as the root; %s was chosen", len(tabled), s.list[tabled[0]].Name)
		}
		return tabled[0], tables[tabled[0]], nil
	case len(opened) == 1:
		return opened[0], nil, nil
	case len(opened) > 1:
		return 0, nil, fmt.Errorf("%d volumes and none has an /etc/fstab: %w; see volumes/", len(opened), ErrNoRoot)
	case lastErr != nil:
		return 0, nil, fmt.Errorf("%w: %w", ErrNoRoot, lastErr)
	}
	return 0, nil, fmt.Errorf("%w: no volume on any disk", ErrNoRoot)
}

func (s *stitcher) fromFstab(root int32, entries []fstabEntry) []mount {
	mounts := []mount{{point: "/", volume: root}}
	for _, e := range entries {
		point := path.Clean(e.point)
		if point == "/" {
			continue
		}
		index := int32(-1)
		for i, v := range s.list {
			if matchSpec(e.spec, v) {
				index = int32(i)
				break
			}
		}
		switch {
		case index >= 0 && !e.has("noauto"):
			mounts = append(mounts, mount{point: point, volume: index})
		case index < 0 && !e.has("noauto") && e.kind != "iso9660" && e.kind != "udf":
			s.problem(point, "no volume found for %s, which /etc/fstab mounts here", e.spec)
		}
	}
	return shallowFirst(mounts)
}

// shallowFirst sorts mounts so that each comes behind the one it lies in.
func shallowFirst(mounts []mount) []mount {
	depth := func(m mount) int {
		if m.point == "/" {
			return 0
		}
		return strings.Count(m.point, "/")
	}
	sort.SliceStable(mounts, func(i, j int) bool { return depth(mounts[i]) < depth(mounts[j]) })
	return mounts
}

// mountAll makes the view. Only the root must be there; any other mount that
// fails is a problem, and the directory it would cover is shown as it is.
func (s *stitcher) mountAll(ctx context.Context, mounts []mount) (*View, error) {
	root, err := s.source(ctx, mounts[0])
	if err != nil {
		return nil, fmt.Errorf("root filesystem: %w", err)
	}
	s.layout.from(root)
	s.made = append(s.made, Mount{"/", mounts[0].volume, path.Join("/", mounts[0].dir)})
	view := &View{tree: s.tree, root: root.Node}
	view.mounts = map[Node]Node{}
	for _, m := range mounts[1:] {
		if m.point == "/" {
			continue
		}
		if err := s.cover(ctx, view, m); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			s.problem(m.point, "%s cannot be mounted here: %v", s.list[m.volume].Name, err)
			continue
		}
		s.made = append(s.made, Mount{m.point, m.volume, path.Join("/", m.dir)})
	}
	return view, nil
}

// source finds what a mount shows, in its volume.
func (s *stitcher) source(ctx context.Context, m mount) (*Place, error) {
	view, err := s.tree.Volume(ctx, m.volume)
	if err != nil {
		return nil, err
	}
	pos, err := view.walk(ctx, view.Root(), m.dir, false)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s, which was mounted: %w", m.dir, err)
	case !pos.dir:
		return nil, fmt.Errorf("%s, which was mounted, is a single file: %w", m.dir, filesystem.ErrNotDir)
	}
	return pos.place, nil
}

// maxMountDepth bounds the directories above a mount point.
const maxMountDepth = 256

func (s *stitcher) cover(ctx context.Context, view *View, m mount) error {
	source, err := s.source(ctx, m)
	if err != nil {
		return err
	}
	pos, err := view.walk(ctx, view.Root(), m.point, true)
	if err != nil {
		return err
	}
	if !pos.dir {
		return filesystem.ErrNotDir
	}
	top, covered := source.Node, pos.place.Node
	if top == covered && m.dir != "" {
		return nil // a directory mounted onto itself shows the same
	}
	if max(source.Depth, pos.place.Depth) > maxMountDepth {
		return fmt.Errorf("more than %d directories above it: %w", maxMountDepth, ErrTooLong)
	}
	// A ring would make cross, or whoever walks the tree, run forever.
	if covered == view.root || !s.layout.add(pos.place, source) {
		return errors.New("it would be found again inside itself")
	}
	view.mounts[covered] = top
	return nil
}

// readSmall reads a whole file of at most maxFstab bytes.
func (v *View) readSmall(ctx context.Context, name string) (string, error) {
	p, err := v.Walk(ctx, v.Root(), name, true)
	if err != nil {
		return "", err
	}
	attr, err := v.tree.Attr(ctx, p.Node)
	if err != nil {
		return "", err
	}
	if !attr.IsRegular() {
		return "", fmt.Errorf("%s is not a regular file: %w", name, filesystem.ErrNotExist)
	}
	f, err := v.tree.Open(ctx, p.Node)
	if err != nil {
		return "", err
	}
	text := make([]byte, max(0, min(f.Size(), maxFstab)))
	n, err := f.ReadAt(text, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	return string(text[:n]), nil
}
