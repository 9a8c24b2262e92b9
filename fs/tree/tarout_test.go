package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
)

func tarOut(t *testing.T, fs *treetest.FS, path string) (*bytes.Buffer, tree.Copied, error) {
	t.Helper()
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: fs}})
	place, err := v.Walk(t.Context(), v.Root(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	out := new(bytes.Buffer)
	c, err := tree.TarOut(t.Context(), v, place, out, "out", nil)
	return out, c, err
}

// TestTarOut reads with Go's tar what TarOut wrote: also what that cannot
// write, sparse files and odd times.
func TestTarOut(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	long := strings.Repeat("n", 255)
	f := fs.File("/d/"+long, "contents")
	f.Nlink, f.UID = 2, 3_000_000_000
	f.Mtime = filesystem.Time{Sec: -5, Nsec: 1}
	f.Xattrs = []filesystem.Xattr{{Name: "user.a", Value: []byte("b\x00c")}, {Name: "user.odd=name", Value: []byte("x")}}
	fs.Link("/d/hard", f)
	fs.Symlink("/d/link", "/etc/passwd")
	fs.Add("/d/fifo", filesystem.ModeFIFO|0o600)
	fs.Add("/d/sock", filesystem.ModeSocket|0o600)
	fs.File("/d/bad", "x").Err = filesystem.ErrCorrupt
	fs.File("/d/new\nline", "x")
	fs.Get("/d").Children = append(fs.Get("/d").Children, filesystem.Entry{Name: "../../up", Ino: f.Ino})
	out, c, err := tarOut(t, fs, "/d")
	if err != nil {
		t.Fatal(err)
	}
	if got := reasons(c); got != "out/sock out/bad out/../../up" || len(c.NotKept) != 1 {
		t.Errorf("failures %q, not kept %+v", got, c.NotKept)
	}
	seen := map[string]*tar.Header{}
	r := tar.NewReader(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[h.Name] = h
	}
	h := seen["out/"+long]
	if h == nil || len(seen) != 6 {
		t.Fatalf("%d entries: %v", len(seen), seen)
	}
	if h.Uid != 3_000_000_000 || h.ModTime.Unix() != -5 || h.ModTime.Nanosecond() != 1 || h.PAXRecords["SCHILY.xattr.user.a"] != "b\x00c" {
		t.Errorf("%+v", h)
	}
	if l := seen["out/hard"]; l == nil || l.Typeflag != tar.TypeLink || l.Linkname != "out/"+long {
		t.Errorf("the hard link: %+v", l)
	}
	if l := seen["out/link"]; l == nil || l.Linkname != "/etc/passwd" {
		t.Errorf("the link: %+v", l)
	}
}

// sparseFile has data only in some ranges.
type sparseFile struct {
	size  int64
	parts [][2]int64
	bad   int64 // cannot be read from here on; 0: all can
}

func (f *sparseFile) Size() int64 { return f.size }

func (f *sparseFile) NextData(off int64) (start, end int64, err error) {
	for _, p := range f.parts {
		if off < p[1] {
			return max(off, p[0]), p[1], nil
		}
	}
	return 0, 0, io.EOF
}

func (f *sparseFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.size {
		return 0, io.EOF
	}
	clear(p)
	for i := range p {
		at := off + int64(i)
		if f.bad > 0 && at >= f.bad {
			return i, filesystem.ErrCorrupt
		}
		for _, part := range f.parts {
			if at >= part[0] && at < part[1] {
				p[i] = byte(at*7 + 1)
			}
		}
	}
	return len(p), nil
}

func TestTarOutOfSparseFiles(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 9))
		f := &sparseFile{size: rng.Int64N(1 << 20)}
		for at := rng.Int64N(200 << 10); at < f.size; {
			end := min(f.size, at+1+rng.Int64N(60<<10))
			f.parts = append(f.parts, [2]int64{at, end})
			at = end + 1 + rng.Int64N(200<<10)
		}
		want := make([]byte, f.size)
		if f.size > 0 {
			if _, err := f.ReadAt(want, 0); err != nil {
				t.Fatal(err)
			}
		}
		fs := treetest.New("ext4", "", "r")
		n := fs.File("/d/sparse", "")
		n.Contents, n.Size = f, f.size
		n.Mtime = filesystem.Time{Sec: -1 << 33, Nsec: 999}
		fs.File("/d/zbehind", "intact")
		out, c, err := tarOut(t, fs, "/d")
		if err != nil || len(c.Failures) > 0 {
			t.Fatalf("seed %d: %v, %v", seed, err, c.Failures)
		}
		size := out.Len()
		r := tar.NewReader(out)
		for _, name := range []string{"out/", "out/sparse", "out/zbehind"} {
			h, err := r.Next()
			if err != nil || h.Name != name {
				t.Fatalf("seed %d: %+v, %v; want %s", seed, h, err, name)
			}
			if name != "out/sparse" {
				continue
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("seed %d: contents of %d bytes differ from %d, %v", seed, len(got), len(want), err)
			}
			if h.ModTime.Unix() != -1<<33 || h.ModTime.Nanosecond() != 999 {
				t.Errorf("seed %d: time %v", seed, h.ModTime)
			}
		}
		if data := int(c.Bytes); size > data+12<<10 {
			t.Errorf("seed %d: %d bytes for %d of data", seed, size, data)
		}
	}
}

// A file that cannot be read to its end ends the archive: nobody takes what
// came of it for the whole.
func TestTarOutEndsOnDamage(t *testing.T) {
	for _, parts := range [][][2]int64{{{0, 300 << 10}}, {{0, 1000}, {200 << 10, 300 << 10}}} {
		fs := treetest.New("ext4", "", "r")
		n := fs.File("/d/f", "")
		n.Contents, n.Size = &sparseFile{size: 300 << 10, parts: parts, bad: 250 << 10}, 300<<10
		out, _, err := tarOut(t, fs, "/d")
		if !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%v, want damage", err)
		}
		r := tar.NewReader(out)
		for err = nil; err == nil; {
			if _, err = r.Next(); err == nil {
				_, err = io.Copy(io.Discard, r)
			}
		}
		if err == io.EOF {
			t.Error("the archive looks whole")
		}
	}
}

// With Damaged the archive goes on behind such a file: what cannot be read is
// zeros, and listed; a small file is left out.
func TestTarOutGoesOnBehindDamage(t *testing.T) {
	for _, parts := range [][][2]int64{{{0, 3 << 20}}, {{0, 1000}, {2 << 20, 3 << 20}}} {
		fs := treetest.New("ext4", "", "r")
		n := fs.File("/d/f", "")
		file := &sparseFile{size: 3 << 20, parts: parts, bad: 2<<20 + 5000}
		n.Contents, n.Size = file, 3<<20
		small := fs.File("/d/g", "")
		small.Contents, small.Size = &sparseFile{size: 9000, parts: [][2]int64{{0, 9000}}, bad: 5000}, 9000
		fs.File("/d/z", "the end")
		v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: fs}})
		place, err := v.Walk(t.Context(), v.Root(), "/d", false)
		if err != nil {
			t.Fatal(err)
		}
		out := new(bytes.Buffer)
		c, err := tree.TarOutWith(t.Context(), v, place, out, "out", tree.TarOptions{
			Damaged: func(err error) bool { return errors.Is(err, filesystem.ErrCorrupt) },
			Last:    func(c tree.Copied) (string, []byte) { return "list", []byte(reasons(c)) },
		})
		if err != nil || reasons(c) != "out/f out/g" {
			t.Fatalf("%v, failures %q", err, reasons(c))
		}
		r := tar.NewReader(out)
		got := map[string][]byte{}
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if got[h.Name], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
		if string(got["out/z"]) != "the end" || string(got["out/list"]) != "out/f out/g" || got["out/g"] != nil {
			t.Errorf("the archive has %d files", len(got))
		}
		f := got["out/f"]
		whole := make([]byte, 3<<20)
		file.bad = 1 << 40
		for _, p := range parts {
			if _, err := file.ReadAt(whole[p[0]:p[1]], p[0]); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		clear(whole[2<<20+4096:]) // all behind it is bad, too
		if len(f) != len(whole) || !bytes.Equal(f, whole) {
			t.Errorf("%v: contents differ, %d bytes", parts, len(f))
		}
	}
}
