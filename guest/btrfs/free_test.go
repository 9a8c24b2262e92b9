package btrfs

import (
	"context"
	"os"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// TestFree writes rubbish over all that is called free; no difference may be
// seen.
func TestFree(t *testing.T) {
	for _, l := range layouts[:5] {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			image := populated(t, l.size, filesystemtest.SmallScale(), l.options, l.mkfs...)
			want := withoutStubTimes(filesystemtest.Truth(t, image, "ro"))
			open := func(t *testing.T, image string) filesystem.Reader { return timeless{openImage(t, image)} }
			filesystemtest.TestFree(t, image, open, want, filesystemtest.AllFields, 0.9, nil)
		})
	}
}

// TestFreeForTheKernel spoils an image and lets the kernel and btrfs check
// read it.
func TestFreeForTheKernel(t *testing.T) {
	for _, l := range []int{3, 0} {
		if l == 0 && !filesystemtest.Long() {
			continue // the mixed groups of the other are the harder case
		}
		t.Run(layouts[l].name, func(t *testing.T) {
			t.Parallel()
			image := populated(t, layouts[l].size, filesystemtest.SmallScale(), layouts[l].options, layouts[l].mkfs...)
			want := withoutStubTimes(filesystemtest.Truth(t, image, "ro"))
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ctx := context.Background()
			err = openImage(t, image).Free(ctx, func(start, end int64) error {
				b := make([]byte, end-start)
				for i := range b {
					b[i] = 0x5A
				}
				_, err := f.WriteAt(b, start)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			filesystemtest.Run(t, "btrfs", "check", "--check-data-csum", image)
			got := withoutStubTimes(filesystemtest.Truth(t, image, "ro"))
			for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
				t.Error(d)
			}
		})
	}
}

// TestNothingFree: several devices tell nothing, a log tree hides all.
func TestNothingFree(t *testing.T) {
	none := func(fs *FS) {
		t.Helper()
		if err := fs.Free(context.Background(), func(start, end int64) error {
			t.Errorf("%d to %d is called free", start, end)
			return errStop
		}); err != nil {
			t.Error(err)
		}
	}
	images, _ := array(t, 2, 160*mib, "-d", "single", "-m", "raid1")
	none(openImage(t, images...))
	image := logged(t, func(dir string) {})
	fs := openImage(t, image)
	if fs.sb.logRoot.bytenr == 0 {
		t.Fatal("the image has no log tree")
	}
	none(fs)
}
