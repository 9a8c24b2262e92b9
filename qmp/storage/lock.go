package storage

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Bytes of an image file that QEMU locks, block/file-posix.c and
// include/block/block-common.h. They are an agreement between programs: do not
// change. The locks are read locks that belong to an open file description.
const (
	permBase   = 100 // + P: somebody uses permission P
	sharedBase = 200 // + P: somebody does not let others use it
	permRange  = 64  // permissions there is room for; QEMU has 4 or 5

	permRead   = 0 // P of BLK_PERM_CONSISTENT_READ
	permWrite  = 1 // P of BLK_PERM_WRITE; 2 is WRITE_UNCHANGED
	permResize = 3 // P of BLK_PERM_RESIZE
	permWrites = 3 // how many from permWrite on change a file
)

// foreignLock says whether another open file has a lock on one of n bytes.
func foreignLock(f *os.File, start, n int64) (bool, error) {
	// A write lock would clash with any lock there.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: n}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("image %s: asking for QEMU's locks: %w (does its filesystem know them?)", f.Name(), err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

// setLock sets or takes away our lock on one byte.
func setLock(f *os.File, kind int16, at int64) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
}

// Used says whether QEMU has the file open in any way, also for reading: by its
// locks, and by its open files where its locks were switched off. by names a
// process for people, " by "qemu-img" (process 4711)", as far as this user may
// see, and else is empty. Locks of ours through f do not count.
func Used(f *os.File) (used bool, by string, err error) {
	program, pid, err := userOf(f)
	if err != nil {
		return false, "", err
	}
	if program != "" {
		by = fmt.Sprintf(" by %q (process %s)", program, pid)
	}
	if isQEMU(program) {
		return true, by, nil
	}
	for _, base := range []int64{permBase, sharedBase} {
		if used, err := foreignLock(f, base, permRange); used || err != nil {
			return used, by, err
		}
	}
	return false, "", nil
}

// Lock takes the locks of one who writes and lets nobody else in, as QEMU does,
// so that no VM can start on the image. They go with the open file, which must
// be open for reading. Who has the image open already is not noticed: ask Used
// before, and after, as one may come in between.
func Lock(f *os.File) error {
	for _, base := range []int64{permBase, sharedBase} {
		for _, perm := range []int64{permRead, permWrite, permResize} {
			if err := setLock(f, unix.F_RDLCK, base+perm); err != nil {
				return fmt.Errorf("%s: lock it against VMs: %w", f.Name(), err)
			}
		}
	}
	return nil
}

// foreignWriter says whether another process may write to the file as QEMU's
// programs do. Locks of ours through f do not count.
func (f *file) foreignWriter() (bool, error) {
	return foreignLock(f.f, permBase+permWrite, permWrites)
}

// hold keeps programs of QEMU's from beginning to write to the file.
func (f *file) hold() error {
	err := setLock(f.f, unix.F_RDLCK, sharedBase+permWrite)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("image %s: %w", f.path, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("image %s: lock: %w", f.path, err)
	}
	return nil
}

func (f *file) letGo() error { return setLock(f.f, unix.F_UNLCK, sharedBase+permWrite) }
