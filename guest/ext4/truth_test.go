package ext4

import (
	"context"
	"os"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

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

// TestTruth holds the reader against the kernel's mount of the same image,
// for every layout that mke2fs makes and this kernel mounts.
func TestTruth(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		name string
		size int64
		mkfs []string
		tune func(*filesystemtest.Scale)
	}{
		{"default", 64 * mib, []string{"mkfs.ext4", "-b", "4096"}, nil},
		{"1k", 48 * mib, []string{"mkfs.ext4", "-b", "1024"}, nil},
		{"2k-inode512", 48 * mib, []string{"mkfs.ext4", "-b", "2048", "-I", "512"}, nil},
		{"inline", 48 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "inline_data"}, nil},
		{"inline-inode1024", 64 * mib, []string{"mkfs.ext4", "-b", "4096", "-I", "1024", "-O", "inline_data"}, nil},
		{"ext3", 48 * mib, []string{"mkfs.ext3"}, nil},
		{"ext2-inode128", 48 * mib, []string{"mkfs.ext2", "-I", "128", "-b", "1024"}, nil},
		{"ext2-4k", 48 * mib, []string{"mkfs.ext2", "-b", "4096"}, nil},
		{"ea_inode", 64 * mib, []string{"mkfs.ext4", "-b", "4096", "-O", "ea_inode"}, func(s *filesystemtest.Scale) { s.MaxXattr = 60000 }},
		{"bigalloc", 64 * mib, []string{"mkfs.ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"}, nil},
		{"bigalloc-1k", 64 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "bigalloc", "-C", "4096"}, nil},
		{"meta_bg", 48 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,metadata_csum_seed"}, nil},
		{"no-csum", 48 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,^flex_bg"}, nil},
		{"gdt_csum", 48 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"}, nil},
		{"orphan_file", 48 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "orphan_file,sparse_super2"}, nil},
		{"large_dir", 48 * mib, []string{"mkfs.ext4", "-b", "1024", "-O", "large_dir"}, func(s *filesystemtest.Scale) { s.Entries = 6000 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // most of the time is the disk's
			scale := filesystemtest.SmallScale()
			if test.tune != nil {
				test.tune(&scale)
			}
			image := populated(t, test.size, scale, append(test.mkfs, "-q", "-N", "4096")...)
			want := filesystemtest.Truth(t, image, "ro")
			open := func(t *testing.T) filesystem.Reader { return openImage(t, image) }
			filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
		})
	}
}

// TestTruthLarge does so with 100,000 names, in the long run.
func TestTruthLarge(t *testing.T) {
	if !filesystemtest.Long() {
		t.Skip("only with CAIRN_LONG=1")
	}
	image := populated(t, 1<<30, filesystemtest.LargeScale(), "mkfs.ext4", "-q", "-N", "200000")
	want := filesystemtest.Truth(t, image, "ro")
	open := func(t *testing.T) filesystem.Reader { return openImage(t, image) }
	filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
}
