package fs

import (
	"bytes"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/guest/filesystem/filesystemtest"
	sysobject "cairn/guest/object"
	"cairn/index/restorepoint"
)

// imageWorld is one point whose disk vda is the image file of its setting, with
// the metadata of the file FILE.json if there is one.
func imageWorld(name string) (*world, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	w := &world{
		points:   []restorepoint.Summary{{ID: "0001", VM: "web01", Time: noon}},
		images:   map[string]restorepoint.Image{"vda": &fileImage{f, st.Size()}},
		manifest: &restorepoint.Manifest{Disks: []restorepoint.Disk{{Name: "vda", Size: st.Size()}}},
	}
	if b, err := os.ReadFile(name + ".json"); err == nil {
		w.manifest.Guest = &restorepoint.Guest{Metadata: b, MetadataDigest: sysobject.Digest(b)}
	}
	return w, nil
}

// fileImage is a sparse file as a disk.
type fileImage struct {
	*os.File
	size int64
}

func (f *fileImage) Size() int64 { return f.size }

func (f *fileImage) NextData(off int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	return start, end, err
}

// run runs a command of the host that a test needs.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// newExt4 makes an image of a filesystem and mounts it for fill to write to.
func newExt4(t testing.TB, size string, fill func(dir string)) string {
	t.Helper()
	needFUSE(t)
	for _, tool := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "cairn-fs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	image := filepath.Join(dir, "vda.img")
	run(t, "truncate", "-s", size, image)
	run(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0", "-N", "70000", "-L", "root", image)
	target := loopMount(t, image, "rw")
	fill(target)
	run(t, "umount", target)
	return image
}

// loopMount mounts an image with the kernel's own driver.
func loopMount(t testing.TB, image, options string) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "loop")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := filesystemtest.MountAt(image, target, options); err != nil {
		t.Skipf("cannot mount a loop device: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

// fillOdd writes one of everything that a filesystem can hold.
func fillOdd(t testing.TB, dir string) {
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write("etc/fstab", "LABEL=root / ext4 defaults 0 1\n")
	f := write("home/f", strings.Repeat("0123456789", 100000))
	check(os.Chown(f, 1000, 70000))
	check(os.Chmod(f, 0o4751|os.ModeSetuid))
	check(os.Link(f, filepath.Join(dir, "home/hard")))
	check(unix.Setxattr(f, "user.note", []byte("hello"), 0))
	check(unix.Setxattr(f, "trusted.t", []byte("secret"), 0))
	check(unix.Setxattr(f, "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	acl := []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xd2\x04\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")
	check(unix.Setxattr(write("home/acl", "mine and user 1234's"), "system.posix_acl_access", acl, 0))
	check(os.Mkdir(filepath.Join(dir, "acls"), 0o755))
	check(unix.Setxattr(filepath.Join(dir, "acls"), "system.posix_acl_default", acl, 0))
	check(os.Symlink("/etc/fstab", filepath.Join(dir, "home/absolute")))
	check(os.Symlink("../etc/fstab", filepath.Join(dir, "home/relative")))
	check(os.Symlink(strings.Repeat("long/", 100), filepath.Join(dir, "home/long")))
	check(unix.Mkfifo(filepath.Join(dir, "home/fifo"), 0o600))
	check(unix.Mknod(filepath.Join(dir, "home/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	write("odd/\xff\xfe \n\t", "raw")
	write("odd/"+strings.Repeat("n", 255), "long name")
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	check(err)
	for _, off := range []int64{0, 1 << 20, 77 << 20} {
		_, err := sparse.WriteAt([]byte("island"), off)
		check(err)
	}
	check(sparse.Truncate(100 << 20))
	check(sparse.Close())
	for i := range 3000 {
		write(fmt.Sprintf("many/file-%d", i), fmt.Sprint(i))
	}
	for i := range 20 {
		write(fmt.Sprintf("deep%s/f", strings.Repeat("/d", i)), "x")
	}
	old := []unix.Timespec{{Sec: -100, Nsec: 7}, {Sec: 4000000000, Nsec: 123456789}}
	check(unix.UtimesNanoAt(unix.AT_FDCWD, f, old, 0))
}

// Every file of an ext4 image looks in the mount as it does in the kernel's
// own mount of the same image.
func TestSameAsTheKernelsMount(t *testing.T) {
	image := newExt4(t, "300M", func(dir string) { fillOdd(t, dir) })
	want := loopMount(t, image, "ro,noload")
	m := mountWorld(t, "image", envSetting+"="+image)
	got := m.path("web01/latest/fs")
	compareTrees(t, got, want, false)
	// The second time from the kernel's caches.
	compareTrees(t, got, want, false)
	run(t, "cmp", m.path("web01/latest/disks/vda.raw"), image)
}

// compareTrees compares all that stat, read, readlink and getxattr show of two
// trees. rawLinks and raw xattrs are expected of a restored tree only.
func compareTrees(t *testing.T, got, want string, restored bool) {
	t.Helper()
	count := 0
	inodes := map[uint64]uint64{}
	err := filepath.WalkDir(want, func(path string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		count++
		name := strings.TrimPrefix(path, want)
		compareFiles(t, got, want, name, restored, inodes)
		if d.IsDir() && namesOf(t, got+name) != namesOf(t, path) {
			t.Errorf("%s: other names", name)
		}
		return nil
	})
	if err != nil || count < 3000 {
		t.Errorf("walked %d files, %v", count, err)
	}
}

func namesOf(t *testing.T, dir string) string {
	f, err := os.Open(dir)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer f.Close()
	list, err := f.Readdirnames(-1)
	if err != nil {
		t.Error(err)
	}
	return fmt.Sprint(len(list), " ", sortedJoin(list))
}

func compareFiles(t *testing.T, gotRoot, wantRoot, name string, restored bool, inodes map[uint64]uint64) {
	t.Helper()
	got, want := gotRoot+name, wantRoot+name
	var g, w unix.Stat_t
	if err := unix.Lstat(want, &w); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lstat(got, &g); err != nil {
		t.Errorf("%q: %v", name, err)
		return
	}
	if known, ok := inodes[w.Ino]; ok && known != g.Ino {
		t.Errorf("%q: hard links are not one inode", name)
	}
	inodes[w.Ino] = g.Ino
	kind := w.Mode & unix.S_IFMT
	if g.Mode != w.Mode || g.Uid != w.Uid || g.Gid != w.Gid || g.Mtim != w.Mtim || g.Rdev != w.Rdev || kind != unix.S_IFDIR && g.Nlink != w.Nlink {
		t.Errorf("%q: got %+v, want %+v", name, g, w)
	}
	if !restored && (g.Atim != w.Atim || g.Ctim != w.Ctim || g.Blocks != w.Blocks || g.Nlink != w.Nlink) {
		t.Errorf("%q: got %+v, want %+v", name, g, w)
	}
	if kind != unix.S_IFLNK && (kind != unix.S_IFDIR || !restored) && g.Size != w.Size {
		t.Errorf("%q: size %d, want %d", name, g.Size, w.Size)
	}
	if g, w := readXattrs(t, got, false), readXattrs(t, want, !restored && (kind == unix.S_IFREG || kind == unix.S_IFDIR)); g != w {
		t.Errorf("%q: xattrs %q, want %q", name, g, w)
	}
	switch kind {
	case unix.S_IFREG:
		seeks := w.Size
		if restored {
			seeks = 0 // the host's blocks are of another size
		}
		compareContents(t, name, got, want, seeks)
	case unix.S_IFLNK:
		gt, _ := os.Readlink(got)
		wt, _ := os.Readlink(want)
		if !restored && strings.HasPrefix(wt, "/") {
			wt = strings.Repeat("../", strings.Count(name, "/")-1) + wt[1:]
		}
		if gt != wt {
			t.Errorf("%q leads to %q, want %q", name, gt, wt)
		}
	}
}

func compareContents(t *testing.T, name, got, want string, seeks int64) {
	g, err := os.Open(got)
	if err != nil {
		t.Error(err)
		return
	}
	defer g.Close()
	w, err := os.Open(want)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	gd, gerr := io.ReadAll(g)
	wd, werr := io.ReadAll(w)
	if gerr != nil || werr != nil || !bytes.Equal(gd, wd) {
		t.Errorf("%q: contents differ: %d and %d bytes, %v, %v", name, len(gd), len(wd), gerr, werr)
	}
	for off := int64(0); off < seeks; {
		for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
			ga, gerr := unix.Seek(int(g.Fd()), off, whence)
			wa, werr := unix.Seek(int(w.Fd()), off, whence)
			if ga != wa || gerr != werr {
				t.Errorf("%q: seek %d from %d gives %d, %v; want %d, %v", name, whence, off, ga, gerr, wa, werr)
				return
			}
			if werr != nil {
				return
			}
			off = max(off, wa)
		}
	}
}

// readXattrs gives all attributes as text; shown renames them as the mount does.
func readXattrs(t *testing.T, path string, shown bool) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return err.Error()
	}
	var list []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if name == "" || err != nil {
			continue
		}
		if shown {
			name = shownName(name)
		}
		list = append(list, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	return sortedJoin(list)
}

// What CopyOut restores of an ext4 image is what the kernel's mount shows.
func TestRestoredSameAsTheKernelsMount(t *testing.T) {
	image := newExt4(t, "300M", func(dir string) { fillOdd(t, dir) })
	w, err := imageWorld(image)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tree.Open(t.Context(), w.manifest, func(disk string) (restorepoint.Image, error) { return w.images[disk], nil })
	if err != nil {
		t.Fatal(err)
	}
	v, err := tr.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(image)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	c, err := tree.CopyOut(t.Context(), v, v.Root(), root, "out", tree.CopyOptions{Special: true, Verify: true}, nil)
	if err != nil || len(c.Failures) > 0 {
		t.Fatalf("%v, failures %v", err, c.Failures)
	}
	if c.Bytes > 10<<20 {
		t.Errorf("%d bytes written: holes were filled", c.Bytes)
	}
	want := loopMount(t, image, "ro,noload")
	compareTrees(t, filepath.Join(dir, "out"), want, true)

	// So is what GNU tar makes of a tar stream.
	back := filepath.Join(dir, "tar")
	if err := os.Mkdir(back, 0o755); err != nil {
		t.Fatal(err)
	}
	extract := exec.Command("tar", "-x", "-p", "-C", back, "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--same-owner", "--delay-directory-restore")
	extract.Stderr = os.Stderr
	stream, err := extract.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := extract.Start(); err != nil {
		t.Fatal(err)
	}
	c, err = tree.TarOut(t.Context(), v, v.Root(), stream, "out", nil)
	if err != nil || len(c.Failures)+len(c.NotKept) > 0 || c.Bytes > 10<<20 {
		t.Errorf("%v, %+v", err, c)
	}
	stream.Close()
	if err := extract.Wait(); err != nil {
		t.Errorf("tar: %v", err)
	}
	compareTrees(t, filepath.Join(back, "out"), want, true)
}
