package vfat

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// copied are the fields that a copy by mtools keeps.
const copied = filesystemtest.Sizes | filesystemtest.Contents | filesystemtest.Mtimes

// mtools runs one of the mtools on an image, for which names are UTF-8 and
// times are in UTC.
func mtools(t testing.TB, image string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], append([]string{"-i", image}, args[1:]...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC", "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", args[0], err, out)
	}
}

// plainTree fills a directory of this machine.
func plainTree(t testing.TB, entries int) string {
	t.Helper()
	dir := filepath.Join(filesystemtest.ImageDir(t), "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := filesystemtest.PopulatePlain(dir, entries, false); err != nil {
		t.Fatal(err)
	}
	// What mtools does not keep: a pair of surrogates, names of devices, the
	// lower case of letters that are not ASCII, the 29th of February 2100 that
	// never was.
	for _, name := range []string{"names/smile-😀-pair", "names/e\u0301", "names/CON", "names/grüße.txt", "names/é", "names/ö", "times/t6"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// asOnFAT is a tree as it is seen after a copy to FAT: even seconds, from 1980
// on, and no times of directories, which mtools does not keep.
func asOnFAT(tree filesystemtest.Tree) filesystemtest.Tree {
	out := make(filesystemtest.Tree)
	for path, n := range tree {
		n.Mtime = filesystem.Time{Sec: n.Mtime.Sec &^ 1}
		if n.Mode&filesystem.ModeType == filesystem.ModeDir {
			n.Mtime = filesystem.Time{}
		}
		out[path] = n
	}
	return out
}

func record(t testing.TB, dir string) filesystemtest.Tree {
	t.Helper()
	tree, err := filesystemtest.Record(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestMtools lets mtools copy a tree in and holds the reader to it; then mtools
// must copy the same tree out of an image with rubbish in its free space.
func TestMtools(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.fat")
	filesystemtest.NeedTool(t, "mcopy")
	entries := 300
	if filesystemtest.Long() {
		entries = 600 // mcopy never ends on a full disk
	}
	dir := plainTree(t, entries)
	want := asOnFAT(record(t, dir))
	for _, test := range []struct {
		name string
		size int64
		mkfs []string
		long bool
	}{
		{"fat12", 6 << 20, []string{"-F", "12", "-s", "4"}, false},
		{"fat12-one-copy", 6 << 20, []string{"-F", "12", "-f", "1", "-s", "8"}, true},
		{"fat16", 24 << 20, []string{"-F", "16"}, true},
		{"fat16-sectors", 64 << 20, []string{"-F", "16", "-S", "2048"}, false},
		{"fat32", 100 << 20, []string{"-F", "32", "-s", "2"}, true},
		{"fat32-clusters", 300 << 20, []string{"-F", "32", "-s", "8", "-R", "64"}, false},
	} {
		if test.long && !filesystemtest.Long() {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			image := filesystemtest.Image(t, test.size, append([]string{"mkfs.fat"}, test.mkfs...)...)
			sources, err := filepath.Glob(dir + "/*")
			if err != nil {
				t.Fatal(err)
			}
			mtools(t, image, append(append([]string{"mcopy", "-s", "-m", "-Q"}, sources...), "::")...)
			open := func(t *testing.T, path string) filesystem.Reader { return withoutDirTimes{openImage(t, path)} }
			filesystemtest.TestReader(t, func(t *testing.T) filesystem.Reader { return open(t, image) }, asRead(want), copied)
			filesystemtest.TestFree(t, image, open, asRead(want), copied, 0.99, nil)

			spoiled := spoilFree(t, image)
			out := filepath.Join(filesystemtest.ImageDir(t), "out")
			if err := os.Mkdir(out, 0o755); err != nil {
				t.Fatal(err)
			}
			mtools(t, spoiled, "mcopy", "-s", "-m", "-Q", "::", out)
			for _, d := range filesystemtest.Compare(want, asOnFAT(record(t, out)), copied) {
				t.Errorf("mtools: %s", d)
			}
		})
	}
}

// asRead gives a tree the modes of the reader, which the suite looks at. Neither
// mtools nor exfat-fuse sets the read-only attribute.
func asRead(tree filesystemtest.Tree) filesystemtest.Tree {
	out := make(filesystemtest.Tree)
	for path, n := range tree {
		n.Mode = n.Mode&filesystem.ModeType | 0o755
		out[path] = n
	}
	return out
}

// withoutDirTimes hides what the copy does not keep.
type withoutDirTimes struct{ *FS }

func (r withoutDirTimes) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	a, err := r.FS.Attr(ctx, ino)
	if a.IsDir() {
		a.Mtime = filesystem.Time{}
	}
	return a, err
}

// spoilFree writes rubbish over the free space of a copy.
func spoilFree(t testing.TB, image string) string {
	t.Helper()
	copied := filesystemtest.CopyImage(t, image)
	f, err := os.OpenFile(copied, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = openImage(t, image).Free(context.Background(), func(start, end int64) error {
		rubbish := make([]byte, end-start)
		for i := range rubbish {
			rubbish[i] = 0xC3
		}
		_, err := f.WriteAt(rubbish, start)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

// TestExfatFuse holds the reader to another writer of exFAT, which is no
// kernel: exfat-fuse.
func TestExfatFuse(t *testing.T) {
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.exfat")
	filesystemtest.NeedTool(t, "mount.exfat-fuse")
	entries := 300
	if filesystemtest.Long() {
		entries = 3000
	}
	for _, test := range []struct {
		name string
		size int64
		mkfs []string
	}{
		{"default", 24 << 20, nil},
		{"512", 16 << 20, []string{"-c", "512"}},
		{"64k", 400 << 20, []string{"-c", "65536"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			image := filesystemtest.Image(t, test.size, append([]string{"mkfs.exfat"}, test.mkfs...)...)
			var want filesystemtest.Tree
			fuseMounted(t, image, "", func(dir string) {
				if err := filesystemtest.PopulatePlain(dir, entries, false); err != nil {
					t.Fatal(err)
				}
				// To the driver 2100 is a leap year, and later days are one off.
				if err := os.Remove(dir + "/times/t6"); err != nil {
					t.Fatal(err)
				}
			})
			fuseMounted(t, image, "ro", func(dir string) { want = record(t, dir) })
			root := want["."]
			root.Mtime = filesystem.Time{}
			want["."] = root
			open := func(t *testing.T, path string) filesystem.Reader { return openImage(t, path) }
			readers := asRead(want)
			filesystemtest.TestReader(t, func(t *testing.T) filesystem.Reader { return open(t, image) }, readers, copied|filesystemtest.Modes)
			filesystemtest.TestFree(t, image, open, readers, copied, 0.99, nil)
			fuseMounted(t, spoilFree(t, image), "ro", func(dir string) {
				got := record(t, dir)
				got["."] = root
				for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields&^filesystemtest.Btimes) {
					t.Errorf("exfat-fuse, with rubbish in the free space: %s", d)
				}
			})
		})
	}
}

// fuseMounted mounts an image by exfat-fuse, which wants a block device, and
// waits for its end.
func fuseMounted(t testing.TB, image, options string, use func(dir string)) {
	t.Helper()
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(string(out))
	defer filesystemtest.Run(t, "losetup", "-d", loop)
	dir := filepath.Join(filesystemtest.ImageDir(t), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	command := []string{"mount.exfat-fuse", loop, dir}
	if options != "" {
		command = append(command, "-o", options)
	}
	filesystemtest.Run(t, command...)
	defer func() {
		filesystemtest.Run(t, "umount", dir)
		// The driver writes the rest when the mount is gone already; the
		// device is busy until it ends.
		for range 500 {
			if out, err := exec.Command("fuser", loop).Output(); err != nil || len(out) == 0 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	use(dir)
}
