package xfs

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

// proto writes mkfs.xfs' list of files, and the tree that it describes.
type proto struct {
	dir  string // of the files that are copied in
	text strings.Builder
	want filesystemtest.Tree
}

func (p *proto) path(parts []string) string {
	if len(parts) == 0 {
		return "."
	}
	return strings.Join(parts, "/")
}

// node adds one line, and what it describes.
func (p *proto) node(in []string, kind uint32, perm string, mode uint32, rest, target string) {
	name := in[len(in)-1]
	letter := map[uint32]string{filesystem.ModeDir: "d", filesystem.ModeRegular: "-", filesystem.ModeSymlink: "l", filesystem.ModeChar: "c", filesystem.ModeFIFO: "p"}[kind]
	fmt.Fprintf(&p.text, "%s %s--%s 100 70000 %s\n", name, letter, perm, rest)
	p.want[p.path(in)] = filesystemtest.Node{Mode: kind | mode, UID: 100, GID: 70000, Target: target}
}

// newProto describes small and large directories, links, a device and files of
// several sizes.
func newProto(t testing.TB) *proto {
	p := &proto{dir: t.TempDir(), want: filesystemtest.Tree{}}
	p.text.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	for _, size := range []int{0, 1, 4095, 4096, 200_000} {
		name := fmt.Sprintf("file%d", size)
		src := filepath.Join(p.dir, name)
		if err := os.WriteFile(src, []byte(strings.Repeat("0123456789", size/10+1)[:size]), 0o644); err != nil {
			t.Fatal(err)
		}
		p.node([]string{name}, filesystem.ModeRegular, "640", 0o640, src, "")
	}
	p.node([]string{"null"}, filesystem.ModeChar, "666", 0o666, "1 3", "")
	p.node([]string{"fifo"}, filesystem.ModeFIFO, "600", 0o600, "", "")
	for i, n := range []int{10, 150, 400, 1000} {
		target := strings.Repeat("target/", n/7)
		p.node([]string{fmt.Sprintf("link%d", i)}, filesystem.ModeSymlink, "777", 0o777, target, target)
	}
	for _, n := range []int{0, 3, 60, 400, 5000} {
		dir := fmt.Sprintf("dir%d", n)
		p.node([]string{dir}, filesystem.ModeDir, "755", 0o755, "", "")
		for i := range n {
			p.node([]string{dir, fmt.Sprintf("entry-number-%d", i)}, filesystem.ModeFIFO, "600", 0o600, "", "")
		}
		p.text.WriteString("$\n")
	}
	p.text.WriteString("$\n")
	return p
}

// image lets mkfs.xfs make a filesystem with the files of the list.
func (p *proto) image(t testing.TB, options ...string) string {
	t.Helper()
	list := filepath.Join(p.dir, "proto")
	if err := os.WriteFile(list, []byte(p.text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return filesystemtest.Image(t, 64*mib, append(mkfs("-p", list), options...)...)
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVersion4 reads filesystems that this kernel does not mount any more:
// mkfs.xfs fills them, xfs_db adds attributes.
func TestVersion4(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.xfs")
	filesystemtest.NeedTool(t, "xfs_db")
	for _, layout := range [][]string{
		{"-b", "size=512", "-n", "size=4096,ftype=1"},
		{"-b", "size=1024", "-n", "size=4096,ftype=0"},
		{"-b", "size=4096", "-n", "size=4096,ftype=1", "-i", "attr=2,projid32bit=0"},
	} {
		t.Run(strings.Join(layout, ""), func(t *testing.T) {
			p := newProto(t)
			image := p.image(t, append(layout, "-m", "crc=0")...)
			fs := openImage(t, image)
			ino, err := fs.Lookup(context.Background(), fs.Root(), "file1")
			if err != nil {
				t.Fatal(err)
			}
			attrs := map[string]string{}
			for i, size := range []int{10, 300, 3000} {
				addAttrs(t, image, ino, attrs, fmt.Sprint("user", i), size)
			}
			for i := range 60 {
				addAttrs(t, image, ino, attrs, fmt.Sprint("more", i), 40)
			}
			compareProto(t, p, image, attrs)
		})
	}
}

// addAttrs lets xfs_db add an attribute; its values are all one letter.
func addAttrs(t *testing.T, image string, ino filesystem.Ino, attrs map[string]string, name string, size int) {
	t.Helper()
	out, err := exec.Command("xfs_db", "-x", "-c", fmt.Sprintf("inode %d", ino), "-c", fmt.Sprintf("attr_set -u -v %d %s", size, name), image).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Fatalf("xfs_db: %v\n%s", err, out)
	}
	attrs["user."+name] = strings.Repeat("v", size)
}

func compareProto(t *testing.T, p *proto, image string, attrs map[string]string) {
	t.Helper()
	fs := openImage(t, image)
	got, err := filesystemtest.Walk(context.Background(), fs)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(p.want)+1 {
		t.Errorf("%d names, want %d", len(got), len(p.want)+1)
	}
	for path, w := range p.want {
		g, ok := got[path]
		if !ok || g.Mode != w.Mode || g.UID != w.UID || g.GID != w.GID || g.Target != w.Target || g.Err != "" {
			t.Fatalf("%s: %+v, want %+v", path, g, w)
		}
		if path == "null" && (g.Major != 1 || g.Minor != 3) {
			t.Errorf("%s: device %d:%d", path, g.Major, g.Minor)
		}
		if strings.HasPrefix(path, "file") {
			compareContents(t, fs, path, filepath.Join(p.dir, path))
		}
	}
	if x := got["file1"].Xattrs; len(x) != len(attrs) {
		t.Errorf("%d attributes, want %d", len(x), len(attrs))
	}
	for name, value := range attrs {
		if got["file1"].Xattrs[name] != value {
			t.Errorf("attribute %s: %.20q, want %.20q", name, got["file1"].Xattrs[name], value)
		}
	}
	if notes := fs.Info().Notes; len(notes) > 0 {
		t.Errorf("notes: %q", notes)
	}
}

func compareContents(t *testing.T, fs *FS, path, source string) {
	t.Helper()
	want, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	in := at(t, fs, path)
	f, err := fs.Open(context.Background(), filesystem.Ino(in.ino))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(want)+1)
	n, _ := f.ReadAt(b, 0)
	if string(b[:n]) != string(want) {
		t.Errorf("%s: other contents", path)
	}
}

// at gives the inode of a path.
func at(t testing.TB, fs *FS, path string) inode {
	t.Helper()
	ino := fs.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if ino, err = fs.Lookup(context.Background(), ino, name); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	in, err := fs.inode(context.Background(), ino)
	if err != nil {
		t.Fatal(err)
	}
	return in
}
