package iso9660

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// samples are the frozen images in testdata with the tree that Linux 6.1
// showed; integration's TestWitnessedFilesystems makes them with -update.
var samples = []string{"rockridge", "joliet", "plain"}

// fields are those that the kernel shows: it knows no holes.
const fields = filesystemtest.AllFields &^ (filesystemtest.Holes | filesystemtest.Xattrs)

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
			if info.Label != "ISO LABEL" && info.Label != "ISO_LABEL" || len(info.Notes) > 0 || len(info.UUID) != len("2026-11-28-23-05-00-00") {
				t.Errorf("%+v", info)
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
	f.Add(uint8(0), []byte{0, 0, 158, 0, 40})
	f.Add(uint8(1), []byte{8, 0, 34, 0, 0})
	f.Add(uint8(2), []byte{6, 0, 70, 0, 255, 0, 0, 128, 0, 2})
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
