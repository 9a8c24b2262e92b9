package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/chunkstore/chunk"
)

// memoryDisk is a point's disk in memory: chunks of zeros are its holes.
type memoryDisk []byte

func (m memoryDisk) Size() int64 { return int64(len(m)) }

func (m memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

func (m memoryDisk) hole(c int64) bool {
	return chunk.IsZero(m[c*chunk.Size : min((c+1)*chunk.Size, m.Size())])
}

func (m memoryDisk) NextData(off int64) (int64, int64, error) {
	n := whole(m.Size()) / chunk.Size
	c := off / chunk.Size
	for c < n && m.hole(c) {
		c++
	}
	if c >= n || off >= m.Size() {
		return 0, 0, io.EOF
	}
	start := max(c*chunk.Size, off)
	for c < n && !m.hole(c) {
		c++
	}
	return start, min(c*chunk.Size, m.Size()), nil
}

func (m memoryDisk) disk() Disk {
	key := [32]byte{7}
	return Disk{Name: "web01 vda", Image: m, Hasher: func() *chunk.Hasher { return chunk.NewHasher(key) },
		IDs: func(_ context.Context, first int64, dst []chunk.ID) error {
			h := chunk.NewHasher(key)
			for i := range dst {
				dst[i] = chunk.ID{}
				c := first + int64(i)
				if c*chunk.Size >= m.Size() || m.hole(c) {
					continue
				}
				var b [chunk.Size]byte
				copy(b[:], m[c*chunk.Size:])
				dst[i] = h.Sum(b[:])
			}
			return nil
		}}
}

// sampleDisk has data and holes of many lengths, and a ragged end of 512 bytes.
func sampleDisk(seed uint64, size int) memoryDisk {
	m := make(memoryDisk, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for at := 0; at < size; {
		n := min(1+r.IntN(300_000), size-at)
		if r.IntN(2) == 0 {
			for i := at; i < at+n; i += 3 {
				m[i] = byte(r.Uint32())
			}
		}
		at += n
	}
	m[size-1] = 9
	return m
}

const sampleSize = 9<<20 + 512

func quiet(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, want %d, equal %v, %v", path, len(got), len(want), bytes.Equal(got, want), err)
	}
}

// What lies beside the new file is neither followed nor touched, and nothing
// but the new file is left.
func TestRestoreWritesIntoItsOwnFile(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "vda.raw"), filepath.Join(dir, "victim")
	write(t, victim, []byte("mine"))
	if err := os.Symlink(victim, path+".cairn-partial"); err != nil {
		t.Fatal(err)
	}
	m := sampleDisk(1, sampleSize)
	r, err := Restore(t.Context(), m.disk(), path, Options{}, quiet)
	if r.BytesWritten == 0 || r.BytesVerified < r.BytesWritten || err != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	holds(t, path, m)
	holds(t, victim, []byte("mine"))
	if left, err := os.ReadDir(dir); len(left) != 3 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > r.BytesWritten+1<<20 || r.BytesWritten == sampleSize {
		t.Errorf("%d blocks for %d bytes written, %v", st.Blocks, r.BytesWritten, err)
	}
}

// A file that is there is replaced only when that is asked for, and then keeps
// its mode.
func TestRestoreReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vda.raw")
	write(t, path, []byte("old"))
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	m := sampleDisk(2, 1<<20)
	if _, err := Restore(t.Context(), m.disk(), path, Options{}, quiet); err == nil || !strings.Contains(err.Error(), "--overwrite") {
		t.Errorf("without --overwrite: %v", err)
	}
	holds(t, path, []byte("old"))
	if _, err := Restore(t.Context(), m.disk(), path, Options{Overwrite: true}, quiet); err != nil {
		t.Fatal(err)
	}
	holds(t, path, m)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func runQEMUImg(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return out
}

// QEMU finds our qcow2 sound, holding the disk, with nothing leaked.
func TestQCOW2IsWhatQEMUReads(t *testing.T) {
	empty := make(memoryDisk, 3<<20)
	far := make(memoryDisk, 520<<20) // two L2 tables, the first without data
	copy(far[519<<20:], bytes.Repeat([]byte("far"), 100_000))
	full := make(memoryDisk, 20<<20)
	for i := range full {
		full[i] = byte(i>>12) | 1
	}
	for name, m := range map[string]memoryDisk{"sample": sampleDisk(3, sampleSize), "empty": empty, "far": far, "full": full, "tiny": memoryDisk("x")} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "vda.qcow2"), filepath.Join(dir, "truth.raw")
			r, err := Restore(t.Context(), m.disk(), path, Options{Format: FormatQCOW2}, quiet)
			if err != nil || r.BytesVerified < r.BytesWritten {
				t.Fatalf("%+v, %v", r, err)
			}
			truth := make([]byte, whole512(m.Size()))
			copy(truth, m)
			write(t, raw, truth)
			runQEMUImg(t, "check", "-f", "qcow2", path)
			runQEMUImg(t, "compare", "-f", "raw", "-F", "qcow2", raw, path)
			// It can be written to: clusters are not shared, refcounts are right.
			runQEMUImg(t, "convert", "-n", "-f", "raw", "-O", "qcow2", raw, path)
			runQEMUImg(t, "check", "-f", "qcow2", path)
		})
	}
}

// A refcount table of several blocks is laid out so that the blocks count
// themselves.
func TestQCOW2LayoutCountsItself(t *testing.T) {
	for _, n := range []int{1, 3, 4, 5, 64, 4096} { // spans of 512 MiB, all data
		p := &qcow2Layout{spans: make([]l2Layout, n)}
		for i := range p.spans {
			p.spans[i].used = new([l2Entries / 64]uint64)
			for j := range p.spans[i].used {
				p.spans[i].used[j] = ^uint64(0)
			}
		}
		p.place()
		if p.refBlocks*refcountEntries < p.total() || (p.refBlocks-1)*refcountEntries >= p.total() || p.refTable != clusters(p.refBlocks*8) {
			t.Errorf("%d spans: %d blocks and %d clusters of table for %d clusters", n, p.refBlocks, p.refTable, p.total())
		}
		last := int64(n)*l2Span - 1
		if at, room := p.find(last); at != p.total()*clusterSize-1 || room != 1 {
			t.Errorf("%d spans: the last byte lies at %d of %d, %d", n, at, p.total()*clusterSize, room)
		}
	}
}

// Only what differs is written, stale data becomes zero, and the rest of the
// file is not touched.
func TestDeltaIntoRawFile(t *testing.T) {
	m := sampleDisk(4, sampleSize)
	for name, old := range map[string][]byte{
		"same":    m,
		"near":    changed(m, 5, 3<<20, sampleSize-3),
		"zeros":   make([]byte, sampleSize),
		"ones":    bytes.Repeat([]byte{1}, sampleSize),
		"shorter": m[:2<<20],
		"longer":  append(bytes.Clone(m), 1, 2, 3),
		"empty":   {},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vda.raw")
			write(t, path, old)
			r, err := Restore(t.Context(), m.disk(), path, Options{Delta: true}, quiet)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, path, m)
			want := map[string]int64{"same": 0, "near": 2*chunk.Size + 512}
			if n, ok := want[name]; ok && r.BytesWritten+r.BytesZeroed != n {
				t.Errorf("%+v, want %d bytes written", r, n)
			}
			if name == "ones" && r.BytesZeroed == 0 {
				t.Errorf("%+v: nothing became zero", r)
			}
			if r.BytesVerified < r.BytesWritten {
				t.Errorf("%+v: not all was verified", r)
			}
			if (len(old) != sampleSize) != (len(r.Notes) > 0) {
				t.Errorf("notes %q", r.Notes)
			}
		})
	}
}

func changed(b []byte, at ...int) []byte {
	b = bytes.Clone(b)
	for _, i := range at {
		b[i] ^= 0x55
	}
	return b
}

// brokenImage is an image whose reads fail from the n-th on.
type brokenImage struct {
	memoryDisk
	left atomic.Int64
}

var errPlace = errors.New("the place is gone")

func (b *brokenImage) ReadAt(p []byte, off int64) (int, error) {
	if b.left.Add(-1) < 0 {
		return 0, errPlace
	}
	return b.memoryDisk.ReadAt(p, off)
}

// A delta restore that is interrupted anywhere is finished by the next.
func TestDeltaIsFinishedByTheNextRun(t *testing.T) {
	m := sampleDisk(5, sampleSize)
	path := filepath.Join(t.TempDir(), "vda.raw")
	for n := int64(0); ; n++ {
		write(t, path, sampleDisk(6, sampleSize))
		d := m.disk()
		b := &brokenImage{memoryDisk: m}
		b.left.Store(n)
		d.Image = b
		_, err := Restore(t.Context(), d, path, Options{Delta: true}, quiet)
		if err != nil && !errors.Is(err, errPlace) {
			t.Fatal(err)
		}
		if err == nil {
			holds(t, path, m)
			if n < 5 {
				t.Errorf("the restore read %d times: too few to be interrupted", n)
			}
			return
		}
		if n%7 > 0 {
			continue
		}
		if _, err := Restore(t.Context(), m.disk(), path, Options{Delta: true}, quiet); err != nil {
			t.Fatal(err)
		}
		holds(t, path, m)
	}
}

// lying is a target that loses a bit of what is written to it.
type lying struct {
	target
	at int64
}

func (l lying) WriteAt(p []byte, off int64) (int, error) {
	if i := l.at - off; i >= 0 && i < int64(len(p)) {
		p = changed(p, int(i))
	}
	return l.target.WriteAt(p, off)
}

func TestVerifyNamesTheOffset(t *testing.T) {
	m := sampleDisk(7, sampleSize)
	data, _, err := m.NextData(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at       int64
		noVerify bool
		want     string
	}{{at: data, want: fmt.Sprintf("offset %d", data)}, {at: data, noVerify: true}, {at: -1}} {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := newRaw(f, m.Size())
		if err != nil {
			t.Fatal(err)
		}
		l, d, r := lying{raw, c.at}, m.disk(), Restored{}
		if err := d.copy(t.Context(), l, false, quiet, &r); err != nil {
			t.Fatal(err)
		}
		err = d.verify(t.Context(), l, Options{NoVerify: c.noVerify}, nil, quiet, &r)
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, ErrVerify) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
		if err := l.close(); err != nil {
			t.Error(err)
		}
	}
}

// An image that QEMU has open, for reading or writing, is refused; and while
// we write QEMU cannot open it.
func TestImageInUseIsRefused(t *testing.T) {
	m := sampleDisk(8, 1<<20)
	for _, format := range []string{FormatRaw, FormatQCOW2} {
		path := filepath.Join(t.TempDir(), "vda")
		runQEMUImg(t, "create", "-q", "-f", format, path, "1M")
		stop := startQEMU(t, path, format)
		for name, o := range map[string]Options{"delta": {Delta: true, Format: format}, "overwrite": {Overwrite: true, Format: format}} {
			_, err := Restore(t.Context(), m.disk(), path, o, quiet)
			if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "qemu-system") {
				t.Errorf("%s %s while QEMU runs: %v", format, name, err)
			}
		}
		stop()
		if _, err := Restore(t.Context(), m.disk(), path, Options{Delta: true, Format: format}, quiet); err != nil {
			t.Errorf("%s after QEMU ended: %v", format, err)
		}
	}
	path := filepath.Join(t.TempDir(), "vda.raw")
	write(t, path, make([]byte, 1<<20))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := lockImage(f); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "raw", "-c", "write 0 512", path).CombinedOutput(); err == nil || !strings.Contains(string(out), "lock") {
		t.Errorf("QEMU wrote to an image that we hold: %v %s", err, out)
	}
}

// startQEMU starts a stopped VM on an image and waits until it has it open.
func startQEMU(t *testing.T, path, format string) (stop func()) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "qmp")
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", "-M", "q35", "-nodefaults", "-display", "none", "-S",
		"-blockdev", "driver=file,node-name=f,filename="+path, "-blockdev", "driver="+format+",node-name=d,file=f", "-device", "virtio-blk-pci,drive=d",
		"-qmp", "unix:"+socket+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		err = refuseUsed(f)
		f.Close()
		if errors.Is(err, ErrInUse) {
			return stop
		}
		if time.Now().After(deadline) {
			t.Fatal("QEMU does not lock the image")
		}
	}
}

// A restore into a qcow2 removes Cairn's bitmaps of every repository, and
// nobody else's.
func TestDeltaIntoQCOW2(t *testing.T) {
	m := sampleDisk(9, sampleSize)
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "vda.qcow2"), filepath.Join(dir, "truth.raw")
	write(t, raw, sampleDisk(10, sampleSize))
	runQEMUImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
	for _, b := range []string{"cairn-1f2e3d4c-17", "cairn-aaaaaaaa-1-9", "cairn-1f2e3d4c-merged", "libvirt-4", "cairn-mine"} {
		runQEMUImg(t, "bitmap", "--add", "-f", "qcow2", path, b)
	}
	if _, err := Restore(t.Context(), m.disk(), path, Options{Delta: true}, quiet); err == nil || !strings.Contains(err.Error(), "--format") {
		t.Errorf("a qcow2 was taken for raw: %v", err)
	}
	small := memoryDisk(m[:1<<20])
	if _, err := Restore(t.Context(), small.disk(), path, Options{Delta: true, Format: FormatQCOW2}, quiet); err == nil || !strings.Contains(err.Error(), "resize") {
		t.Errorf("a disk of another size: %v", err)
	}
	r, err := Restore(t.Context(), m.disk(), path, Options{Delta: true, Format: FormatQCOW2}, quiet)
	if err != nil || len(r.BitmapsRemoved) != 3 || r.BytesWritten == 0 || r.BytesZeroed == 0 || r.BytesVerified < r.BytesWritten {
		t.Fatalf("%+v, %v", r, err)
	}
	write(t, raw, m)
	runQEMUImg(t, "check", "-f", "qcow2", path)
	runQEMUImg(t, "compare", "-f", "raw", "-F", "qcow2", raw, path)
	info := string(runQEMUImg(t, "info", path))
	if strings.Contains(info, "cairn-1f2e3d4c") || strings.Contains(info, "cairn-aaaaaaaa") || !strings.Contains(info, "libvirt-4") || !strings.Contains(info, "cairn-mine") {
		t.Errorf("bitmaps: %s", info)
	}
	if r, err = Restore(t.Context(), m.disk(), path, Options{Delta: true, Format: FormatQCOW2}, quiet); err != nil || r.BytesWritten+r.BytesZeroed != 0 {
		t.Errorf("the second run: %+v, %v", r, err)
	}
}

// loopDevice gives a block device of size bytes that holds ones.
func loopDevice(t *testing.T, size int) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "device")
	write(t, file, bytes.Repeat([]byte{1}, size))
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device can be had here (needs root and /dev/loop-control): %s", out)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %s", out)
		}
	})
	return device, file
}

// A block device gets the disk, zeros where the disk has holes, and keeps what
// lies behind.
func TestRestoreToBlockDevice(t *testing.T) {
	const size = 12 << 20
	m := sampleDisk(11, sampleSize)
	device, _ := loopDevice(t, size)
	behind := bytes.Repeat([]byte{1}, size-sampleSize)
	if _, err := Restore(t.Context(), m.disk(), device, Options{}, quiet); err == nil || !strings.Contains(err.Error(), "--overwrite") {
		t.Errorf("without --overwrite: %v", err)
	}
	large := make(memoryDisk, size+512)
	if _, err := Restore(t.Context(), large.disk(), device, Options{Overwrite: true}, quiet); err == nil || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("a disk that is too large: %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", device, "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %s", out)
	}
	if _, err := Restore(t.Context(), m.disk(), device, Options{Delta: true}, quiet); err == nil || !strings.Contains(err.Error(), "qcow2") {
		t.Errorf("--delta over a qcow2 on the device: %v", err)
	}
	r, err := Restore(t.Context(), m.disk(), device, Options{Overwrite: true}, quiet)
	if err != nil || r.BytesZeroed == 0 || r.BytesVerified != sampleSize || len(r.Notes) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	holds(t, device, append(bytes.Clone(m), behind...))
	other := memoryDisk(changed(m, 0, 5<<20))
	if r, err = Restore(t.Context(), other.disk(), device, Options{Delta: true}, quiet); err != nil || r.BytesWritten != 2*chunk.Size {
		t.Errorf("delta: %+v, %v", r, err)
	}
	holds(t, device, append(bytes.Clone(other), behind...))
}

// A device that is mounted is refused.
func TestMountedDeviceIsRefused(t *testing.T) {
	device, _ := loopDevice(t, 16<<20)
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", device).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %s", out)
	}
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("mounts are not allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	_, err := Restore(t.Context(), make(memoryDisk, 1<<20).disk(), device, Options{Overwrite: true}, quiet)
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a mounted device: %v", err)
	}
}
