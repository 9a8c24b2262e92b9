package storage

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Bytes of an image file that QEMU locks, block/file-posix.c and
// include/block/block-common.h. They are an agreement between programs: do not
// change.
const (
	permBase   = 100 // + P: somebody uses permission P
	sharedBase = 200 // + P: somebody does not let others use it

	permWrite  = 1 // P of BLK_PERM_WRITE; 2 is WRITE_UNCHANGED, 3 is RESIZE
	permWrites = 3 // how many from there on change a file
)

// foreignWriter says whether another process may write to the file as QEMU's
// programs do. Locks of ours through f do not count.
func (f *file) foreignWriter() (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: permBase + permWrite, Len: permWrites}
	if err := unix.FcntlFlock(f.f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("image %s: asking for QEMU's locks: %w (does its filesystem know them?)", f.path, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

// hold keeps programs of QEMU's from beginning to write to the file.
func (f *file) hold() error {
	err := unix.FcntlFlock(f.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: sharedBase + permWrite, Len: 1})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("image %s: %w", f.path, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("image %s: lock: %w", f.path, err)
	}
	return nil
}

func (f *file) letGo() error {
	return unix.FcntlFlock(f.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: sharedBase + permWrite, Len: 1})
}
