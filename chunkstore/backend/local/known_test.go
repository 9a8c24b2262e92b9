package local

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/chunkstore/backend"
)

// A place whose folder is empty, gone, or shows another mark is away: whatever is
// asked, nothing is called missing, nothing is written, nothing is listed as nothing.
// When it is back, as the same files or as copies, all goes on.
func TestAwayIsNotEmpty(t *testing.T) {
	dir := t.TempDir()
	root, put := filepath.Join(dir, "repo"), []byte("an object")
	d, err := Create(root)
	must(t, err)
	defer d.Close()
	ctx := t.Context()
	must(t, d.Put(ctx, "config", []byte("the mark")))
	must(t, d.Put(ctx, "packs/a", put))
	must(t, d.KnowBy(ctx, "config"))
	works := func(what string) {
		t.Helper()
		b, err := backend.Get(ctx, d, "packs/a", 100)
		if err != nil || !bytes.Equal(b, put) {
			t.Errorf("%s: %q, %v", what, b, err)
		}
		if _, err := backend.Get(ctx, d, "packs/none", 100); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("%s: what is not there: %v", what, err)
		}
		n := 0
		must(t, d.List(ctx, "", func(backend.Object) error { n++; return nil }))
		must(t, d.List(ctx, "none/", func(backend.Object) error { n++; return nil }))
		if n != 2 {
			t.Errorf("%s: %d objects", what, n)
		}
		must(t, d.Put(ctx, "points/new", put))
		must(t, d.Sync(ctx, "points/"))
		must(t, d.Delete(ctx, "points/new"))
	}
	works("at first")
	for what, instead := range map[string]func(){
		"gone":  func() {},
		"empty": func() { must(t, os.Mkdir(root, 0o700)) },
		"not it": func() {
			must(t, os.Mkdir(root, 0o700))
			must(t, os.WriteFile(root+"/config", []byte("the mask"), 0o600))
		},
		"longer": func() {
			must(t, os.Mkdir(root, 0o700))
			must(t, os.WriteFile(root+"/config", []byte("the mark, and"), 0o600))
		},
	} {
		must(t, os.Rename(root, root+".away"))
		instead()
		before, _ := os.ReadDir(root)
		for op, err := range map[string]error{
			"put": d.Put(ctx, "points/new", put), "get": get(t, d, "points/old"), "list": d.List(ctx, "packs/", func(backend.Object) error { return nil }),
			"list of all": d.List(ctx, "", func(backend.Object) error { return nil }), "sync": d.Sync(ctx, "packs/"), "delete": d.Delete(ctx, "packs/a"),
		} {
			if !errors.Is(err, backend.ErrAway) || errors.Is(err, backend.ErrNotExist) {
				t.Errorf("%s: %s: %v", what, op, err)
			}
		}
		if after, _ := os.ReadDir(root); len(after) != len(before) {
			t.Errorf("%s: something was written: %v", what, after)
		}
		must(t, os.RemoveAll(root))
		if what == "gone" { // it comes back from a copy: other inodes, the same bytes
			must(t, os.CopyFS(root, os.DirFS(root+".away")))
			must(t, os.RemoveAll(root+".away"))
		} else {
			must(t, os.Rename(root+".away", root))
		}
		works("back after " + what)
	}
}

func get(t *testing.T, d *Dir, name string) error {
	t.Helper()
	_, err := backend.Get(t.Context(), d, name, 100)
	return err
}

// A file system that goes in the middle of a Put: what was put lies elsewhere, and is
// no success.
func TestAwayInTheMiddleOfAPut(t *testing.T) {
	root := filepath.Join(t.TempDir(), "repo")
	d, err := Create(root)
	must(t, err)
	defer d.Close()
	must(t, d.Put(t.Context(), "config", []byte("the mark")))
	must(t, d.KnowBy(t.Context(), "config"))
	d.files = goes{d.files, func() {
		must(t, os.Rename(root, root+".away"))
		must(t, os.MkdirAll(root+"/packs", 0o700))
	}}
	if err := d.Put(t.Context(), "packs/a", []byte("an object")); !errors.Is(err, backend.ErrAway) {
		t.Errorf("put elsewhere: %v", err)
	}
}

// goes is files whose file system goes before a file is made.
type goes struct {
	files
	gone func()
}

func (g goes) Create(path string) (file, error) {
	g.gone()
	return g.files.Create(path)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Replace puts other bytes under a name; where that fails before they are stored, the
// old ones stay, also for who had them open.
func TestReplace(t *testing.T) {
	root := filepath.Join(t.TempDir(), "repo")
	d, err := Create(root)
	must(t, err)
	defer d.Close()
	ctx := t.Context()
	is := func(want string) {
		t.Helper()
		b, err := backend.Get(ctx, d, "packs/a", 100)
		if err != nil || string(b) != want {
			t.Errorf("%q, %v, want %q", b, err, want)
		}
	}
	must(t, d.Put(ctx, "packs/a", []byte("bad")))
	is("bad")
	must(t, d.Replace(ctx, "packs/a", []byte("good")))
	is("good")
	whole := d.files
	d.files = full{whole}
	if err := d.Replace(ctx, "packs/a", []byte("never")); !errors.Is(err, backend.ErrNoSpace) {
		t.Errorf("full: %v", err)
	}
	d.files = whole
	is("good")
	entries, err := os.ReadDir(filepath.Join(root, "packs"))
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// full is files of a disk that is full.
type full struct{ files }

func (f full) Create(path string) (file, error) {
	made, err := f.files.Create(path)
	return fullFile{made}, err
}

type fullFile struct{ file }

func (fullFile) Write(p []byte) (int, error) { return len(p) / 2, unix.ENOSPC }
