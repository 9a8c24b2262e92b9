package ntfs

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

var update = flag.Bool("update", false, "make the frozen sample in testdata anew (needs root)")

func openReader(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := Open(ctx, r, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

const sample = "sample" // the frozen image

// freeze makes the sample: what mkntfs and ntfs-3g make of PopulateFiller, a
// compressed file and one with many streams.
func freeze(t *testing.T) {
	path := filesystemtest.Image(t, 6<<20, "mkntfs", "-F", "-Q", "-q", "-c", "512", "-L", "sample")
	dir, unmount := mount(t, path, "rw")
	if err := filesystemtest.PopulateFiller(dir); err != nil {
		t.Fatal(err)
	}
	filler := bytes.Repeat([]byte("FILEDATA"), 20_000)
	err := errors.Join(os.Mkdir(filepath.Join(dir, "packed"), 0o755),
		unix.Setxattr(filepath.Join(dir, "packed"), "system.ntfs_attrib", []byte{0x10, 0x08, 0, 0}, 0),
		os.WriteFile(filepath.Join(dir, "packed/file"), filler, 0o644))
	for i := range 25 {
		err = errors.Join(err, unix.Setxattr(filepath.Join(dir, "packed/file"), "user.stream-with-a-name-"+strings.Repeat("x", i), filler[:i*8], 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	unmount()
	filesystemtest.SaveSampleImage(t, sample, path)
}

// TestFrozen needs no root: the sample reads as it was made.
func TestFrozen(t *testing.T) {
	if *update {
		freeze(t)
	}
	b := filesystemtest.SampleImage(t, sample)
	fs, err := openReader(t.Context(), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := filesystemtest.Walk(t.Context(), fs)
	if err != nil {
		t.Fatal(err)
	}
	for path, n := range tree {
		if n.Err != "" {
			t.Errorf("%q: %s", path, n.Err)
		}
	}
	if n := tree["packed/file"]; n.Size != 160_000 || len(n.Xattrs) != 25 || n.Err != "" || n.Blocks*512 > 40_000 {
		t.Errorf("the compressed file: %+v", n)
	}
	if n := tree["deep/short"]; n.Target != "../small/f03" {
		t.Errorf("the link: %+v", n)
	}
	if len(tree) != 191 {
		t.Errorf("%d names", len(tree))
	}
	info := fs.Info()
	if info.Label != "sample" || info.Type != "ntfs" || info.FreeBytes <= 0 || len(info.Notes) > 0 {
		t.Errorf("%+v", info)
	}
}

func TestDamaged(t *testing.T) {
	filesystemtest.TestDamaged(t, filesystemtest.SampleImage(t, sample), filesystemtest.DamagedImages(), openReader)
}

// TestBackups damages what there are copies of.
func TestBackups(t *testing.T) {
	for name, damage := range map[string]func(b []byte){
		"boot sector": func(b []byte) { clear(b[:512]) },
		"MFT record":  func(b []byte) { b[int64(le.Uint64(b[0x30:]))*512] = 'X' },
	} {
		b := filesystemtest.SampleImage(t, sample)
		damage(b)
		fs, err := openReader(t.Context(), bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tree, err := filesystemtest.Walk(t.Context(), fs)
		if err != nil || len(tree) != 191 || len(fs.Info().Notes) == 0 {
			t.Errorf("%s: %d names, %v, notes %q", name, len(tree), err, fs.Info().Notes)
		}
	}
}

// FuzzWalk changes bytes of the sample's metadata: two bytes for the sector,
// two for the place in it, one for the value.
func FuzzWalk(f *testing.F) {
	image := filesystemtest.SampleImage(f, sample)
	sectors := filesystemtest.MetadataSectors(image)
	f.Add([]byte{})
	f.Add([]byte{20, 0, 0x14, 0, 0xFF, 21, 0, 0x18, 0, 1})
	limits := filesystemtest.DefaultLimits()
	limits.Deadline, limits.Nodes, limits.Read = 5*time.Second, 2000, 8<<20
	f.Fuzz(func(t *testing.T, changes []byte) {
		image := bytes.Clone(image)
		filesystemtest.Change(image, sectors, changes)
		if _, err := filesystemtest.WalkDamaged(image, openReader, limits); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x38, 0xB0, 0x88, 'F', '#', ' ', 'a', 'a', ' ', 'G', ' ', 'A', 0}, 100)
	f.Add([]byte{0xFF, 0x8F, 0xFF, 0xFF, 0xFF}, 65536)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		size = min(max(size, 0), maxUnit)
		if out, err := decompress(in, size); err == nil && len(out) != size {
			t.Errorf("%d bytes, want %d", len(out), size)
		}
	})
}

func FuzzRuns(f *testing.F) {
	f.Add([]byte{0x21, 0x18, 0x34, 0x56, 0x11, 0x10, 0xF0, 0x01, 0x08, 0})
	f.Fuzz(func(t *testing.T, pairs []byte) {
		runs, err := appendRuns(nil, pairs, 0, 1<<20)
		if err != nil {
			return
		}
		vcn := int64(0)
		for _, r := range runs {
			if r.vcn != vcn || r.n <= 0 || r.lcn < -1 || r.lcn+r.n > 1<<20 && r.lcn >= 0 {
				t.Fatalf("%+v", runs)
			}
			vcn += r.n
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a\x00\x3d\xd8\x00\xde\x00\xd8b\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := string(b[:len(b)&^1])
		if back := utf16Bytes(text(s)); back != s {
			t.Errorf("%x is %q, and back %x", s, text(s), back)
		}
	})
}
