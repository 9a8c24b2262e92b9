package btrfs

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
// showed.
var samples = []struct {
	name, options string
	mkfs          []string
	dirty         bool // copied with a log tree
}{
	{"plain", "", nil, false},
	{"zstd", "compress-force=zstd", []string{"--csum", "xxhash"}, false},
	{"lzo", "compress-force=lzo", []string{"--csum", "sha256", "-O", "^no-holes"}, false},
	{"zlib", "compress-force=zlib", []string{"--csum", "blake2"}, false},
	{"dirty", "commit=300", []string{"-O", "^no-holes"}, true},
}

// openReader reads one device.
func openReader(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := Open(ctx, []Device{{r, size}})
	if err != nil {
		return nil, err
	}
	return timeless{fs}, nil
}

// openUnchecked takes all that has a wrong checksum.
func openUnchecked(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := open(ctx, []Device{{r, size}}, true)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

// TestFrozen needs no root and no mkfs: the samples must read for ever as the
// kernel once showed them.
func TestFrozen(t *testing.T) {
	for i, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			if *update {
				freeze(t, i)
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
			if got := strings.Contains(notes, "log tree replayed"); got != s.dirty || notes != "" && !s.dirty {
				t.Errorf("notes: %s", notes)
			}
		})
	}
}

// freeze makes a sample.
func freeze(t *testing.T, i int) {
	s := samples[i]
	mkfs := append([]string{"mkfs.btrfs", "-q", "-M", "-n", "4096", "-L", s.name, "-U", "01234567-89ab-cdef-0123-456789abcdef"}, s.mkfs...)
	image := filesystemtest.Image(t, 16*mib, mkfs...)
	dir, unmount := filesystemtest.LoopMount(t, image, s.options)
	if err := filesystemtest.PopulateFiller(dir); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "btrfs", "subvolume", "create", dir+"/sub")
	filesystemtest.Run(t, "btrfs", "subvolume", "create", dir+"/sub/nested")
	if err := os.WriteFile(dir+"/sub/nested/file", bytes.Repeat([]byte(filler), 3000), 0o644); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "btrfs", "subvolume", "snapshot", dir+"/sub", dir+"/snapshot")
	filesystemtest.Run(t, "sync", "-f", dir)
	filesystemtest.Run(t, "fstrim", dir) // old nodes would take most of the damage
	if s.dirty {
		workForLog(t, dir)
		copied := filesystemtest.CopyImage(t, image)
		unmount()
		image = copied
	}
	unmount()
	filesystemtest.SaveSampleImage(t, s.name, image)
	mounted := time.Now().Unix()
	tree := filesystemtest.Truth(t, image, "rw")
	n := tree["snapshot/nested"]
	n.Mtime, n.Ctime, n.Btime = filesystem.Time{}, filesystem.Time{}, filesystem.Time{}
	tree["snapshot/nested"] = n
	if s.dirty { // the kernel's replay sets times of directories to the present
		got, err := filesystemtest.Walk(context.Background(), timeless{openBytes(t, filesystemtest.SampleImage(t, s.name))})
		if err != nil {
			t.Fatal(err)
		}
		for path, n := range tree {
			if n.Mtime.Sec >= mounted {
				n.Mtime = got[path].Mtime
			}
			if n.Ctime.Sec >= mounted {
				n.Ctime = got[path].Ctime
			}
			tree[path] = n
		}
	}
	filesystemtest.SaveSampleTree(t, s.name, tree)
}

// workForLog does and syncs what makes items of each kind in the log tree.
func workForLog(t *testing.T, dir string) {
	t.Helper()
	filesystemtest.Run(t, "sh", "-c", `cd "$1" &&
		mkdir deep/new && echo new >deep/new/file && ln deep/new/file deep/link && sync deep/new/file &&
		mv small/f10 small/renamed && sync small/renamed && rm small/f11 && sync small &&
		setfattr -n user.new -v 1 small/f05 && setfattr -x user.a3 small/f05 && sync small/f05 &&
		truncate -s 300 small/f20 && sync small/f20 && rm large/*77 && sync large &&
		fallocate -p -o 16384 -l 20000 fragmented && sync fragmented &&
		echo more >>sub/nested/file && sync sub/nested/file`, "sh", dir)
}

func openBytes(t testing.TB, image []byte) *FS {
	t.Helper()
	fs, err := Open(context.Background(), []Device{{bytes.NewReader(image), int64(len(image))}})
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

const filler = "FILEDATA" // what PopulateFiller writes

// TestDamaged changes random bytes of metadata, with and without checksums
// in the way.
func TestDamaged(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			image, _ := filesystemtest.Sample(t, s.name)
			filesystemtest.TestDamaged(t, image, damagedImages(), openReader)
		})
		t.Run(s.name+"-unchecked", func(t *testing.T) {
			image, _ := filesystemtest.Sample(t, s.name)
			filesystemtest.TestDamaged(t, image, damagedImages(), openUnchecked)
		})
	}
}

// damagedImages is how many of each sample; they are many.
func damagedImages() int { return (filesystemtest.DamagedImages() + 1) / 2 }

// FuzzWalk changes bytes of a sample's metadata without checksums in the way:
// two bytes for the sector, two for the place in it, one for the value.
func FuzzWalk(f *testing.F) {
	images := make([][]byte, len(samples))
	sectors := make([][]int64, len(samples))
	for i, s := range samples {
		images[i], _ = filesystemtest.Sample(f, s.name)
		sectors[i] = filesystemtest.MetadataSectors(images[i])
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{2, 0, 0x60, 0, 0xFF})
	f.Add(uint8(2), []byte{40, 0, 0x28, 0, 0x0A, 40, 0, 0x2A, 0, 0xFF})
	f.Add(uint8(3), []byte{8, 0, 0x65, 0, 0x20, 16, 0, 0x65, 0, 0x20})
	limits := filesystemtest.DefaultLimits()
	limits.Deadline, limits.Nodes, limits.Read = 5*time.Second, 2000, 8<<20
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		k := int(which) % len(images)
		image := bytes.Clone(images[k])
		filesystemtest.Change(image, sectors[k], changes)
		if _, err := filesystemtest.WalkDamaged(image, openUnchecked, limits); err != nil {
			t.Fatal(err)
		}
	})
}
