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
	Volume int32  // index in Tree.Volumes; Drives at the root of a Windows guest
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
	volume int32  // or Drives, at "/" only
	dir    string // of the volume, absolute: what is mounted; "" or "/": all of it
	bind   string // of the view, absolute: what is mounted instead of a volume
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
		mounts, err := s.fromDocument(ctx, d.Mounts)
		if err != nil || len(mounts) > 0 && mounts[0].point == "/" {
			return mounts, err
		}
		s.problems = nil // what its list lacks, others may still tell
	}
	if g := s.tree.manifest.Guest; g != nil {
		mounts, err := s.fromAgent(ctx, g.Filesystems)
		if err != nil || len(mounts) > 0 && mounts[0].point == "/" {
			return mounts, err
		}
		s.problems = nil
	}
	root, err := s.findRoot(ctx)
	if err != nil {
		return nil, err
	}
	if root.volume == Drives {
		return fromRegistry(root.system, root.devices), nil
	}
	return s.fromFstab(ctx, root)
}

// shallowFirst sorts mounts so that each comes behind the one it lies in, and
// those of directories of the view behind all others.
func shallowFirst(mounts []mount) []mount {
	depth := func(m mount) int {
		deep := strings.Count(m.point, "/")
		switch {
		case m.point == "/":
			return 0
		case m.bind != "":
			return deep + 1<<20
		}
		return deep
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
			what := m.bind
			if what == "" {
				what = s.list[m.volume].Name
			}
			s.problem(m.point, "%s cannot be mounted here: %v", what, err)
			continue
		}
		s.made = append(s.made, s.plain(m))
	}
	return view, nil
}

// plain says of a mount which directory of which volume it shows.
func (s *stitcher) plain(m mount) Mount {
	if m.bind == "" {
		return Mount{m.point, m.volume, path.Join("/", m.dir)}
	}
	of, rest := s.made[0], m.bind // the mount that has the directory: the longest that fits
	for _, made := range s.made {
		if below, ok := strings.CutPrefix(m.bind, strings.TrimSuffix(made.Path, "/")); ok && (below == "" || below[0] == '/') && len(below) <= len(rest) {
			of, rest = made, below
		}
	}
	return Mount{m.point, of.Volume, path.Join("/", of.Dir, rest)}
}

// source finds what a mount shows, in its volume.
func (s *stitcher) source(ctx context.Context, m mount) (*Place, error) {
	view, err := s.tree.Volume(ctx, m.volume)
	if err != nil {
		return nil, err
	}
	return directory(ctx, view, m.dir, false)
}

func directory(ctx context.Context, view *View, dir string, follow bool) (*Place, error) {
	pos, err := view.walk(ctx, view.Root(), dir, follow)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s, which was mounted: %w", dir, err)
	case !pos.dir:
		return nil, fmt.Errorf("%s, which was mounted, is a single file: %w", dir, filesystem.ErrNotDir)
	}
	return pos.place, nil
}

// maxMountDepth bounds the directories above a mount point.
const maxMountDepth = 256

func (s *stitcher) cover(ctx context.Context, view *View, m mount) error {
	var source *Place
	var err error
	if m.bind != "" {
		source, err = directory(ctx, view, m.bind, true)
	} else {
		source, err = s.source(ctx, m)
	}
	if err != nil {
		return err
	}
	if view.root.Volume == Drives && isDrive(m.point) {
		return s.addDrive(view, m.point[1:], source)
	}
	pos, err := view.walk(ctx, view.Root(), m.point, true)
	if err != nil {
		return err
	}
	if !pos.dir {
		return filesystem.ErrNotDir
	}
	top, covered := source.Node, pos.place.Node
	if top == covered && (m.dir != "" || m.bind != "") {
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

// addDrive puts a drive letter into the root of a Windows guest's view.
func (s *stitcher) addDrive(view *View, letter string, source *Place) error {
	if _, err := view.lookupDrive(letter); err == nil {
		return errors.New("another volume has this letter")
	}
	if !s.layout.add(view.Root(), source) {
		return errors.New("it would be found again inside itself")
	}
	view.drives = append(view.drives, drive{letter, source.Node})
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

// Swap gives the volumes and the files that the view's /etc/fstab names as swap
// space; none when it cannot be read.
func (v *View) Swap(ctx context.Context) (volumes map[int32]bool, files []string) {
	volumes = map[int32]bool{}
	text, err := v.readSmall(ctx, "/etc/fstab")
	if err != nil {
		return volumes, nil
	}
	list, err := v.tree.Volumes(ctx)
	if err != nil {
		return volumes, nil
	}
	for _, spec := range parseSwap(text) {
		if strings.HasPrefix(spec, "/") && !isDeviceSpec(spec) {
			files = append(files, spec)
			continue
		}
		for i := range list {
			if matchSpec(spec, list[i]) {
				volumes[int32(i)] = true
			}
		}
	}
	return volumes, files
}
