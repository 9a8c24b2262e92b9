package job

import (
	"errors"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directAlign is what direct writes are aligned to, in memory and on the file,
// in bytes: enough for every disk that Linux knows.
const directAlign = 4096

// directFile writes past the page cache where the filesystem can: a restored
// disk would push the host's other files out of memory, and copying it there
// costs more than decoding it.
type directFile struct {
	file   *os.File // for what is not aligned, and where direct writes do not work
	direct *os.File // nil: they do not
	off    atomic.Bool
}

// openDirect opens a file that f has open under path once more.
func openDirect(f *os.File, path string) *directFile {
	d := &directFile{file: f}
	if g, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0); err == nil {
		d.direct = g
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

// WriteAt implements io.WriterAt.
func (d *directFile) WriteAt(p []byte, off int64) (int, error) {
	aligned := len(p) > 0 && off%directAlign == 0 && len(p)%directAlign == 0 && uintptr(unsafe.Pointer(&p[0]))%directAlign == 0
	if d.direct != nil && aligned && !d.off.Load() {
		n, err := d.direct.WriteAt(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		d.off.Store(true) // this filesystem wants another alignment: never mind
	}
	return d.file.WriteAt(p, off)
}

// alignedBuffer gives n bytes that start where direct writes can.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+directAlign)
	skip := directAlign - int(uintptr(unsafe.Pointer(&b[0]))%directAlign)
	return b[skip : skip+n : skip+n]
}
