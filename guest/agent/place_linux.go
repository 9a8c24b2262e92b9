package agent

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// on gives the filesystems that an object's path touches: the one that it lies
// on, symbolic links being followed, and those on disks that are mounted below
// it. Of a path that is not there its next directory that is counts. It is
// asked before the freeze, for it may wait.
func (z *freezing) on(ctx context.Context, name string) ([]*superblock, error) {
	if s := z.elsewhere(name); s != nil {
		return []*superblock{s}, nil
	}
	resolved, id, err := resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	var touched []*superblock
	for _, s := range z.all {
		for _, m := range s.mounts {
			if m.id == id {
				touched = append(touched, z.holder(s))
			} else if m.point != resolved && within(m.point, resolved) && s.onDisk() {
				touched = append(touched, s)
			}
		}
	}
	if !slices.ContainsFunc(z.all, func(s *superblock) bool {
		return slices.ContainsFunc(s.mounts, func(m mount) bool { return m.id == id })
	}) {
		return nil, errors.New("it lies on no filesystem that is known")
	}
	slices.SortFunc(touched, func(a, b *superblock) int { return slices.Index(z.all, a) - slices.Index(z.all, b) })
	return slices.Compact(touched), nil
}

// elsewhere gives the filesystem that a name lies on by its spelling alone, if
// that is one whose server or program may be gone: asking it may hang for good.
func (z *freezing) elsewhere(name string) *superblock {
	s, _ := z.nearest(name, nil)
	if s != nil && (slices.Contains(elsewhere, s.mounts[0].kind) || strings.HasPrefix(s.mounts[0].kind, "fuse")) {
		return s
	}
	return nil
}

// nearest gives the filesystem with the longest mount point above a name, but
// not one. The last one mounted at a point is the one that is seen.
func (z *freezing) nearest(name string, not *superblock) (found *superblock, longest int) {
	for _, s := range z.all {
		for _, m := range s.mounts {
			if s != not && within(name, m.point) && len(m.point) >= longest {
				found, longest = s, len(m.point)
			}
		}
	}
	return found, longest
}

// holder gives the filesystem that holds what is written to s: for an overlay
// the one of its upper directory.
func (z *freezing) holder(s *superblock) *superblock {
	m := s.mounts[0]
	upper, ok := option(m.superOptions, "upperdir")
	if m.kind != "overlay" || !ok || !path.IsAbs(upper) {
		return s
	}
	if found, _ := z.nearest(upper, s); found != nil && found.mounts[0].kind != "overlay" {
		return found
	}
	return s
}

// resolve gives where a name leads, without opening what is there, and the
// number of the mount that it lies on.
func resolve(ctx context.Context, name string) (resolved string, mount int, err error) {
	type answer struct {
		path  string
		mount int
	}
	a, err := patiently(ctx, openTime, func() (answer, error) {
		fd, err := openNearest(name)
		if err != nil {
			return answer{}, err
		}
		defer unix.Close(fd)
		where, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			return answer{}, err
		}
		id, err := mountID(fd)
		return answer{where, id}, err
	}, func(answer) {})
	return a.path, a.mount, err
}

func openNearest(name string) (int, error) {
	for {
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) || name == "/" {
			return fd, err
		}
		name = path.Dir(name)
	}
}
