package xfs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
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

// sample gives a frozen image and its tree.
func sample(t testing.TB, name string) ([]byte, filesystemtest.Tree) {
	t.Helper()
	image := gunzip(t, "testdata/"+name+".img.gz")
	tree, err := filesystemtest.Load(bytes.NewReader(gunzip(t, "testdata/"+name+".tree.gz")))
	if err != nil {
		t.Fatal(err)
	}
	return image, tree
}

func gunzip(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeGzip(t *testing.T, path string, write func(w io.Writer) error) {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(write(z), z.Close(), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestFrozen needs no root and no mkfs: the samples must read for ever as the
// kernel read them once.
func TestFrozen(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			if *update {
				freeze(t, s.name, s.mkfs, s.dirty)
			}
			image, want := sample(t, s.name)
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
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	writeGzip(t, "testdata/"+name+".img.gz", func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	tree := filesystemtest.Truth(t, image, "rw,nouuid")
	writeGzip(t, "testdata/"+name+".tree.gz", tree.Save)
}

// TestDamaged changes random bytes of metadata, with and without checksums in
// the way.
func TestDamaged(t *testing.T) {
	for _, s := range samples {
		image, _ := sample(t, s.name)
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
		images[i], _ = sample(f, s.name)
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
		var restore []int64
		for ; len(changes) >= 5; changes = changes[5:] {
			at := sectors[k][int(le.Uint16(changes))%len(sectors[k])] + int64(le.Uint16(changes[2:])%512)
			image[at] = changes[4]
			restore = append(restore, at)
		}
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
