package tree_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
)

func copyOut(t *testing.T, fs *treetest.FS, path string, o tree.CopyOptions, dir string) (tree.Copied, error) {
	t.Helper()
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: fs}})
	place, err := v.Walk(t.Context(), v.Root(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	o.NoOwner = os.Geteuid() != 0
	return tree.CopyOut(t.Context(), v, place, root, "out", o, nil)
}

func reasons(c tree.Copied) string {
	var list []string
	for _, f := range c.Failures {
		list = append(list, f.Path)
	}
	return strings.Join(list, " ")
}

func TestCopyOutRestoresWhatItCan(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	f := fs.File("/d/f", "contents")
	f.Mode, f.Nlink = filesystem.ModeRegular|0o4750, 2
	f.Xattrs = []filesystem.Xattr{{Name: "user.a", Value: []byte("b")}, {Name: "system.odd"}}
	fs.Link("/d/hard", f)
	fs.Symlink("/d/link", "/etc/passwd")
	fs.Add("/d/fifo", filesystem.ModeFIFO|0o600)
	fs.File("/d/bad", "x").Err = filesystem.ErrCorrupt
	fs.Get("/d").Mode = filesystem.ModeDir | 0o555
	dir := t.TempDir()
	c, err := copyOut(t, fs, "/d", tree.CopyOptions{Verify: true}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := reasons(c), "out/fifo out/bad"; got != want || c.Files != 1 || c.Links != 2 || c.Dirs != 1 || c.Bytes != 8 {
		t.Errorf("failures %q, want %q; counts %+v", got, want, c)
	}
	if lost := c.NotKept; len(lost) != 1 || lost[0].What != "extended attribute system.odd" || lost[0].Count != 1 || lost[0].Example != "out/f" || lost[0].Why == "" {
		t.Errorf("not kept: %+v", lost)
	}
	var a, b, d unix.Stat_t
	for name, st := range map[string]*unix.Stat_t{"out/f": &a, "out/hard": &b, "out": &d} {
		if err := unix.Lstat(filepath.Join(dir, name), st); err != nil {
			t.Fatal(err)
		}
	}
	if a.Ino != b.Ino || a.Mode&0o7777 != 0o4750 || a.Mtim != (unix.Timespec{Sec: f.Mtime.Sec, Nsec: 123456789}) || d.Mode&0o7777 != 0o555 {
		t.Errorf("file %+v, link to inode %d, directory %o", a, b.Ino, d.Mode)
	}
	if target, _ := os.Readlink(filepath.Join(dir, "out/link")); target != "/etc/passwd" {
		t.Errorf("link to %q, want the raw target", target)
	}
}

// Names that lead elsewhere, a directory in itself, and links where a
// directory should be written through do not get anything outside.
func TestCopyOutStaysInside(t *testing.T) {
	outside := t.TempDir()
	fs := treetest.New("ext4", "", "r")
	fs.Symlink("/d/a", outside)
	x := fs.File("/d/x", "evil")
	d := fs.Get("/d")
	inner := fs.Dir("/other")
	inner.Children = append(inner.Children, filesystem.Entry{Name: "x", Ino: x.Ino})
	d.Children = append(d.Children,
		filesystem.Entry{Name: "a", Ino: inner.Ino}, // a second "a", a directory this time
		filesystem.Entry{Name: "../../" + filepath.Base(outside) + "/y", Ino: x.Ino},
		filesystem.Entry{Name: "..", Ino: inner.Ino},
		filesystem.Entry{Name: "nul\x00", Ino: x.Ino},
		filesystem.Entry{Name: "self", Ino: d.Ino},
		filesystem.Entry{Name: "type", Ino: 99999})
	for _, o := range []tree.CopyOptions{{}, {Overwrite: true}} {
		dir := t.TempDir()
		c, err := copyOut(t, fs, "/d", o, dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Failures) != 6 {
			t.Errorf("failures %v", c.Failures)
		}
		if list, _ := os.ReadDir(outside); len(list) != 0 {
			t.Errorf("written outside: %v", list)
		}
	}
}

func TestCopyOutOverwritesOnlyWhenTold(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	fs.File("/d/f", "new")
	fs.File("/d/g", "new")
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out+"/f", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := copyOut(t, fs, "/d", tree.CopyOptions{}, dir)
	if err != nil || !errors.Is(c.Failures[0].Err, unix.EEXIST) {
		t.Errorf("without Overwrite: %+v, %v", c, err)
	}
	if text, _ := os.ReadFile(out + "/f"); string(text) != "old" {
		t.Errorf("without Overwrite f holds %q", text)
	}
	if c, err = copyOut(t, fs, "/d", tree.CopyOptions{Overwrite: true}, dir); err != nil || len(c.Failures) > 0 {
		t.Errorf("with Overwrite: %+v, %v", c, err)
	}
	for _, name := range []string{"/f", "/g"} {
		if text, _ := os.ReadFile(out + name); string(text) != "new" {
			t.Errorf("with Overwrite %s holds %q", name, text)
		}
	}
	if list, _ := os.ReadDir(out); len(list) != 2 {
		t.Errorf("left behind: %v", list)
	}
}

func TestCopyOutStopsWhenTold(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	fs.File("/d/f", "x")
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: fs}})
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tree.CopyOut(ctx, v, v.Root(), root, "out", tree.CopyOptions{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
}

// A copy that was interrupted at any file goes on there, and is in the end
// what one without an interrupt is. What a kill left half-written goes.
func TestCopyOutResumes(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	for i := range 6 {
		fs.File(fmt.Sprintf("/d/sub%d/g%d", i%2, i), strings.Repeat("contents", i))
	}
	f := fs.File("/d/linked", "once")
	f.Nlink = 2
	fs.Link("/d/other", f)
	fs.Symlink("/d/link", "linked")
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: fs}})
	place, err := v.Walk(t.Context(), v.Root(), "/d", false)
	if err != nil {
		t.Fatal(err)
	}
	o := tree.CopyOptions{NoOwner: os.Geteuid() != 0}
	for stop := 1; ; stop++ {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		ctx, cancel := context.WithCancel(t.Context())
		steps := 0
		_, err = tree.CopyOut(ctx, v, place, root, "out", o, func(tree.Copied) {
			if steps++; steps == stop {
				cancel()
			}
		})
		cancel()
		if err == nil {
			if stop < 8 {
				t.Errorf("only %d steps", stop)
			}
			break
		}
		half := filepath.Join(dir, "out", ".cairn-partial-ABCDEFGHIJKL")
		if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		again := o
		again.Resume = true
		c, err := tree.CopyOut(t.Context(), v, place, root, "out", again, nil)
		if err != nil || len(c.Failures) > 0 || c.Files != 7 || c.Links != 2 || c.Present != int64(stop) {
			t.Errorf("stopped after %d, resumed: %+v, %v", stop, c, err)
		}
		if _, err := os.Lstat(half); err == nil {
			t.Error("the half file is still there")
		}
		a, err1 := os.Stat(filepath.Join(dir, "out/linked"))
		b, err2 := os.Stat(filepath.Join(dir, "out/other"))
		if err1 != nil || err2 != nil || !os.SameFile(a, b) {
			t.Errorf("the hard link: %v, %v", err1, err2)
		}
	}
}

// What somebody else put there is neither taken for ours nor replaced.
func TestCopyOutResumeSparesOthers(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	fs.File("/d/f", "new")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "out/f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := copyOut(t, fs, "/d", tree.CopyOptions{Resume: true}, dir)
	if text, _ := os.ReadFile(filepath.Join(dir, "out/f")); err != nil || len(c.Failures) != 1 || !errors.Is(c.Failures[0].Err, unix.EEXIST) || string(text) != "old" {
		t.Errorf("%+v, %v: %q", c, err, text)
	}
}

// A run that was killed between making a link and giving it its times left it
// without its owner, too: the next one gives it both.
func TestCopyOutResumesHalfALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	fs := treetest.New("ext4", "", "r")
	fs.Dir("/d")
	l := fs.Symlink("/d/link", "target")
	l.UID, l.Mtime = 1234, filesystem.Time{Sec: 1e9}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "out/link")
	if err := os.Symlink("target", link); err != nil {
		t.Fatal(err)
	}
	for present := range int64(2) { // then it is complete
		c, err := copyOut(t, fs, "/d", tree.CopyOptions{Resume: true}, dir)
		st, serr := os.Lstat(link)
		if err != nil || serr != nil || len(c.Failures) > 0 || c.Present != present {
			t.Fatalf("%+v, %v, %v", c, err, serr)
		}
		if uid := st.Sys().(*syscall.Stat_t).Uid; uid != 1234 || st.ModTime().Unix() != 1e9 {
			t.Errorf("the link has owner %d and time %s", uid, st.ModTime())
		}
	}
}
