package xfs

import (
	"context"
	"os"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

const mib = 1 << 20

// small lets mkfs.xfs make filesystems that it thinks too small to use; they
// read the same and are filled faster.
var small = []string{"mkfs.xfs", "-q", "--unsupported"}

// mkfs is the command for a small filesystem.
func mkfs(options ...string) []string {
	return append(append([]string{}, small...), options...)
}

// openImage opens the filesystem in an image file.
func openImage(t testing.TB, path string) *FS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(context.Background(), f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// populated makes an image with the given mkfs and fills it.
func populated(t testing.TB, size int64, scale filesystemtest.Scale, mkfs ...string) string {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, mkfs[0])
	image := filesystemtest.Image(t, size, mkfs...)
	dir, unmount := filesystemtest.LoopMount(t, image, "")
	if err := filesystemtest.Populate(dir, scale); err != nil {
		t.Fatal(err)
	}
	unmount()
	return image
}

// layouts are what mkfs.xfs makes and this kernel mounts.
var layouts = []struct {
	name string
	size int64
	mkfs []string
	tune func(*filesystemtest.Scale)
}{
	{"default", 320 * mib, []string{"mkfs.xfs", "-q"}, nil},
	{"1k-dirs8k", 96 * mib, mkfs("-b", "size=1024", "-n", "size=8192"), manyEntries},
	{"nrext64-rmap", 128 * mib, mkfs("-i", "nrext64=1", "-m", "rmapbt=1,reflink=1"), largeXattrs},
	{"no-bigtime", 96 * mib, mkfs("-m", "bigtime=0,inobtcount=0", "-i", "sparse=0"), nil},
	{"dirs16k-inodes1k", 128 * mib, mkfs("-n", "size=16384", "-i", "size=1024"), manyEntries},
	{"2k", 96 * mib, mkfs("-b", "size=2048"), largeXattrs},
	{"inodes2k", 96 * mib, mkfs("-i", "size=2048", "-d", "agcount=3"), nil},
}

func manyEntries(s *filesystemtest.Scale) { s.Entries, s.Extents = 9000, 2000 }

// largeXattrs makes values that need blocks of their own.
func largeXattrs(s *filesystemtest.Scale) { s.MaxXattr = 60000 }

// TestTruth holds the reader against the kernel's mount of the same image.
func TestTruth(t *testing.T) {
	for _, test := range layouts {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // most of the time is the disk's
			scale := filesystemtest.SmallScale()
			if filesystemtest.Long() {
				scale, test.size = filesystemtest.LargeScale(), 1<<30
			} else if test.tune != nil {
				test.tune(&scale)
			}
			image := populated(t, test.size, scale, test.mkfs...)
			want := filesystemtest.Truth(t, image, "ro")
			open := func(t *testing.T) filesystem.Reader { return openImage(t, image) }
			filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
			if notes := openImage(t, image).Info().Notes; len(notes) > 0 {
				t.Errorf("notes: %q", notes)
			}
		})
	}
}
