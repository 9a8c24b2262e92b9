package image

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openDevice opens a block device for a restore of size bytes. O_EXCL makes
// the kernel refuse one that is mounted, swapped to, or part of another device.
func openDevice(path string, size int64) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, 0, fmt.Errorf("%s is in use (mounted, swap, or part of a RAID, an LVM group or another mapping): free it first; lsblk %s shows who holds it", path, path)
	}
	if err != nil {
		return nil, 0, err
	}
	n, err := deviceSize(f)
	if err == nil && n < size {
		err = fmt.Errorf("%s has %d bytes and the disk %d: it does not fit; grow the device, or name a larger one", path, n, size)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, n, nil
}

func deviceSize(f *os.File) (int64, error) {
	var n uint64
	if err := ioctlBytes(f, unix.BLKGETSIZE64, unsafe.Pointer(&n)); err != nil {
		return 0, fmt.Errorf("%s: its size: %w", f.Name(), err)
	}
	return int64(n), nil
}

// zeroOut lets the kernel make a range of a device read as zeros: by what the
// device offers for that, or by writing.
func zeroOut(f *os.File, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	return ignoringInterrupts(func() error { return ioctlBytes(f, unix.BLKZEROOUT, unsafe.Pointer(&r)) })
}

func ioctlBytes(f *os.File, request uint, p unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(p))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}
