package local

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// page gives n bytes whose address is odd pages and off.
func page(n, off int) []byte {
	b := make([]byte, n+2*directAlign)
	skip := directAlign - int(uintptr(unsafe.Pointer(&b[0]))%directAlign)
	b = b[skip+off:][:n]
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(off)}).Read(b)
	return b
}

// TestCreatedWrites: all of a write is in the file, whatever its length and
// address, on a disk and in memory.
func TestCreatedWrites(t *testing.T) {
	for _, top := range []string{t.TempDir(), shm(t)} {
		for _, n := range []int{0, 1, directLeast - 1, directLeast, directLeast + 1, directLeast + directAlign - 1, 3*directLeast + 511} {
			for _, off := range []int{0, 8} {
				data := page(n, off)
				path := filepath.Join(top, "f")
				f, err := system{}.Create(path)
				if err != nil {
					t.Fatal(err)
				}
				if k, err := f.Write(data); err != nil || k != n {
					t.Errorf("%s, %d bytes at %d: %d written, %v", top, n, off, k, err)
				}
				if k, err := f.Write([]byte("more")); err != nil || k != 4 {
					t.Errorf("a second write: %d, %v", k, err)
				}
				if err := errors.Join(f.Sync(), f.Close()); err != nil {
					t.Error(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(got, append(data, "more"...)) {
					t.Errorf("%s, %d bytes at %d: other bytes, %v", top, n, off, err)
				}
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// shm is a folder in memory, or another one where there is none.
func shm(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "cairn-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestPackStaysOutOfTheCache: what a place stores takes no memory of the host,
// where its filesystem can do that.
func TestPackStaysOutOfTheCache(t *testing.T) {
	top := t.TempDir()
	probe, err := os.OpenFile(filepath.Join(top, "probe"), os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		t.Skipf("%s: this filesystem has no O_DIRECT", top)
	} else if err != nil {
		t.Fatal(err)
	}
	_ = probe.Close()
	d, err := Create(top)
	if err != nil {
		t.Fatal(err)
	}
	data := page(4<<20, 0)
	if err := d.Put(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(top, "packs", "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	m, err := unix.Mmap(int(f.Fd()), 0, len(data), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	there := make([]byte, len(data)/os.Getpagesize())
	if _, _, errno := syscall.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&there[0]))); errno != 0 {
		t.Fatal(errno)
	}
	cached := 0
	for _, p := range there {
		cached += int(p & 1)
	}
	if cached > len(there)/10 {
		t.Errorf("%d of %d pages are in the page cache", cached, len(there))
	}
}
