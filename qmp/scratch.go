package qmp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

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
