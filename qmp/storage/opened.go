package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Opened gives an error that wraps ErrInUse if a process on this host has one
// of the files open for writing, whether it takes QEMU's locks or not: a VM
// with locking=off does not, and two writers ruin an image. What we may not
// look into is left out, and so are processes of other hosts.
func (fs *Files) Opened() error {
	if len(fs.list) == 0 {
		return nil
	}
	ours := map[[2]uint64]string{}
	for _, f := range fs.list {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.f.Fd()), &st); err != nil {
			return fmt.Errorf("image %s: %w", f.path, err)
		}
		ours[identity(&st)] = f.path
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range processes {
		if path := openedBy(dir, ours); path != "" {
			return fmt.Errorf("image %s: %w: process %s", path, ErrInUse, describe(dir))
		}
	}
	return nil
}

// identity is that of a file, or of the device behind a block device's node.
func identity(st *unix.Stat_t) [2]uint64 {
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return [2]uint64{1 << 63, st.Rdev}
	}
	return [2]uint64{st.Dev, st.Ino}
}

// openedBy gives the one of the files that a process has open for writing.
// The process may end meanwhile, or not be ours to look at.
func openedBy(dir string, files map[[2]uint64]string) string {
	list, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return ""
	}
	for _, e := range list {
		var st unix.Stat_t
		if unix.Stat(dir+"/fd/"+e.Name(), &st) != nil {
			continue
		}
		if path, ok := files[identity(&st)]; ok && writes(dir+"/fdinfo/"+e.Name()) {
			return path
		}
	}
	return ""
}

// writes reads the flags of an open file, proc(5): "flags:	0100002", octal.
func writes(fdinfo string) bool {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		v, ok := strings.CutPrefix(line, "flags:")
		if !ok {
			continue
		}
		flags, err := strconv.ParseUint(strings.TrimSpace(v), 8, 64)
		return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
	}
	return false
}

// describe names a process for people.
func describe(dir string) string {
	name, err := os.ReadFile(dir + "/comm")
	if err != nil {
		return filepath.Base(dir)
	}
	return fmt.Sprintf("%s (%s)", filepath.Base(dir), strings.TrimSpace(string(name)))
}
