package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMU locks bytes of an image while it has it open: 100+i says "I use
// permission i", 200+i "nobody else may use permission i" (block/file-posix.c,
// RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE). The locks are read locks that
// belong to an open file description.
const (
	lockPermBase   = 100
	lockSharedBase = 200
	lockRange      = 64 // permissions there is room for; QEMU has 4 or 5

	permRead   = 0
	permWrite  = 1
	permResize = 3
)

// ErrInUse: a running VM, or a tool of QEMU's, has the image open.
var ErrInUse = errors.New("the image is in use")

// imageInUse says ErrInUse if QEMU has the file open in any way: by its
// locks, and by its open files where its locks were switched off.
func imageInUse(f *os.File) error {
	user, name := userOf(f)
	if strings.HasPrefix(name, "qemu") || strings.HasPrefix(name, "kvm") {
		return inUse(f, user)
	}
	for _, base := range []int64{lockPermBase, lockSharedBase} {
		// A write lock would clash with any lock there.
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: base, Len: lockRange}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
			return fmt.Errorf("%s: ask for QEMU's locks: %w", f.Name(), err)
		}
		if l.Type != unix.F_UNLCK {
			return inUse(f, user)
		}
	}
	return nil
}

// lockImage takes the locks of one who writes and lets nobody else in, as QEMU
// does, so that no VM can start on an image that is half written. They go with
// the open file. f must be open for reading.
func lockImage(f *os.File) error {
	if err := imageInUse(f); err != nil {
		return err
	}
	for _, at := range []int64{lockPermBase + permRead, lockPermBase + permWrite, lockPermBase + permResize,
		lockSharedBase + permRead, lockSharedBase + permWrite, lockSharedBase + permResize} {
		l := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
			return fmt.Errorf("%s: lock it against VMs: %w", f.Name(), err)
		}
	}
	// Who came between the question and the locks: F_OFD_GETLK does not tell
	// of locks of the same open file.
	return imageInUse(f)
}

func inUse(f *os.File, user string) error {
	return fmt.Errorf("%s: %w%s: shut the VM down first, or restore to another file", f.Name(), ErrInUse, user)
}

// userOf names a process that has the file open, as far as this user may see:
// " by qemu-system-x86 (process 4711)" and "qemu-system-x86"; QEMU before others.
func userOf(f *os.File) (text, name string) {
	st, err := f.Stat()
	if err != nil {
		return "", ""
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", ""
	}
	self := strconv.Itoa(os.Getpid())
	for _, link := range links {
		pid := strings.Split(link, "/")[2]
		if other, err := os.Stat(link); pid == self || err != nil || !os.SameFile(st, other) {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			continue // it has ended
		}
		name = strings.TrimSpace(string(comm))
		text = fmt.Sprintf(" by %q (process %s)", name, pid)
		if strings.HasPrefix(name, "qemu") || strings.HasPrefix(name, "kvm") {
			break
		}
	}
	return text, name
}
