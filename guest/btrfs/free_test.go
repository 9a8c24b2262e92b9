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
	for _, l := range layouts[1:5] {
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
	for _, l := range []int{0} {
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

// TestFreeInDoubt: nothing is free where the first superblock is lost, or a
// feature that is not known may use space.
func TestFreeInDoubt(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	image := filesystemtest.Image(t, 128*mib, "mkfs.btrfs", "-q")
	given := func() (n int64) {
		if err := openImage(t, image).Free(context.Background(), func(start, end int64) error { n += end - start; return nil }); err != nil {
			t.Error(err)
		}
		return n
	}
	if given() == 0 {
		t.Error("nothing is free")
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	s := b[superOffsets[0]:][:superSize]
	s[180+7] = 1
	sum := sumCRC32C.of(s[sumField:])
	copy(s, sum[:])
	patch(t, image, superOffsets[0], string(s))
	if n := given(); n != 0 {
		t.Errorf("%d bytes are free with an unknown feature", n)
	}
	patch(t, image, superOffsets[0], "damage")
	if n := given(); n != 0 {
		t.Errorf("%d bytes are free without a superblock", n)
	}
}

// TestFreeOfALiveCopy spoils what is free in a copy that was made while the
// filesystem was written to, and lets the kernel mount that.
func TestFreeOfALiveCopy(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	told := 0
	for _, image := range filesystemtest.LiveCopies(t, 256*mib, 3, "commit=1", "mkfs.btrfs", "-q") {
		if openImage(t, image).sb.logRoot.bytenr != 0 {
			continue // TestNothingFree
		}
		want := filesystemtest.Truth(t, filesystemtest.CopyImage(t, image), "rw")
		options := "rw"
		filesystemtest.TestFree(t, image, func(t *testing.T, image string) filesystem.Reader { return openImage(t, image) }, want, filesystemtest.AllFields, 0.5, &options)
		told++
	}
	t.Logf("%d copies had no log tree", told)
}
