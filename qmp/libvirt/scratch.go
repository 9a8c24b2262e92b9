package libvirt

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cairn/qmp"
)

// makeDir makes a folder for one fleece below parent, whose owner is QEMU's
// user: libvirt makes the files in it, and QEMU the socket.
func makeDir(parent string, uid, gid int) (string, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return "", err
	}
	if us := os.Geteuid(); us != 0 && us != uid {
		return "", fmt.Errorf("scratch space: QEMU runs as user %d and cairn as %d: run cairn as root, or use qemu:///session", uid, us)
	}
	dir, err := os.MkdirTemp(parent, "cairn-fleece-*") // mode 0700
	if err != nil {
		return "", fmt.Errorf("scratch space: %w", err)
	}
	if os.Geteuid() == 0 {
		err = os.Chown(dir, uid, gid)
	}
	if err == nil {
		err = reachable(parent, uid, gid)
	}
	if err != nil {
		_ = os.Remove(dir) // it is empty
		return "", fmt.Errorf("scratch space: %w", err)
	}
	return dir, nil
}

// reachable checks that a user may walk to a folder.
func reachable(dir string, uid, gid int) error {
	for ; ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		bit := uint32(0o001)
		switch {
		case uid == 0:
			return nil
		case int(st.Uid) == uid:
			bit = 0o100
		case int(st.Gid) == gid:
			bit = 0o010
		}
		if st.Mode&bit == 0 {
			return fmt.Errorf("QEMU's user (%d) may not enter %s: chmod o+x it, or name another folder with --scratch", uid, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// checkSpace checks that there is room for what QEMU will write, and for
// bitmaps in the images: no space there can damage an image.
func (f *Fleece) checkSpace() error {
	need := f.opt.MinScratch
	var total int64
	for _, fd := range f.opt.Disks {
		total += fd.Disk.Size
		if f.push {
			need += pushed(fd)
		}
		if fd.Disk.Persistent && filepath.IsAbs(fd.Disk.File) {
			if _, err := os.Stat(fd.Disk.File); err != nil {
				continue // not a file that we can see
			}
			perBitmap := fd.Disk.Size/qmp.Granularity/8 + 64<<10
			if err := free(filepath.Dir(fd.Disk.File), 8<<20+4*perBitmap, "space for bitmaps in the image of disk "+fd.Disk.Name); err != nil {
				return err
			}
		}
	}
	if f.opt.MinScratch == 0 {
		need += max(total/20, 64<<20)
	}
	err := free(f.opt.ScratchDir, need, "scratch space")
	if err != nil && f.push {
		err = fmt.Errorf("%w (a disk is on an iothread, and this QEMU dies when a backup that reads it is killed: so it is copied first, and needs room)", err)
	}
	return err
}

// pushed estimates how much QEMU writes of a disk: what is dirty, or what its
// images hold.
func pushed(fd qmp.FleeceDisk) int64 {
	if fd.Decision.Incremental {
		for _, b := range fd.Disk.Bitmaps {
			if b.Name == since(fd.Decision) {
				return b.Count
			}
		}
	}
	var held int64
	for _, name := range fd.Disk.Chain {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return fd.Disk.Size
		}
		held += st.Blocks * 512
	}
	return min(held, fd.Disk.Size)
}

// free checks that at least need bytes are free where path lies.
func free(path string, need int64, what string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("%s: %s: %w", what, path, err)
	}
	if have := int64(st.Bavail) * st.Bsize; have < need {
		return fmt.Errorf("%s: %s: %w: %d MiB, and %d MiB are needed", what, path, qmp.ErrScratchSpace, have>>20, need>>20)
	}
	return nil
}
