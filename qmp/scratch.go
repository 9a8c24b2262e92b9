package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Names of a fleece's files. Clean removes files only if they match.
const scratchPattern = "cairn-fleece-*"

var scratchPath = regexp.MustCompile(`^/.*/cairn-fleece-[0-9]+/cairn-scratch-[0-9]+\.raw$`)

// scratch is the directory with a fleece's scratch files: what the guest
// overwrites while the fleece is read is kept there.
type scratch struct {
	dir   string
	files []string
}

// makeScratch makes sparse files of the given sizes in a directory of their
// own below parent. QEMU's user owns them.
func makeScratch(parent string, sizes []int64, uid, gid int) (*scratch, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, scratchPattern) // mode 0700
	if err != nil {
		return nil, fmt.Errorf("scratch space: %w", err)
	}
	s := &scratch{dir: dir}
	for i, size := range sizes {
		if err := s.add(i, size, uid, gid); err != nil {
			return nil, errors.Join(fmt.Errorf("scratch space: %w", err), s.remove())
		}
	}
	if err := chown(dir, uid, gid); err != nil {
		return nil, errors.Join(fmt.Errorf("scratch space: %w", err), s.remove())
	}
	return s, nil
}

func (s *scratch) add(i int, size int64, uid, gid int) error {
	name := filepath.Join(s.dir, "cairn-scratch-"+strconv.Itoa(i)+".raw")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	s.files = append(s.files, name)
	return errors.Join(f.Truncate(size), f.Close(), chown(name, uid, gid))
}

// chown gives a file to QEMU's user. Without root's rights we are that user already.
func chown(name string, uid, gid int) error {
	if os.Geteuid() != 0 || uid == 0 && gid == 0 {
		return nil
	}
	return os.Chown(name, uid, gid)
}

// used gives what the files take on their filesystem, in bytes.
func (s *scratch) used() (int64, error) {
	var sum int64
	for _, name := range s.files {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return 0, fmt.Errorf("scratch space: %s: %w", name, err)
		}
		sum += st.Blocks * 512
	}
	return sum, nil
}

// watchInterval is how often a fleece's scratch space is looked at.
const watchInterval = 100 * time.Millisecond

// Watch returns ErrScratchLimit when the scratch files have grown over the
// limit of the options, and nil when ctx ends. QEMU sends no event for either;
// a scratch that is full breaks the fleece, which reading shows.
func (f *Fleece) Watch(ctx context.Context) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		used, err := f.scratch.used()
		if err != nil {
			return err
		}
		if used > f.opt.MaxScratch {
			return fmt.Errorf("%w of %d MiB", ErrScratchLimit, f.opt.MaxScratch>>20)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// scratchShare is the part of the free space that scratch files may take when
// no limit is given: a host whose disk is full has more troubles than a backup
// that broke.
const scratchShare = 0.9

// limitScratch sets the default of MaxScratch.
func (o *FleeceOptions) limitScratch() error {
	if o.MaxScratch > 0 {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(o.ScratchDir, &fs); err != nil {
		return fmt.Errorf("scratch space: %s: %w", o.ScratchDir, err)
	}
	o.MaxScratch = int64(scratchShare * float64(fs.Bavail) * float64(fs.Bsize))
	return nil
}

// remove removes the files and the directory. It may be called again.
func (s *scratch) remove() error {
	var failed error
	for _, name := range append(s.files, s.dir) {
		if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// removeScratchFile removes a dead run's scratch file, and its directory when
// that is empty then.
func removeScratchFile(name string) error {
	if !scratchPath.MatchString(name) || filepath.Clean(name) != name {
		return fmt.Errorf("%s is not named like a scratch file of ours: not removed", name)
	}
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return err
	}
	os.Remove(filepath.Dir(name)) // fails while another disk's file is in it
	return nil
}

// checkSpace checks that at least need bytes are free where path lies.
func checkSpace(path string, need int64, what string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("%s: %s: %w", what, path, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return fmt.Errorf("%s: %s: %w: %d MiB, and %d MiB are needed", what, path, ErrScratchSpace, free>>20, need>>20)
	}
	return nil
}
