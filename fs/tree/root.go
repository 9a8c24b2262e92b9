package tree

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"

	"cairn/guest/filesystem"
)

// root is what was found of the guest's "/" in its image.
type root struct {
	volume  int32        // or Drives, of a Windows guest
	dir     string       // of the volume
	entries []fstabEntry // of its /etc/fstab

	system  int32 // Windows: the volume that it runs from
	devices mountedDevices
}

// findRoot finds the directory of "/" by its /etc/fstab: the one whose fstab
// names itself as "/"; else Windows; else the only one that has an fstab; else,
// without any fstab, the only volume that can be opened.
func (s *stitcher) findRoot(ctx context.Context) (*root, error) {
	var opened, tabled []*root
	var lastErr error
	for i := range s.list {
		view, err := s.tree.Volume(ctx, int32(i))
		if err != nil {
			if !Lasting(err) {
				return nil, err
			}
			lastErr = err
			continue
		}
		dirs, err := s.rootDirs(ctx, view, int32(i))
		if err != nil {
			return nil, err
		}
		for n, dir := range dirs {
			r := &root{volume: int32(i), dir: dir}
			if n == 0 {
				opened = append(opened, r)
			}
			text, err := view.readSmall(ctx, dir+"/etc/fstab")
			if err != nil {
				if !Lasting(err) {
					return nil, err
				}
				continue
			}
			r.entries = parseFstab(text)
			tabled = append(tabled, r)
			itself, err := s.namesItself(ctx, r)
			if itself || err != nil {
				return r, err
			}
		}
	}
	system, devices, err := s.windows(ctx)
	switch {
	case err != nil:
		return nil, err
	case system >= 0:
		return &root{volume: Drives, system: system, devices: devices}, nil
	case len(tabled) > 0:
		if len(tabled) > 1 {
			s.problem("/", "%d directories have an /etc/fstab and none names itself as the root; %s of %s was chosen", len(tabled), path.Join("/", tabled[0].dir), s.list[tabled[0].volume].Name)
		}
		return tabled[0], nil
	case len(opened) == 1:
		return opened[0], nil
	case len(opened) > 1:
		return nil, fmt.Errorf("%d volumes and none has an /etc/fstab: %w; see volumes/", len(opened), ErrNoRoot)
	case lastErr != nil:
		return nil, fmt.Errorf("%w: %w", ErrNoRoot, lastErr)
	}
	return nil, fmt.Errorf("%w: no volume on any disk", ErrNoRoot)
}

// maxSubvolumes bounds the directories in which a root is looked for.
const maxSubvolumes = 64

// rootDirs gives the directories of a volume that can be a root: the one that
// is mounted without options, and, where there are subvolumes, the directories
// in which installers put the root ("@", "root", "@rootfs").
func (s *stitcher) rootDirs(ctx context.Context, view *View, index int32) ([]string, error) {
	home, err := s.home(ctx, index)
	if err != nil || s.list[index].Type != "btrfs" {
		return []string{home}, err
	}
	dirs := []string{home}
	err = view.ReadDir(ctx, view.root, 0, func(e Entry) bool {
		if dir := "/" + e.Name; dir != home && (e.Type == filesystem.ModeDir || e.Type == 0) {
			dirs = append(dirs, dir)
		}
		return len(dirs) < maxSubvolumes
	})
	if err != nil && !Lasting(err) {
		return nil, err
	}
	return dirs, nil
}

func (s *stitcher) namesItself(ctx context.Context, r *root) (bool, error) {
	for _, e := range r.entries {
		if e.point != "/" || !matchSpec(e.spec, s.list[r.volume]) {
			continue
		}
		dir, err := s.shown(ctx, r.volume, e)
		if err == nil && path.Join("/", dir) == path.Join("/", r.dir) {
			return true, nil
		}
		if err != nil && !Lasting(err) {
			return false, err
		}
	}
	return false, nil
}

// home gives the directory that a mount of a volume shows without options, ""
// when it cannot be opened: whoever mounts it will say so.
func (s *stitcher) home(ctx context.Context, index int32) (string, error) {
	r, err := s.tree.Reader(ctx, index)
	if err != nil {
		if Lasting(err) {
			err = nil
		}
		return "", err
	}
	if home := r.Info().Home; home != "" {
		return path.Join("/", home), nil
	}
	return "", nil
}

// Subvolumes is a Reader whose parts can be mounted by a number: btrfs.
type Subvolumes interface {
	// Subvolume gives the path of a subvolume below the reader's root. The
	// error wraps filesystem.ErrNotExist when there is none.
	Subvolume(ctx context.Context, id uint64) (string, error)
}

// topSubvolume is the number of btrfs' top-level subvolume; 0 means it, too.
const topSubvolume = 5

// shown gives the directory of a volume that an entry of fstab mounts.
func (s *stitcher) shown(ctx context.Context, index int32, e fstabEntry) (string, error) {
	if name, ok := e.value("subvol"); ok {
		return path.Join("/", name), nil
	}
	number, ok := e.value("subvolid")
	if !ok {
		return s.home(ctx, index)
	}
	id, err := strconv.ParseUint(number, 0, 64)
	if err != nil {
		return "", fmt.Errorf("subvolume %q: %w", number, filesystem.ErrNotExist)
	}
	if id == 0 || id == topSubvolume {
		return "/", nil
	}
	r, err := s.tree.Reader(ctx, index)
	if err != nil {
		return "", err
	}
	by, ok := r.(Subvolumes)
	if !ok {
		return "", fmt.Errorf("a subvolume by its number (%d): %w", id, filesystem.ErrUnsupported)
	}
	dir, err := by.Subvolume(ctx, id)
	if err != nil {
		return "", fmt.Errorf("subvolume %d: %w", id, err)
	}
	return path.Join("/", dir), nil
}

// fromFstab gives what a root's fstab mounts, the root first.
func (s *stitcher) fromFstab(ctx context.Context, r *root) ([]mount, error) {
	mounts := []mount{{point: "/", volume: r.volume, dir: r.dir}}
	for _, e := range r.entries {
		point := path.Clean(e.point)
		if point == "/" || e.has("noauto") {
			continue
		}
		if e.isBind() {
			mounts = append(mounts, mount{point: point, bind: path.Clean(e.spec)})
			continue
		}
		index := s.volumeOfSpec(e.spec)
		if index < 0 {
			if e.kind != "iso9660" && e.kind != "udf" {
				s.problem(point, "no volume found for %s, which /etc/fstab mounts here", e.spec)
			}
			continue
		}
		dir, err := s.shown(ctx, index, e)
		if err != nil {
			if !Lasting(err) || errors.Is(err, context.Canceled) {
				return nil, err
			}
			s.problem(point, "%s cannot be mounted here: %v", s.list[index].Name, err)
			continue
		}
		mounts = append(mounts, mount{point: point, volume: index, dir: dir})
	}
	return shallowFirst(mounts), nil
}

// volumeOfSpec finds the volume that an fstab names, one that can be opened
// before one that only has the same label or UUID, such as a member of an array.
func (s *stitcher) volumeOfSpec(spec string) int32 {
	index := int32(-1)
	for i, v := range s.list {
		if matchSpec(spec, v) && (index < 0 || s.list[index].Reason != "" && v.Reason == "") {
			index = int32(i)
		}
	}
	return index
}
