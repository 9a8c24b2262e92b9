package receive

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// directAlign is what O_DIRECT wants of offsets and lengths at most; directSize
// from which size of a file on it is worth an open.
const (
	directAlign = 4096
	directSize  = 1 << 20
)

// direct reads or writes one file at a time past the guest's page cache
// (O_DIRECT, open(2)): a large file does not push out what the guest works with,
// what is read comes from the disk for sure, and it takes half the processor
// time. Where a filesystem cannot do it, it does nothing, and the caller goes the
// usual way.
type direct struct {
	buffer []byte // aligned
	f      *os.File
}

func newDirect() (*direct, error) {
	b, err := unix.Mmap(-1, 0, directSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory to write files with: %w", err)
	}
	return &direct{buffer: b}, nil
}

func (d *direct) close() {
	d.release()
	_ = unix.Munmap(d.buffer) // it was mapped
}

// release ends the use of a file.
func (d *direct) release() {
	if d.f != nil {
		d.f.Close()
		d.f = nil
	}
}

// use opens a file again that is open already. A small one is not worth it.
func (d *direct) use(f *file, flag int) {
	d.release()
	if f.size < directSize {
		return
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.f.Fd()), flag|unix.O_DIRECT|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err == nil {
		d.f = os.NewFile(uintptr(fd), f.shown)
	}
}

// write writes the beginning of p as far as it can, and says how much that was.
// Whatever fails the caller will meet again.
func (d *direct) write(p []byte, off int64) int {
	if d.f == nil || off%directAlign != 0 {
		return 0
	}
	n := copy(d.buffer, p[:min(len(p), len(d.buffer))&^(directAlign-1)])
	if n == 0 {
		return 0
	}
	done, err := d.f.WriteAt(d.buffer[:n], off)
	if err != nil {
		d.release()
	}
	return done &^ (directAlign - 1)
}

// read gives up to n bytes, at least one, or nothing.
func (d *direct) read(n int, off int64) []byte {
	if d.f == nil || off%directAlign != 0 {
		return nil
	}
	n = min(n, len(d.buffer))
	got, err := d.f.ReadAt(d.buffer[:(n+directAlign-1)&^(directAlign-1)], off)
	if err != nil && got < n {
		d.release()
	}
	return d.buffer[:min(got, n)]
}
