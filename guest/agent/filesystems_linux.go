package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// canFreeze: this system's filesystems can be frozen by this program.
const canFreeze = true

// maxMountinfo bounds the kernel's list of mounts, bytes.
const maxMountinfo = 16 << 20

// maxDevices bounds a walk through the devices below a filesystem.
const maxDevices = 256

// filesystems are those of this machine, as this process sees them mounted.
type filesystems struct {
	kernel kernel
	// below limits them to what is mounted below a directory; what lies
	// elsewhere then counts as hardware. For tests, which must not freeze the
	// machine they run on.
	below string

	mu sync.Mutex
	// stuck are the filesystems on which a call of ours has not returned, and
	// since when. There is no way to end one.
	stuck map[string]time.Time
}

// kernel is what is asked of the kernel; tests have it fail.
type kernel interface {
	Sync(fd int) error
	Freeze(fd int) error
	Thaw(fd int) error
}

func newFilesystems(below string, k kernel) *filesystems {
	return &filesystems{kernel: k, below: below, stuck: map[string]time.Time{}}
}

// mounts reads the list of mounts.
func (f *filesystems) mounts() ([]mount, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxMountinfo+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxMountinfo {
		return nil, fmt.Errorf("the list of mounts has more than %d bytes", maxMountinfo)
	}
	all, err := parseMountinfo(text)
	if err != nil || f.below == "" {
		return all, err
	}
	return slices.DeleteFunc(all, func(m mount) bool { return !within(m.point, f.below) }), nil
}

// look lists the filesystems, those to be frozen being open, with a reason at
// each of the others. Whoever called it closes them.
func (f *filesystems) look(ctx context.Context) ([]*superblock, error) {
	mounts, err := f.mounts()
	if err != nil {
		return nil, fmt.Errorf("which filesystems are mounted cannot be read: %w", err)
	}
	all := superblocks(mounts)
	for _, s := range all {
		if s.classify(); s.reason != "" {
			continue
		}
		if file := f.fileBelow(s); file != "" {
			s.reason = fmt.Sprintf("it lies in a file, %s, and not on a disk of its own", file)
			continue
		}
		if s.reason = s.open(ctx); s.reason != "" {
			s.reason = "not reached: " + s.reason
		}
	}
	return all, nil
}

// open opens a filesystem by the first of its mounts that can be reached. One
// that lies under another mount cannot, except by a second mount of the same
// filesystem.
func (s *superblock) open(ctx context.Context) (reason string) {
	reason = "other mounts lie over it"
	for _, m := range s.mounts {
		fd, err := openMount(ctx, m.point)
		if err != nil {
			reason = err.Error()
			continue
		}
		id, err := mountID(fd)
		if err == nil && slices.ContainsFunc(s.mounts, func(m mount) bool { return m.id == id }) {
			s.fd = fd
			return ""
		}
		_ = unix.Close(fd) // only looked at
	}
	return reason
}

// openMount opens a mount point without waiting for anything behind it.
func openMount(ctx context.Context, point string) (int, error) {
	return patiently(ctx, openTime, func() (int, error) {
		// Not blocking: what is mounted may be a single special file.
		fd, err := unix.Open(point, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", point, err)
		}
		return fd, nil
	}, func(fd int) { _ = unix.Close(fd) })
}

// patiently waits for f, but not longer than its time. What f gives later goes
// to late. The goroutine that is then left ends with f.
func patiently[T any](ctx context.Context, limit time.Duration, f func() (T, error), late func(T)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan outcome)
	go func() {
		v, err := f()
		select {
		case done <- outcome{v, err}:
		case <-ctx.Done():
			if err == nil {
				late(v)
			}
		}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("nothing answered within %v: is it behind a server that is gone?", limit)
	}
}

// mountID gives the number of the mount that an open file lies on.
func mountID(fd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if value, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	return 0, errors.New("this kernel does not say on which mount an open file lies")
}

// fileBelow gives the file that a filesystem lies in by way of a loop device, ""
// if there is none. Freezing it together with the filesystem of that file is a
// race for a deadlock: its flushing waits for a write that stands.
func (f *filesystems) fileBelow(s *superblock) string {
	for _, dev := range s.devices() {
		if file := f.loopFile(dev); file != "" {
			return file
		}
	}
	return ""
}

// devices gives the numbers of the block devices that a filesystem has.
func (s *superblock) devices() []string {
	m := s.mounts[0]
	if m.major != 0 {
		return []string{s.dev}
	}
	// All devices of a btrfs are listed beside the one that it is mounted by.
	all := []string{number("/dev/block", m.source)}
	members, _ := filepath.Glob("/sys/fs/btrfs/*/devices/" + filepath.Base(m.source)) // the pattern is a good one, or finds nothing
	if len(members) == 1 {
		others, _ := filepath.Glob(filepath.Dir(members[0]) + "/*")
		for _, path := range others {
			all = append(all, number("/dev", filepath.Base(path)))
		}
	}
	return all[:min(len(all), maxDevices)]
}

// number gives a device's number, "" if there is no such device.
func number(dir, name string) string {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// loopFile walks down from a block device: partition → disk, mapper → its
// devices; and gives the file of the first loop device.
func (f *filesystems) loopFile(dev string) string {
	queue, seen := []string{"/sys/dev/block/" + dev}, map[string]bool{}
	for len(queue) > 0 && len(seen) < maxDevices {
		dir, err := filepath.EvalSymlinks(queue[0])
		queue = queue[1:]
		if err != nil || seen[dir] {
			continue
		}
		seen[dir] = true
		if b, err := os.ReadFile(dir + "/loop/backing_file"); err == nil {
			file := strings.TrimSuffix(string(b), "\n")
			if f.below == "" || within(file, f.below) {
				return file
			}
		}
		if _, err := os.Stat(dir + "/partition"); err == nil {
			queue = append(queue, filepath.Dir(dir))
		}
		below, _ := filepath.Glob(dir + "/slaves/*") // a good pattern
		queue = append(queue, below...)
	}
	return ""
}
