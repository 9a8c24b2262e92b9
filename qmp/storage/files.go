package storage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrInUse: another program has an image open for writing.
	ErrInUse = errors.New("another program has it open for writing (the VM, by a monitor that Cairn does not know? qemu-img, qemu-nbd?)")
	// ErrChanged: a file is not as it was when it was marked.
	ErrChanged = errors.New("it was written to")
)

// maxFiles bounds the files of one VM: disks, and what their images rest on.
const maxFiles = 4096

// Files are image files that are watched: opened for reading, never written.
// Writer and Changed are for many goroutines, the rest is for one.
type Files struct{ list []*file }

type file struct {
	path   string
	f      *os.File
	device bool
	mark   *mark
}

// mark tells one state of a file from any later one.
type mark struct {
	dev, ino     uint64
	rdev         uint64
	size         int64
	mtime, ctime unix.Timespec // of a regular file
	written      string        // of a block device: the kernel's counters
}

// Add begins to watch a file or block device; again for a known one it does
// nothing. Names are absolute.
func (fs *Files) Add(path string) error {
	switch {
	case slices.ContainsFunc(fs.list, func(f *file) bool { return f.path == path }):
		return nil
	case !filepath.IsAbs(path):
		return fmt.Errorf("image %q: a relative name: it is not known which folder it is relative to", path)
	case len(fs.list) == maxFiles:
		return fmt.Errorf("image %s: the VM has more than %d image files", path, maxFiles)
	}
	// O_NONBLOCK: a pipe by that name must not hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !isBlock(info) {
		err = fmt.Errorf("image %s: neither a file nor a block device", path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	fs.list = append(fs.list, &file{path: path, f: f, device: isBlock(info)})
	return nil
}

func isBlock(info os.FileInfo) bool {
	return info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

// IsDevice says whether a name is that of a block device.
func IsDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && isBlock(info)
}

// Writer gives an error that wraps ErrInUse if another program may write to
// one of the files.
func (fs *Files) Writer() error {
	for _, f := range fs.list {
		busy, err := f.foreignWriter()
		if err != nil {
			return err
		}
		if busy {
			return fmt.Errorf("image %s: %w", f.path, ErrInUse)
		}
	}
	return nil
}

// Hold keeps programs of QEMU's from beginning to write to any of the files,
// until LetGo: a VM that starts meanwhile fails. Who writes already is not
// noticed by it.
func (fs *Files) Hold() error {
	for i, f := range fs.list {
		if err := f.hold(); err != nil {
			for _, f := range fs.list[:i] {
				err = errors.Join(err, f.letGo())
			}
			return err
		}
	}
	return nil
}

// LetGo ends Hold.
func (fs *Files) LetGo() error {
	var failed error
	for _, f := range fs.list {
		failed = errors.Join(failed, f.letGo())
	}
	return failed
}

// tick is longer than the steps in which the kernel's clock for files goes
// (4 ms, 10 ms at most): two writes within one step give the same times.
const tick = 12 * time.Millisecond

// Mark notes the state of all files. It fails if that changes meanwhile. Only
// while they are held a later Changed sees every write.
func (fs *Files) Mark() error {
	for _, f := range fs.list {
		m, err := f.take()
		if err != nil {
			return err
		}
		f.mark = m
	}
	time.Sleep(tick)
	return fs.Changed()
}

// Changed gives an error that wraps ErrChanged if a file is not as it was at
// the last Mark.
func (fs *Files) Changed() error {
	for _, f := range fs.list {
		if f.mark == nil {
			return fmt.Errorf("internal error: image %s was never marked", f.path)
		}
		now, err := f.take()
		switch {
		case errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("image %s: %w: it is gone", f.path, ErrChanged)
		case err != nil:
			return err
		case now.dev != f.mark.dev || now.ino != f.mark.ino || now.rdev != f.mark.rdev:
			return fmt.Errorf("image %s: %w: another file has its name", f.path, ErrChanged)
		case *now != *f.mark:
			return fmt.Errorf("image %s: %w", f.path, ErrChanged)
		}
	}
	return nil
}

// take looks at a file by its name: what lies there now is what a VM opens.
func (f *file) take() (*mark, error) {
	var st unix.Stat_t
	if err := unix.Stat(f.path, &st); err != nil {
		return nil, fmt.Errorf("image %s: %w", f.path, err)
	}
	m := &mark{dev: st.Dev, ino: st.Ino, rdev: st.Rdev, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
	if !f.device {
		return m, nil
	}
	// The device's node may be on a filesystem of its own: only the device's
	// number says which one it is.
	m.dev, m.ino, m.mtime, m.ctime = 0, 0, unix.Timespec{}, unix.Timespec{}
	var err error
	if m.size, err = f.f.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("image %s: size: %w", f.path, err)
	}
	// What is written through the page cache is counted when it goes out.
	if err := f.f.Sync(); err != nil {
		return nil, fmt.Errorf("image %s: flush: %w", f.path, err)
	}
	m.written, err = written(st.Rdev)
	return m, err
}

// written gives the counters of writes and discards of a block device
// (Documentation/block/stat.rst of Linux).
func written(rdev uint64) (string, error) {
	name := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(rdev), unix.Minor(rdev))
	b, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("counters of a block device: %w", err)
	}
	fields := strings.Fields(string(b))
	if len(fields) < 7 {
		return "", fmt.Errorf("%s has %d fields, 7 are needed", name, len(fields))
	}
	count := fields[6] // sectors written
	if len(fields) > 13 {
		count += " " + fields[13] // and discarded
	}
	return count, nil
}

// Close ends the watch.
func (fs *Files) Close() error {
	var failed error
	for _, f := range fs.list {
		failed = errors.Join(failed, f.f.Close())
	}
	fs.list = nil
	return failed
}
