package ext4

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
// showed. dirty and ext3 were shut down with a full log; plain, old and ext3
// have no checksums that would keep damage away from the code behind them.
var samples = []struct {
	name  string
	mkfs  []string
	dirty bool
}{
	{"clean", []string{"mkfs.ext4", "-b", "1024"}, false},
	{"dirty", []string{"mkfs.ext4", "-b", "1024", "-O", "inline_data"}, true},
	{"plain", []string{"mkfs.ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"}, false},
	{"ext3", []string{"mkfs.ext3", "-b", "1024"}, true},
	{"old", []string{"mkfs.ext2", "-b", "1024", "-I", "128"}, false},
}

func openReader(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := Open(ctx, r, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

// TestFrozen needs no root and no mkfs: the samples must read for ever as the
// kernel once showed them.
func TestFrozen(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			if *update {
				freeze(t, s.name, s.mkfs, s.dirty)
			}
			image, want := filesystemtest.Sample(t, s.name)
			open := func(t *testing.T) filesystem.Reader {
				r, err := openReader(context.Background(), bytes.NewReader(image), int64(len(image)))
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
			notes := strings.Join(open(t).Info().Notes, "; ")
			if got := strings.Contains(notes, "journal replayed"); got != s.dirty {
				t.Errorf("notes: %s", notes)
			}
		})
	}
}

// freeze makes a sample.
func freeze(t *testing.T, name string, mkfs []string, dirty bool) {
	image := filesystemtest.Image(t, 4<<20, append(mkfs, "-q", "-N", "128", "-U", "01234567-89ab-cdef-0123-456789abcdef", "-L", name)...)
	dir, unmount := filesystemtest.LoopMount(t, image, "")
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
	filesystemtest.SaveSampleTree(t, name, filesystemtest.Truth(t, image, "rw"))
}

// TestDamaged changes random bytes of metadata, with and without checksums
// in the way.
func TestDamaged(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			image, _ := filesystemtest.Sample(t, s.name)
			filesystemtest.TestDamaged(t, image, filesystemtest.DamagedImages(), openReader)
		})
	}
}

// FuzzWalk changes bytes of a sample's metadata: two bytes for the sector,
// two for the place in it, one for the value.
func FuzzWalk(f *testing.F) {
	images := make([][]byte, len(samples))
	sectors := make([][]int64, len(samples))
	for i, s := range samples {
		images[i], _ = filesystemtest.Sample(f, s.name)
		sectors[i] = filesystemtest.MetadataSectors(images[i])
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(2), []byte{2, 0, 0x60, 0, 0xFF})
	f.Add(uint8(2), []byte{40, 0, 0x28, 0, 0x0A, 40, 0, 0x2A, 0, 0xFF})
	f.Add(uint8(3), []byte{30, 0, 0x58, 0, 0x20, 31, 0, 0x58, 0, 0x20})
	limits := filesystemtest.DefaultLimits()
	limits.Deadline, limits.Nodes, limits.Read = 5*time.Second, 2000, 8<<20
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		k := int(which) % len(images)
		image := bytes.Clone(images[k])
		filesystemtest.Change(image, sectors[k], changes)
		if _, err := filesystemtest.WalkDamaged(image, openReader, limits); err != nil {
			t.Fatal(err)
		}
	})
}
