package xfs

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

var update = flag.Bool("update", false, "make the frozen samples in testdata anew (needs root)")

// samples are the frozen images in testdata with the tree that the kernel
// showed. dirty was shut down with a full log.
var samples = []struct {
	name  string
	mkfs  []string
	dirty bool
}{
	{"clean", mkfs("-b", "size=1024", "-i", "nrext64=1", "-m", "rmapbt=0,reflink=0"), false},
	{"dirty", mkfs("-b", "size=1024", "-n", "size=4096", "-m", "rmapbt=0,reflink=0"), true},
}

func openReader(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := Open(ctx, r, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

// openUnverified lets damage through to the code behind the checksums.
func openUnverified(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := open(ctx, &FS{image: r, size: size, cache: newCache(), unverified: true})
	if err != nil {
		return nil, err
	}
	return fs, nil
}

func openBytes(t testing.TB, image []byte) *FS {
	t.Helper()
	fs, err := Open(context.Background(), bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// TestFrozen needs no root and no mkfs: the samples must read for ever as the
// kernel read them once.
func TestFrozen(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			if *update {
				freeze(t, s.name, s.mkfs, s.dirty)
			}
			image, want := filesystemtest.Sample(t, s.name)
			open := func(t *testing.T) filesystem.Reader { return openBytes(t, image) }
			filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
			notes := strings.Join(openBytes(t, image).Info().Notes, "; ")
			if got := strings.Contains(notes, "log replayed"); got != s.dirty {
				t.Errorf("notes: %s", notes)
			}
		})
	}
}

// freeze makes a sample.
func freeze(t *testing.T, name string, mkfs []string, dirty bool) {
	image := filesystemtest.Image(t, 16<<20, append(mkfs, "-d", "agcount=1", "-L", name, "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef")...)
	dir, unmount := filesystemtest.LoopMount(t, image, "nouuid")
	if err := filesystemtest.PopulateFiller(dir); err != nil {
		t.Fatal(err)
	}
	if dirty {
		if err := os.RemoveAll(dir + "/large"); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{"new", "new/er", "new/er/est"} {
			if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			filesystemtest.Run(t, "sync", "-f", dir)
		}
		filesystemtest.ShutDown(t, dir, true)
	}
	unmount()
	filesystemtest.SaveSampleImage(t, name, image)
	filesystemtest.SaveSampleTree(t, name, filesystemtest.Truth(t, image, "rw,nouuid"))
}

// TestDamaged changes random bytes of metadata, with and without checksums in
// the way.
func TestDamaged(t *testing.T) {
	for _, s := range samples {
		image, _ := filesystemtest.Sample(t, s.name)
		t.Run(s.name, func(t *testing.T) {
			filesystemtest.TestDamaged(t, image, filesystemtest.DamagedImages(), openReader)
		})
		t.Run(s.name+"/unverified", func(t *testing.T) {
			filesystemtest.TestDamaged(t, image, filesystemtest.DamagedImages(), openUnverified)
		})
	}
}

// FuzzWalk changes bytes of a sample's metadata: two bytes for the sector,
// two for the place in it, one for the value.
func FuzzWalk(f *testing.F) {
	images := make([][]byte, len(samples))
	work := make([][]byte, len(samples))
	sectors := make([][]int64, len(samples))
	for i, s := range samples {
		images[i], _ = filesystemtest.Sample(f, s.name)
		work[i] = bytes.Clone(images[i])
		sectors[i] = filesystemtest.MetadataSectors(images[i])
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(0), []byte{0, 0, 0x7C, 0, 0x10})
	f.Add(uint8(1), []byte{60, 0, 0x10, 0, 0xFF, 60, 0, 0x14, 0, 0xFF})
	f.Add(uint8(1), []byte{100, 0, 0x04, 0, 0x7F})
	limits := filesystemtest.DefaultLimits()
	limits.Deadline, limits.Nodes, limits.Read = 5*time.Second, 2000, 8<<20
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		k := int(which) % len(images)
		image := work[k]
		restore := filesystemtest.Change(image, sectors[k], changes)
		defer func() {
			for _, at := range restore {
				image[at] = images[k][at]
			}
		}()
		if _, err := filesystemtest.WalkDamaged(image, openUnverified, limits); err != nil {
			t.Fatal(err)
		}
	})
}
