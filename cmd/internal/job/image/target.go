package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cairn/chunkstore/chunk"
)

// target is what a disk is restored into. Its methods but close may be called
// from many goroutines for ranges that do not overlap.
type target interface {
	io.ReaderAt
	io.WriterAt
	// zero makes n bytes at off read as zeros.
	zero(off, n int64) error
	// nextData gives the first offset at or behind off that may not be zero;
	// io.EOF when there is none.
	nextData(off int64) (int64, error)
	// settle returns when all is on the device, and what is read after it
	// comes from there.
	settle() error
	close() error
}

// fileTarget is a regular file or a block device that holds the disk's bytes
// as they are.
type fileTarget struct {
	*directFile
	size   int64 // of the disk, in bytes
	device bool
	noHole atomic.Bool // the file or device cannot make holes: zeros are written
}

// newFileTarget takes f over.
func newFileTarget(f *os.File, size int64, device bool) *fileTarget {
	return &fileTarget{directFile: openDirect(f), size: size, device: device}
}

func (t *fileTarget) zero(off, n int64) error {
	const step = 64 << 20 // so that a restore that is interrupted ends soon
	for end := off + n; off < end; off += step {
		if err := t.zeroPiece(off, min(step, end-off)); err != nil {
			return err
		}
	}
	return nil
}

func (t *fileTarget) zeroPiece(off, n int64) error {
	if !t.noHole.Load() {
		err := t.makeHole(off, n)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTTY) {
			return err
		}
		if off%directAlign == 0 && n%directAlign == 0 { // else it may be the alignment
			t.noHole.Store(true)
		}
	}
	zeros := alignedBuffer(int(min(n, 1<<20)))
	for end := off + n; off < end; off += int64(len(zeros)) {
		if _, err := t.WriteAt(zeros[:min(int64(len(zeros)), end-off)], off); err != nil {
			return err
		}
	}
	return nil
}

func (t *fileTarget) makeHole(off, n int64) error {
	if !t.device {
		return ignoringInterrupts(func() error {
			return unix.Fallocate(int(t.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		})
	}
	return zeroOut(t.file, off, n)
}

func (t *fileTarget) nextData(off int64) (int64, error) {
	if off >= t.size {
		return 0, io.EOF
	}
	if t.device {
		return off, nil
	}
	at, err := unix.Seek(int(t.file.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case err != nil: // a filesystem without holes
		return off, nil
	case at >= t.size:
		return 0, io.EOF
	}
	return at, nil
}

func (t *fileTarget) settle() error {
	if err := t.file.Sync(); err != nil {
		return fmt.Errorf("%s: %w", t.file.Name(), err)
	}
	// Where direct reads do not work the page cache must not answer. It is
	// advice only: some filesystems have nowhere else to read from.
	_ = unix.Fadvise(int(t.file.Fd()), 0, 0, unix.FADV_DONTNEED)
	return nil
}

func (t *fileTarget) close() error {
	return errors.Join(t.directFile.Close(), t.file.Close())
}

// ignoringInterrupts calls f again while a signal interrupts it.
func ignoringInterrupts(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// newFile is a file that gets its name when it is whole, and beside it nobody
// else's file is touched.
type newFile struct {
	file *os.File
	path string
}

// createNew makes it beside path. What is there must be a regular file that no
// VM uses, and may be replaced only with overwrite.
func createNew(path string, overwrite bool) (*newFile, error) {
	switch st, err := os.Stat(path); {
	case err == nil && !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case err == nil && !overwrite:
		return nil, fmt.Errorf("%s exists already: name another file, use --overwrite, or --delta to write only what differs", path)
	case err == nil:
		if err := checkUnused(path); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSymlink != 0 && !overwrite {
		return nil, fmt.Errorf("%s is a symbolic link already: name another file, or use --overwrite", path)
	}
	f, err := createTemp(path)
	if err != nil {
		return nil, err
	}
	return &newFile{f, path}, nil
}

// checkUnused refuses a file that a VM has open.
func checkUnused(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return refuseUsed(f)
}

// finish gives the file its name, or removes it when err is not nil.
func (n *newFile) finish(err error) error {
	if err == nil {
		err = os.Rename(n.file.Name(), n.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(n.file.Name()))
	}
	return nil
}

// whole rounds up to whole chunks.
func whole(n int64) int64 { return (n + chunk.Size - 1) / chunk.Size * chunk.Size }

// whole512 rounds up to whole sectors: QEMU knows no shorter disk.
func whole512(n int64) int64 { return (n + 511) / 512 * 512 }

// takeOwner gives f the owner and the mode of the file at path, if there is one.
func takeOwner(f *os.File, path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	if err := f.Chmod(fs.FileMode(st.Mode & 0o777)); err != nil {
		return err
	}
	if int(st.Uid) == os.Geteuid() && int(st.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}
