package receive

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxOpen is how deep a tree is removed with an open directory for each level;
// what lies deeper is moved up first.
const maxOpen = 64

// remover removes trees below one directory that nobody else can enter. It
// follows no link and crosses no mount.
type remover struct {
	top   int // what lies too deep is moved here
	moved int
	old   bool // the kernel has no openat2 (before 5.6)
}

// removeTree removes a name in a directory, and all in it. It stops at the
// first thing that cannot be removed. When inode is not 0 only a directory with
// that number is removed: others may rename in dir.
func removeTree(dir int, name string, inode uint64) error {
	top, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return unix.Unlinkat(dir, name, 0)
	}
	defer unix.Close(top)
	var st unix.Stat_t
	if err := unix.Fstat(top, &st); err != nil {
		return err
	}
	if inode != 0 && st.Ino != inode {
		return fmt.Errorf("%q is not the folder that was made there: somebody has put another in its place, and it is left alone", name)
	}
	r := &remover{top: top}
	if err := r.empty(top, 0); err != nil {
		return err
	}
	for i := 0; i < r.moved; i++ { // it may grow meanwhile
		if err := r.remove(top, movedName(i), 0); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

func movedName(i int) string { return fmt.Sprintf("deep-%d", i) }

// empty removes what is in an open directory.
func (r *remover) empty(fd, depth int) error {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(again), "directory")
	defer f.Close()
	for {
		// A directory that loses names while it is read may hide others: read
		// from its start until nothing is left.
		names, err := f.Readdirnames(1000)
		if len(names) == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return nil
		}
		removed := 0
		for _, name := range names {
			if r.isMoved(fd, name) {
				continue
			}
			if err := r.remove(fd, name, depth); err != nil {
				return err
			}
			removed++
		}
		if removed > 0 {
			if _, err := f.Seek(0, 0); err != nil {
				return err
			}
		}
	}
}

// isMoved says whether a name in the top directory is of what was moved there.
func (r *remover) isMoved(fd int, name string) bool {
	if fd != r.top {
		return false
	}
	var i int
	n, err := fmt.Sscanf(name, "deep-%d", &i)
	return n == 1 && err == nil && i < r.moved && name == movedName(i)
}

func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		fd, oerr := r.open(dir, name)
		if oerr == nil {
			defer unix.Close(fd)
			return r.directory(dir, fd, name, depth)
		}
		if !errors.Is(oerr, unix.ENOTDIR) && !errors.Is(oerr, unix.ELOOP) { // no directory: it is immutable
			err = oerr
		}
	}
	return fmt.Errorf("remove %q: %w", name, err)
}

// directory removes a directory that is open.
func (r *remover) directory(dir, fd int, name string, depth int) error {
	if depth >= maxOpen {
		return r.moveUp(dir, name)
	}
	if err := r.empty(fd, depth+1); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove %q: %w", name, err)
	}
	return nil
}

// moveUp moves a directory to the top, under a name that is free: an earlier
// run may have been interrupted.
func (r *remover) moveUp(dir int, name string) error {
	for {
		there, err := inode(r.top, movedName(r.moved))
		if err != nil {
			return err
		}
		r.moved++
		if there == 0 {
			return unix.Renameat(dir, name, r.top, movedName(r.moved-1))
		}
	}
}

// open opens a directory that is on the same mount.
func (r *remover) open(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if !r.old {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH})
		if !errors.Is(err, unix.ENOSYS) {
			return fd, err
		}
		r.old = true
	}
	fd, err := unix.Openat(dir, name, flags, 0)
	if err != nil {
		return -1, err
	}
	here, err := mountID(dir)
	there, err2 := mountID(fd)
	if err = errors.Join(err, err2); err == nil && here != there {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
