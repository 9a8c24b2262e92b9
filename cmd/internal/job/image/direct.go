package image

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directAlign is what direct reads and writes are aligned to, in memory and on
// the file, in bytes: enough for every disk that Linux knows.
const directAlign = 4096

// directFile reads and writes past the page cache where the filesystem can: a
// restored disk would push the host's other files out of memory, copying it
// there costs more than decoding it, and what is read back shall come from the
// device.
type directFile struct {
	file   *os.File // for what is not aligned, and where direct access does not work
	direct *os.File // nil: it does not
	off    atomic.Bool
}

// openDirect opens once more what f has open, whatever its name leads to now.
func openDirect(f *os.File) *directFile {
	d := &directFile{file: f}
	if fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0); err == nil {
		d.direct = os.NewFile(uintptr(fd), f.Name()) // errors name the file
	}
	return d
}

// Close closes the second opening.
func (d *directFile) Close() error {
	if d.direct == nil {
		return nil
	}
	return d.direct.Close()
}

// can says whether p at off may go past the page cache.
func (d *directFile) can(p []byte, off int64) bool {
	aligned := len(p) > 0 && off%directAlign == 0 && len(p)%directAlign == 0 && uintptr(unsafe.Pointer(&p[0]))%directAlign == 0
	return d.direct != nil && aligned && !d.off.Load()
}

// WriteAt implements io.WriterAt.
func (d *directFile) WriteAt(p []byte, off int64) (int, error) {
	if d.can(p, off) {
		n, err := d.direct.WriteAt(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		d.off.Store(true) // this filesystem wants another alignment: never mind
	}
	return d.file.WriteAt(p, off)
}

// ReadAt implements io.ReaderAt.
func (d *directFile) ReadAt(p []byte, off int64) (int, error) {
	if d.can(p, off) {
		n, err := d.direct.ReadAt(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		d.off.Store(true)
	}
	return d.file.ReadAt(p, off)
}

// alignedBuffer gives n bytes that start where direct access can.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+directAlign)
	skip := directAlign - int(uintptr(unsafe.Pointer(&b[0]))%directAlign)
	return b[skip : skip+n : skip+n]
}
