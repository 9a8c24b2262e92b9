package btrfs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// device opens an image file as a device.
func device(t testing.TB, path string) Device {
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
	return Device{f, st.Size()}
}

func openImage(t testing.TB, paths ...string) *FS {
	t.Helper()
	var devices []Device
	for _, path := range paths {
		devices = append(devices, device(t, path))
	}
	fs, err := Open(context.Background(), devices)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func openAny(t *testing.T, image string) filesystem.Reader { return openImage(t, image) }

// populate fills a filesystem, and adds subvolumes, some in each other, and
// snapshots; extents in common; and compressible files.
func populate(t testing.TB, dir string, scale filesystemtest.Scale) {
	t.Helper()
	if err := filesystemtest.Populate(dir, scale); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	btrfs := func(args ...string) {
		t.Helper()
		filesystemtest.Run(t, append([]string{"btrfs", "-q", "subvolume"}, args...)...)
	}
	btrfs("create", at("sub"))
	btrfs("create", at("sub/nested"))
	btrfs("create", at("sub/nested/deeper"))
	write("sub/nested/deeper/file", "three levels down")
	write("sub/file", strings.Repeat("compressible text, again and again\n", 40_000))
	btrfs("snapshot", at("sub"), at("snap"))
	btrfs("snapshot", "-r", at("sub"), at("read-only"))
	write("sub/file", "changed since")
	btrfs("create", at("gone"))
	btrfs("delete", at("gone"))
	for _, n := range []int{1, 100, 2000, 4095, 4096, 4097, 65_000, 131_072, 131_073, 1_000_000} {
		write(fmt.Sprintf("text%d", n), strings.Repeat(fmt.Sprintf("line %d of many\n", n), n/14+1)[:n])
	}
	filesystemtest.Run(t, "cp", "--reflink=always", at("text1000000"), at("reflink"))
	f, err := os.OpenFile(at("reflink"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("in the middle of what is shared"), 500_000); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "sync", "-f", dir)
}

// stubs makes what stands in the place of a subvolume in a snapshot equal: the
// kernel gives it the time of day.
func stubs(tree filesystemtest.Tree) filesystemtest.Tree {
	for _, path := range []string{"snap/nested", "read-only/nested"} {
		n := tree[path]
		n.Mtime, n.Ctime, n.Btime = filesystem.Time{}, filesystem.Time{}, filesystem.Time{}
		tree[path] = n
	}
	return tree
}

func image(t testing.TB, size int64, scale filesystemtest.Scale, options string, mkfs ...string) string {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	path := filesystemtest.Image(t, size, append([]string{"mkfs.btrfs", "-q"}, mkfs...)...)
	dir, unmount := filesystemtest.LoopMount(t, path, options)
	populate(t, dir, scale)
	unmount()
	return path
}

func TestTruth(t *testing.T) {
	for _, test := range []struct {
		name, options string
		mkfs          []string
	}{
		{"default", "", nil},
		{"zstd", "compress-force=zstd", []string{"--csum", "xxhash"}},
		{"lzo", "compress-force=lzo", []string{"--csum", "sha256", "-n", "65536", "-O", "^no-holes"}},
		{"zlib", "compress=zlib", []string{"--csum", "blake2", "-M", "-n", "4096"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := image(t, 160<<20, filesystemtest.SmallScale(), test.options, test.mkfs...)
			want := stubs(filesystemtest.Truth(t, path, "ro"))
			open := func(t *testing.T) filesystem.Reader { return openImage(t, path) }
			filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
		})
	}
}

func TestTruthLarge(t *testing.T) {
	if !filesystemtest.Long() {
		t.Skip("only with CAIRN_LONG=1")
	}
	path := image(t, 1<<30, filesystemtest.LargeScale(), "")
	want := stubs(filesystemtest.Truth(t, path, "ro"))
	open := func(t *testing.T) filesystem.Reader { return openImage(t, path) }
	filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
}

// TestHome finds the default subvolume, and the path of any.
func TestHome(t *testing.T) {
	path := image(t, 160<<20, filesystemtest.Scale{Entries: 10, Extents: 5, MaxFile: 1 << 20, MaxXattr: 100, DeepDirs: 2}, "")
	if home := openImage(t, path).Info().Home; home != "" {
		t.Errorf("home is %q before one is set", home)
	}
	dir, unmount := filesystemtest.LoopMount(t, path, "")
	out, err := exec.Command("btrfs", "inspect-internal", "rootid", filepath.Join(dir, "sub/nested/deeper")).Output()
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(out))
	filesystemtest.Run(t, "btrfs", "subvolume", "set-default", id, dir)
	unmount()
	fs := openImage(t, path)
	if home := fs.Info().Home; home != "sub/nested/deeper" {
		t.Errorf("home is %q", home)
	}
	var number uint64
	fmt.Sscan(id, &number)
	if got, err := fs.Subvolume(context.Background(), number); got != "sub/nested/deeper" || err != nil {
		t.Errorf("subvolume %d: %q, %v", number, got, err)
	}
	if _, err := fs.Subvolume(context.Background(), 999_999); err == nil {
		t.Error("a subvolume that is not there has a path")
	}
}
