package filesystemtest

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
)

// TestFree writes rubbish over all that a reader calls free, in a copy of the
// image, and holds that to the truth of the whole image: by a Reader, and by
// the kernel when options is not nil (it is passed to LoopMount). At least
// share of Info's FreeBytes must be called free.
func TestFree(t *testing.T, image string, open func(t *testing.T, image string) filesystem.Reader, want Tree, fields Fields, share float64, options *string) {
	t.Helper()
	r := open(t, image)
	free, ok := r.(filesystem.FreeSpace)
	if !ok {
		t.Fatalf("%T tells of no free space", r)
	}
	spoiled := CopyImage(t, image)
	f, err := os.OpenFile(spoiled, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rubbish := make([]byte, 1<<20)
	for i := range rubbish {
		rubbish[i] = 0xA5
	}
	total, last, size := int64(0), int64(0), fileSize(t, f)
	err = free.Free(context.Background(), func(start, end int64) error {
		if start < last || end <= start || end > size {
			t.Fatalf("free range %d to %d behind %d of %d bytes", start, end, last, size)
		}
		total, last = total+end-start, end
		for start < end {
			n, err := f.WriteAt(rubbish[:min(int64(len(rubbish)), end-start)], start)
			if err != nil {
				return err
			}
			start += int64(n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	known := r.Info().FreeBytes
	t.Logf("%d MiB of %d MiB are free, %d MiB by the filesystem's own count", total>>20, size>>20, known>>20)
	if float64(total) < share*float64(known) {
		t.Errorf("only %d of %d free bytes are called free", total, known)
	}
	got, err := Walk(context.Background(), open(t, spoiled))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range Compare(want, got, fields) {
		t.Errorf("with rubbish in the free space: %s", d)
	}
	if options != nil {
		for _, d := range Compare(want, Truth(t, spoiled, *options), fields) {
			t.Errorf("the kernel, with rubbish in the free space: %s", d)
		}
	}
}

func fileSize(t testing.TB, f *os.File) int64 {
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// CopyImage gives a copy of an image that is removed with the test.
func CopyImage(t testing.TB, image string) string {
	t.Helper()
	f, err := os.CreateTemp(ImageDir(t), "copy-*.img")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { os.Remove(f.Name()) })
	Run(t, "cp", "--reflink=auto", "--sparse=always", image, f.Name())
	return f.Name()
}

// TestRecords changes a filesystem by the kernel and holds a reader's Record
// and Replayed to their promise: whatever differs of an inode between the two
// images, its record differs, or was replayed in one of them. change gets the
// mounted directory.
func TestRecords(t *testing.T, image, options string, open func(t *testing.T, image string) filesystem.Reader, change func(t *testing.T, dir string)) {
	t.Helper()
	old := CopyImage(t, image)
	dir, unmount := LoopMount(t, image, options)
	change(t, dir)
	unix.Sync()
	unmount()
	before, after := open(t, old), open(t, image)
	a, b := inodes(t, before), inodes(t, after)
	raw := [2][]byte{}
	for i, name := range []string{old, image} {
		var err error
		if raw[i], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	replayed := make(map[int64]bool) // by 512 bytes
	for _, r := range []filesystem.Reader{before, after} {
		r.(filesystem.InodeRecords).Replayed(func(start, end int64) {
			for off := start / sectorSize; off*sectorSize < end; off++ {
				replayed[off] = true
			}
		})
	}
	changed := 0
	for ino, n := range b {
		if m, ok := a[ino]; ok && m == n {
			continue
		}
		changed++
		start, end, err := after.(filesystem.InodeRecords).Record(context.Background(), ino)
		if err != nil || start < 0 || end <= start || end > int64(len(raw[1])) {
			t.Fatalf("record of inode %d: %d to %d, %v", ino, start, end, err)
		}
		if string(raw[0][start:end]) == string(raw[1][start:end]) && !replayed[start/sectorSize] {
			t.Errorf("inode %d changed and its record did not", ino)
		}
	}
	if changed < 2 {
		t.Errorf("only %d inodes changed: the test shows nothing", changed)
	}
	t.Logf("%d of %d inodes changed", changed, len(b))
}

// inodes lists all that can be seen of each inode, as text.
func inodes(t testing.TB, r filesystem.Reader) map[filesystem.Ino]string {
	t.Helper()
	found := make(map[filesystem.Ino]string)
	var visit func(ino filesystem.Ino)
	visit = func(ino filesystem.Ino) {
		w := walker{ctx: context.Background(), r: r}
		n := w.node(ino)
		text, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		found[ino] = string(text)
		if n.Mode&filesystem.ModeType != filesystem.ModeDir {
			return
		}
		var below []filesystem.Entry
		if err := r.ReadDir(w.ctx, ino, 0, func(e filesystem.Entry) bool { below = append(below, e); return true }); err != nil {
			t.Fatal(err)
		}
		for _, e := range below {
			found[ino] += "\n" + e.Name
			if _, ok := found[e.Ino]; !ok {
				visit(e.Ino)
			}
		}
	}
	visit(r.Root())
	return found
}
