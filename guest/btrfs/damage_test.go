package btrfs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

var update = flag.Bool("update", false, "make the frozen sample in testdata anew (needs root)")

func openWritable(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// opener opens one device, with checksums or without.
func opener(unverified bool) filesystemtest.Opener {
	return func(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
		fs, err := open(ctx, []Device{{r, size}}, unverified)
		if err != nil {
			return nil, err
		}
		return fs, nil
	}
}

const sampleFile = "testdata/sample.img.gz"

// sample gives the frozen image: a small filesystem of one device with mixed
// groups, PopulateFiller's files, a subvolume, a snapshot and compressed files.
func sample(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open(sampleFile)
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

func freeze(t *testing.T) {
	path := filesystemtest.Image(t, 24<<20, "mkfs.btrfs", "-q", "-M", "-n", "4096", "-L", "sample", "-U", "01234567-89ab-cdef-0123-456789abcdef")
	dir, unmount := filesystemtest.LoopMount(t, path, "")
	if err := filesystemtest.PopulateFiller(dir); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "btrfs", "-q", "subvolume", "create", dir+"/sub")
	for _, kind := range []string{"zlib", "lzo", "zstd"} {
		name := filepath.Join(dir, "sub", kind)
		err := os.WriteFile(name, nil, 0o644)
		filesystemtest.Run(t, "btrfs", "property", "set", name, "compression", kind)
		if err := errors.Join(err, os.WriteFile(name, bytes.Repeat([]byte("FILEDATA"), 20_000), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	filesystemtest.Run(t, "btrfs", "-q", "subvolume", "snapshot", dir+"/sub", dir+"/snap")
	unmount()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, err = z.Write(b)
	if err := errors.Join(err, z.Close(), os.MkdirAll("testdata", 0o755), os.WriteFile(sampleFile, out.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestFrozen needs no root: the sample reads as it was made.
func TestFrozen(t *testing.T) {
	if *update {
		freeze(t)
	}
	b := sample(t)
	fs, err := opener(false)(t.Context(), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := filesystemtest.Walk(t.Context(), fs)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]bool{}
	for path, n := range tree {
		if n.Err != "" {
			t.Errorf("%q: %s", path, n.Err)
		}
		if dir := filepath.Dir(path); dir == "sub" || dir == "snap" {
			sums[n.Sum] = true
			if n.Size != 160_000 || string(n.Xattrs["btrfs.compression"]) != filepath.Base(path) {
				t.Errorf("%q: %+v", path, n)
			}
		}
	}
	info := fs.Info()
	if len(sums) != 1 || tree["deep/short"].Target != "../small/f03" || info.Label != "sample" || info.UUID != "01234567-89ab-cdef-0123-456789abcdef" || len(info.Notes) > 0 {
		t.Errorf("%d different contents of one; %+v", len(sums), info)
	}
}

func TestDamaged(t *testing.T) {
	for name, unverified := range map[string]bool{"Verified": false, "Unverified": true} {
		t.Run(name, func(t *testing.T) {
			filesystemtest.TestDamaged(t, sample(t), filesystemtest.DamagedImages(), opener(unverified))
		})
	}
}

// TestSuperblockCopy reads by the second superblock when the first is damaged.
func TestSuperblockCopy(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	path := filesystemtest.Image(t, 120<<20, "mkfs.btrfs", "-q")
	f := openWritable(t, path)
	if _, err := f.WriteAt(make([]byte, 100), 64<<10+0x40); err != nil {
		t.Fatal(err)
	}
	if _, err := filesystemtest.Walk(t.Context(), openImage(t, path)); err != nil {
		t.Error(err)
	}
}

// FuzzWalk changes bytes of the sample's metadata: two bytes for the sector,
// two for the place in it, one for the value.
func FuzzWalk(f *testing.F) {
	image := sample(f)
	sectors := filesystemtest.MetadataSectors(image)
	f.Add([]byte{})
	f.Add([]byte{20, 0, 0x14, 0, 0xFF, 21, 0, 0x18, 0, 1})
	f.Add([]byte{30, 0, 0x64, 0, 0, 9, 1, 0x60, 0, 0xFF})
	limits := filesystemtest.DefaultLimits()
	limits.Deadline, limits.Nodes, limits.Read = 5*time.Second, 2000, 8<<20
	f.Fuzz(func(t *testing.T, changes []byte) {
		image := bytes.Clone(image)
		for ; len(changes) >= 5; changes = changes[5:] {
			sector := sectors[int(le.Uint16(changes))%len(sectors)]
			image[sector+int64(le.Uint16(changes[2:])%512)] = changes[4]
		}
		if _, err := filesystemtest.WalkDamaged(image, opener(true), limits); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add(uint8(compressLZO), []byte{20, 0, 0, 0, 12, 0, 0, 0, 21, 'a', 'b', 'c', 'd', 0x2C, 0, 0, 0x11, 0, 0, 0}, 4096)
	f.Add(uint8(compressZlib), []byte{0x78, 0x9C, 3, 0, 0, 0, 0, 1}, 100)
	f.Add(uint8(compressZstd), []byte{0x28, 0xB5, 0x2F, 0xFD, 4, 0, 1, 0, 0}, 100)
	fs := &FS{super: Super{sector: 4096}}
	f.Fuzz(func(t *testing.T, kind uint8, in []byte, size int) {
		size = min(max(size, 0), maxPacked)
		if out, err := fs.unpack(kind%4, in, int64(size)); err == nil && len(out) != size {
			t.Errorf("%d bytes, want %d", len(out), size)
		}
	})
}
