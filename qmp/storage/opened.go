package storage

import (
	"fmt"
	"iter"
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
	for o := range openings(ours) {
		if o.writes() {
			return fmt.Errorf("image %s: %w: process %s", o.path, ErrInUse, o.process())
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

// opening is one of the files that a process of this host has open.
type opening struct{ dir, fd, path string } // /proc/PID, its number there, the file

// openings finds who has one of the files open. A process may end meanwhile, or
// not be ours to look at: it is left out.
func openings(files map[[2]uint64]string) iter.Seq[opening] {
	return func(yield func(opening) bool) {
		processes, _ := filepath.Glob("/proc/[0-9]*") // only a bad pattern is an error
		for _, dir := range processes {
			list, err := os.ReadDir(dir + "/fd")
			if err != nil {
				continue
			}
			for _, e := range list {
				var st unix.Stat_t
				if unix.Stat(dir+"/fd/"+e.Name(), &st) != nil {
					continue
				}
				if path, ok := files[identity(&st)]; ok && !yield(opening{dir, e.Name(), path}) {
					return
				}
			}
		}
	}
}

// writes reads the flags of an open file, proc(5): "flags:	0100002", octal.
func (o opening) writes() bool {
	b, err := os.ReadFile(o.dir + "/fdinfo/" + o.fd)
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

func (o opening) pid() string { return filepath.Base(o.dir) }

// program gives the process's name; "" if it has ended.
func (o opening) program() string {
	name, err := os.ReadFile(o.dir + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}

// process names it for people.
func (o opening) process() string {
	if name := o.program(); name != "" {
		return fmt.Sprintf("%s (%s)", o.pid(), name)
	}
	return o.pid()
}

// userOf gives another process that has the file open in any way, as far as
// this user may see: its name and its number; QEMU before others, "" for none.
func userOf(f *os.File) (program, pid string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", "", fmt.Errorf("image %s: %w", f.Name(), err)
	}
	self := strconv.Itoa(os.Getpid())
	for o := range openings(map[[2]uint64]string{identity(&st): f.Name()}) {
		if o.pid() == self {
			continue
		}
		if name := o.program(); name != "" {
			program, pid = name, o.pid()
		}
		if isQEMU(program) {
			break
		}
	}
	return program, pid, nil
}

func isQEMU(program string) bool {
	return strings.HasPrefix(program, "qemu") || strings.HasPrefix(program, "kvm")
}
