package vfat

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// samples are the frozen images in testdata with the tree that Linux 6.1
// showed; integration's TestWitnessedFilesystems makes them with -update.
var samples = []string{"fat12", "fat16", "fat32", "exfat"}

// fields are those that FAT and exFAT have: see fatFields in integration.
const fields = filesystemtest.AllFields &^ (filesystemtest.Ctimes | filesystemtest.Holes)

func openReader(ctx context.Context, r io.ReaderAt, size int64) (filesystem.Reader, error) {
	fs, err := Open(ctx, r, size)
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

// TestFrozen reads the samples as the kernel once showed them.
func TestFrozen(t *testing.T) {
	for _, name := range samples {
		t.Run(name, func(t *testing.T) {
			image, want := filesystemtest.Sample(t, name)
			open := func(t *testing.T) filesystem.Reader { return openBytes(t, image) }
			filesystemtest.TestReader(t, open, want, fields)
			info := openBytes(t, image).Info()
			if info.Label != map[bool]string{true: "frozen", false: "FROZEN"}[name == "exfat"] || len(info.Notes) > 0 {
				t.Errorf("%+v", info)
			}
			if name != "exfat" && info.UUID != "1234-abcd" {
				t.Errorf("serial number %s", info.UUID)
			}
		})
	}
}

// TestDamaged changes random bytes of metadata.
func TestDamaged(t *testing.T) {
	for _, name := range samples {
		t.Run(name, func(t *testing.T) {
			image, _ := filesystemtest.Sample(t, name)
			filesystemtest.TestDamaged(t, image, filesystemtest.DamagedImages(), openReader)
		})
	}
}

// TestFree overwrites what is free of the samples.
func TestFree(t *testing.T) {
	for _, name := range samples {
		t.Run(name, func(t *testing.T) {
			image, want := filesystemtest.Sample(t, name)
			path := filesystemtest.Image(t, 0)
			if err := os.WriteFile(path, image, 0o644); err != nil {
				t.Fatal(err)
			}
			filesystemtest.TestFree(t, path, func(t *testing.T, path string) filesystem.Reader { return openImage(t, path) }, want, fields, 0.99, nil)
		})
	}
}

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

// FuzzWalk changes bytes of a sample's metadata: two bytes for the sector,
// two for the place in it, one for the value.
func FuzzWalk(f *testing.F) {
	images := make([][]byte, len(samples))
	sectors := make([][]int64, len(samples))
	for i, name := range samples {
		images[i], _ = filesystemtest.Sample(f, name)
		sectors[i] = filesystemtest.MetadataSectors(images[i])
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{1, 0, 6, 0, 3, 1, 0, 8, 0, 3})
	f.Add(uint8(2), []byte{0, 0, 44, 0, 3, 8, 0, 26, 0, 2})
	f.Add(uint8(3), []byte{0, 0, 109, 0, 25})
	f.Add(uint8(3), []byte{30, 0, 1, 0, 18, 31, 0, 33, 0, 2})
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
