package ext4

import (
	"context"
	"os"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

func openAny(t *testing.T, image string) filesystem.Reader { return openImage(t, image) }

// TestFree spoils what is free, for each way in which free space is kept.
func TestFree(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		name string
		size int64
		mkfs []string
	}{
		{"default", 320 * mib, []string{"mkfs.ext4", "-b", "4096"}},
		{"1k", 96 * mib, []string{"mkfs.ext4", "-b", "1024"}},
		{"ext3", 192 * mib, []string{"mkfs.ext3", "-b", "1024"}},
		{"ext2", 48 * mib, []string{"mkfs.ext2", "-b", "4096"}},
		{"bigalloc", 128 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "bigalloc", "-C", "4096"}},
		{"meta_bg", 96 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"}},
		{"gdt_csum", 96 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg,^flex_bg"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			scale := filesystemtest.SmallScale()
			scale.Entries, scale.Extents = 200, 200
			image := populated(t, test.size, scale, append(test.mkfs, "-q", "-N", "4096")...)
			options := "ro"
			filesystemtest.TestFree(t, image, openAny, filesystemtest.Truth(t, image, options), filesystemtest.AllFields, 0.9, &options)
		})
	}
}

// TestFreeOfALiveCopy spoils what is free behind a replay, and lets the kernel
// replay.
func TestFreeOfALiveCopy(t *testing.T) {
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.ext4")
	for _, image := range filesystemtest.LiveCopies(t, 64<<20, 2, "", "mkfs.ext4", "-q", "-N", "4096") {
		want := filesystemtest.Truth(t, filesystemtest.CopyImage(t, image), "rw")
		options := "rw"
		filesystemtest.TestFree(t, image, openAny, want, filesystemtest.AllFields, 0.8, &options)
	}
}

// TestFreeInDoubt: nothing is free where the bitmaps may not be the last word.
func TestFreeInDoubt(t *testing.T) {
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.ext2")
	image := filesystemtest.Image(t, 16<<20, "mkfs.ext2", "-q")
	for _, state := range []byte{0, 1, 2, 3} {
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		b[1024+0x3A] = state
		if err := os.WriteFile(image, b, 0o600); err != nil {
			t.Fatal(err)
		}
		given := int64(0)
		err = openImage(t, image).Free(context.Background(), func(start, end int64) error { given += end - start; return nil })
		if clean := state == 1; (err == nil) != clean || (given > 0) != clean {
			t.Errorf("state %d: %d bytes, %v", state, given, err)
		}
	}
}

func TestRecords(t *testing.T) {
	image := populated(t, 48<<20, filesystemtest.SmallScale(), "mkfs.ext4", "-q", "-b", "1024", "-N", "4096")
	filesystemtest.TestRecords(t, image, "", openAny, func(t *testing.T, dir string) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		filesystemtest.Churn(ctx, dir, 1)
		for _, change := range [][]string{
			{"touch", dir + "/files"}, {"mkdir", dir + "/new"}, {"cp", "/proc/self/status", dir + "/new/file"},
			{"setfattr", "-n", "user.x", "-v", "y", dir + "/new/file"}, {"ln", dir + "/new/file", dir + "/new/link"},
		} {
			filesystemtest.Run(t, change...)
		}
	})
}
