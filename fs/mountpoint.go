package fs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// msNoSymFollow is MS_NOSYMFOLLOW of linux/mount.h (Linux 5.10).
const msNoSymFollow = 256

// mountFlags gives the flags of mount(2): nothing in a guest runs, is a device
// or raises rights on the host.
func mountFlags(o Options) uintptr {
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME)
	if o.RawLinks {
		flags |= msNoSymFollow
	}
	return flags
}

// maxStale bounds how many dead mounts on one directory are detached.
const maxStale = 16

// detachStale takes away mounts whose server was killed.
func detachStale(dir string) error {
	for range maxStale {
		// The kernel may still have the attributes of a dead mount's root; for
		// statfs it must ask.
		var st unix.Stat_t
		err := unix.Stat(dir, &st)
		if err == nil {
			err = unix.Statfs(dir, &unix.Statfs_t{})
		}
		if !errors.Is(err, unix.ENOTCONN) {
			if err != nil {
				return fmt.Errorf("mount point %s: %w", dir, err)
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return fmt.Errorf("mount point %s: %w", dir, unix.ENOTDIR)
			}
			return nil
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("detach the dead mount at %s: %w", dir, err)
		}
	}
	return fmt.Errorf("mount point %s: more than %d dead mounts; unmount them first", dir, maxStale)
}

// Unmount takes the mount away. While somebody uses it, it tries again for
// grace or until ctx ends, then detaches it: it is gone from the tree at once,
// and those who use it can go on until they close what they hold or this
// process ends.
func (s *Server) Unmount(ctx context.Context) error {
	const grace = 5 * time.Second
	pause := 10 * time.Millisecond
	for until := time.Now().Add(grace); ; {
		err := unix.Unmount(s.dir, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			s.device.wait()
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", s.dir, err)
		}
		if ctx.Err() != nil || time.Now().After(until) {
			break
		}
		time.Sleep(pause)
		pause = min(2*pause, 500*time.Millisecond)
	}
	if err := unix.Unmount(s.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("detach %s: %w", s.dir, err)
	}
	return nil
}

// setReadAhead lets the kernel ask for size bytes at once when a file of the
// mount is read in order; it asks for 128 KiB otherwise.
func setReadAhead(dir string, size int) error {
	device, err := mountedDevice(dir)
	if err != nil {
		return err
	}
	name := filepath.Join("/sys/class/bdi", device, "read_ahead_kb")
	return os.WriteFile(name, fmt.Appendln(nil, size>>10), 0)
}

// mountedDevice gives "major:minor" of the topmost mount at dir. It asks
// /proc rather than the mount, which this process serves.
func mountedDevice(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	device := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && unescapeMountinfo.Replace(fields[4]) == dir {
			device = fields[2]
		}
	}
	if device == "" {
		return "", fmt.Errorf("%s is not in /proc/self/mountinfo", dir)
	}
	return device, nil
}

var unescapeMountinfo = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
