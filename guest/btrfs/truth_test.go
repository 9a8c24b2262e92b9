package btrfs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

const mib = 1 << 20

// device opens an image file.
func openDevice(t testing.TB, path string) Device {
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

// openImage opens the filesystem in image files.
func openImage(t testing.TB, paths ...string) *FS {
	t.Helper()
	var devices []Device
	for _, p := range paths {
		devices = append(devices, openDevice(t, p))
	}
	fs, err := Open(context.Background(), devices)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// volumes makes subvolumes, nested ones and snapshots in a mounted directory,
// and what only btrfs has: shared extents, files without checksums,
// attributes whose names have the same hash.
func volumes(t testing.TB, dir string) {
	t.Helper()
	filesystemtest.NeedTool(t, "btrfs")
	sub := func(command, from, to string) {
		t.Helper()
		args := []string{"btrfs", "subvolume", command}
		if from != "" {
			args = append(args, dir+"/"+from)
		}
		filesystemtest.Run(t, append(args, dir+"/"+to)...)
	}
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(dir+"/"+path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sub("create", "", "sub")
	write("sub/file", "in a subvolume")
	if err := os.MkdirAll(dir+"/sub/d/e", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir+"/sub/d/e", 1000, 1001); err != nil {
		t.Fatal(err)
	}
	sub("create", "", "sub/d/e/nested")
	write("sub/d/e/nested/file", strings.Repeat("nested ", 3000))
	sub("create", "", "sub/d/e/nested/deeper")
	write("sub/d/e/nested/deeper/file", "deeper")
	sub("snapshot", "sub", "snapshot")
	write("sub/file", "changed behind the snapshot")
	sub("snapshot", "sub/d/e/nested", "sub/d/of-nested")
	sub("create", "", "gone")
	sub("delete", "", "gone")
	sub("create", "", "moved")
	if err := os.Rename(dir+"/moved", dir+"/sub/moved"); err != nil {
		t.Fatal(err)
	}
	write("plain", strings.Repeat("shared contents ", 20000))
	filesystemtest.Run(t, "sync", "-f", dir)
	filesystemtest.Run(t, "cp", "--reflink=always", dir+"/plain", dir+"/shared")
	patch(t, dir+"/shared", 100_000, "a change in the middle")
	write("sub/nodatacow", "")
	filesystemtest.Run(t, "chattr", "+C", dir+"/sub/nodatacow")
	patch(t, dir+"/sub/nodatacow", 0, strings.Repeat("no sums ", 5000))
	write("colliding", "x")
	for _, name := range collidingNames() {
		if err := unix.Lsetxattr(dir+"/colliding", name, []byte("of "+name), 0); err != nil {
			t.Fatal(err)
		}
	}
	filesystemtest.Run(t, "sync", "-f", dir)
}

func patch(t testing.TB, path string, off int64, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(content), off); err != nil {
		t.Fatal(err)
	}
}

// stubs are the paths of what Linux makes up: empty directories where a
// snapshot had a subvolume. Their times are those of the look.
var stubs = []string{"snapshot/d/e/nested", "sub/d/of-nested/deeper"}

func withoutStubTimes(tree filesystemtest.Tree) filesystemtest.Tree {
	for _, path := range stubs {
		if n, ok := tree[path]; ok {
			n.Mtime, n.Ctime, n.Btime = filesystem.Time{}, filesystem.Time{}, filesystem.Time{}
			tree[path] = n
		}
	}
	return tree
}

// timeless is a reader whose stubs have no times.
type timeless struct{ *FS }

func (r timeless) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	a, err := r.FS.Attr(ctx, ino)
	if p, perr := r.place(ino); perr == nil && p.stub {
		a.Mtime, a.Ctime, a.Btime = filesystem.Time{}, filesystem.Time{}, filesystem.Time{}
	}
	return a, err
}

var layouts = []struct {
	name    string
	size    int64
	options string
	mkfs    []string
}{
	{"default", 256 * mib, "", nil},
	{"zstd-xxhash", 256 * mib, "compress-force=zstd", []string{"--csum", "xxhash"}},
	{"64k-sha256", 256 * mib, "", []string{"-n", "65536", "--csum", "sha256", "-O", "^no-holes"}},
	{"mixed-4k-blake2", 128 * mib, "", []string{"-M", "-n", "4096", "--csum", "blake2"}},
	{"lzo", 256 * mib, "compress-force=lzo", []string{"-n", "4096", "-m", "single"}},
	{"zlib", 256 * mib, "compress-force=zlib", []string{"-n", "8192", "-O", "^no-holes", "-d", "dup"}},
	{"nodatasum-v1-cache", 256 * mib, "nodatasum,max_inline=0,space_cache=v1", []string{"-n", "32768", "-R", "^free-space-tree"}},
}

// TestTruth holds the reader against the kernel's mount of the same image.
func TestTruth(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel() // most of the time is the disk's
			image := populated(t, l.size, filesystemtest.SmallScale(), l.options, l.mkfs...)
			want := withoutStubTimes(filesystemtest.Truth(t, image, "ro"))
			open := func(t *testing.T) filesystem.Reader { return timeless{openImage(t, image)} }
			filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
			fs := openImage(t, image)
			if notes := fs.Info().Notes; len(notes) > 0 {
				t.Errorf("notes: %q", notes)
			}
			testUnique(t, fs)
		})
	}
}

// populated makes an image with mkfs.btrfs and fills it.
func populated(t testing.TB, size int64, scale filesystemtest.Scale, options string, mkfs ...string) string {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	image := filesystemtest.Image(t, size, append([]string{"mkfs.btrfs", "-q"}, mkfs...)...)
	dir, unmount := filesystemtest.LoopMount(t, image, options)
	if err := filesystemtest.Populate(dir, scale); err != nil {
		t.Fatal(err)
	}
	volumes(t, dir)
	unmount()
	return image
}

// testUnique checks that no two directories, and no two files of which one
// has one name, have the same inode number.
func testUnique(t *testing.T, fs *FS) {
	t.Helper()
	type seen struct {
		path  string
		nlink uint32
	}
	known := make(map[filesystem.Ino]seen)
	var visit func(path string, dir filesystem.Ino)
	visit = func(path string, dir filesystem.Ino) {
		var below []filesystem.Entry
		if err := fs.ReadDir(context.Background(), dir, 0, func(e filesystem.Entry) bool { below = append(below, e); return true }); err != nil {
			t.Fatal(err)
		}
		for _, e := range below {
			a, err := fs.Attr(context.Background(), e.Ino)
			if err != nil {
				t.Fatal(err)
			}
			if e.Ino >= 1<<40 {
				t.Errorf("%s/%s is inode %#x", path, e.Name, e.Ino)
			}
			if old, ok := known[e.Ino]; ok && (a.IsDir() || old.nlink < 2) {
				t.Errorf("%s/%s and %s are both inode %d", path, e.Name, old.path, e.Ino)
			}
			known[e.Ino] = seen{path + "/" + e.Name, a.Nlink}
			if a.IsDir() {
				visit(path+"/"+e.Name, e.Ino)
			}
		}
	}
	visit("", fs.Root())
}

// collidingNames finds two attribute names of one hash.
func collidingNames() []string {
	seen := make(map[uint64]string)
	for i := 0; ; i++ {
		name := fmt.Sprintf("user.n%x", uint64(i)*0x9E3779B97F4A7C15)
		h := nameHash(name)
		if other, ok := seen[h]; ok {
			return []string{other, name}
		}
		seen[h] = name
	}
}

// at finds a path.
func at(t testing.TB, fs *FS, path string) filesystem.Ino {
	t.Helper()
	ino := fs.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if ino, err = fs.Lookup(context.Background(), ino, name); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return ino
}

func mustNumber(t *testing.T, p place) filesystem.Ino {
	t.Helper()
	ino, err := p.number()
	if err != nil {
		t.Fatal(err)
	}
	return ino
}

// TestHome finds the default subvolume.
func TestHome(t *testing.T) {
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	image := filesystemtest.Image(t, 128*mib, "mkfs.btrfs", "-q", "-L", "home test", "-U", "01234567-89ab-cdef-0123-456789abcdef")
	dir, unmount := filesystemtest.LoopMount(t, image, "")
	volumes(t, dir)
	unmount()
	for _, home := range []string{"", "sub", "sub/d/e/nested/deeper", "snapshot", ""} {
		dir, unmount := filesystemtest.LoopMount(t, image, "subvolid=5")
		filesystemtest.Run(t, "btrfs", "subvolume", "set-default", dir+"/"+home)
		unmount()
		fs := openImage(t, image)
		info := fs.Info()
		if info.Home != home || info.Label != "home test" || info.UUID != "01234567-89ab-cdef-0123-456789abcdef" {
			t.Errorf("home %q: %+v", home, info)
		}
		at(t, fs, "sub/file")
		for _, v := range fs.volumes {
			path, err := fs.Subvolume(context.Background(), v.id)
			if err != nil || v.id != treeFS && at(t, fs, path) != mustNumber(t, place{vol: &v, oid: v.top}) {
				t.Errorf("subvolume %d is at %q, %v", v.id, path, err)
			}
		}
		if _, err := fs.Subvolume(context.Background(), 99_999); err == nil {
			t.Error("a subvolume that is not there has a path")
		}
		want := filesystemtest.Truth(t, image, "ro")
		got, err := filesystemtest.Walk(context.Background(), fs)
		if err != nil {
			t.Fatal(err)
		}
		for path := range want { // the mount shows what lies below Home
			if _, ok := got[strings.TrimPrefix(home+"/"+path, "/")]; !ok && path != "." {
				t.Errorf("home %q: %q is missing", home, path)
			}
		}
	}
	dev := openDevice(t, image)
	s, err := Probe(context.Background(), dev.Image, dev.Size)
	if err != nil || s.FSID != "01234567-89ab-cdef-0123-456789abcdef" || s.DevID != 1 || s.NumDevices != 1 || s.Label != "home test" || s.DeviceUUID == "" {
		t.Errorf("probe: %+v, %v", s, err)
	}
	if _, err := Probe(context.Background(), bytes.NewReader(make([]byte, 1<<20)), 1<<20); err == nil {
		t.Error("zeros are a filesystem")
	}
}

// TestTruthLarge does so with 100,000 names, in the long run.
func TestTruthLarge(t *testing.T) {
	if !filesystemtest.Long() {
		t.Skip("only with CAIRN_LONG=1")
	}
	image := populated(t, 2<<30, filesystemtest.LargeScale(), "")
	want := withoutStubTimes(filesystemtest.Truth(t, image, "ro"))
	open := func(t *testing.T) filesystem.Reader { return timeless{openImage(t, image)} }
	filesystemtest.TestReader(t, open, want, filesystemtest.AllFields)
}
