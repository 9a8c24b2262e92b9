package powercut

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// nextData gives the next part of a file from off on that is no hole; io.EOF
// when there is none.
func nextData(f *os.File, off int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err == nil {
		end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	}
	return start, end, err
}

// attach puts a loop device on an image file. It goes with its last user, and
// device is open: whoever closes it without a mount on it ends it.
func attach(image string) (device *os.File, err error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // the device has its own
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close() // nothing is written to it
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: sectorSize, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	for range 100 { // others take devices, too
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		d, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(d.Fd()), &config)
		if err == nil {
			return d, nil
		}
		err = errors.Join(err, d.Close())
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set up %s: %w", d.Name(), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.New("no loop device is free for long enough")
}

// Mount mounts an image file; the kernel recovers what a cut has left. The
// image may be mounted once at a time.
func Mount(fstype, image, dir string) (err error) {
	device, err := attach(image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	options := ""
	if fstype == "xfs" {
		options = "nouuid" // the images of a recording are one file system's
	}
	if err := unix.Mount(device.Name(), dir, fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, options); err != nil {
		return fmt.Errorf("mount %s with %s: %w", filepath.Base(image), fstype, err)
	}
	return nil
}

// Unmount unmounts dir, also when something there is still in use: then it
// says so.
func Unmount(dir string) error {
	err := unix.Unmount(dir, 0)
	if err == nil || errors.Is(err, unix.EINVAL) { // not mounted
		return nil
	}
	return errors.Join(fmt.Errorf("unmount %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH))
}
