package tree_test

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
)

// recorder notes what a visit shows, and refuses some paths.
type recorder struct {
	lines  []string
	refuse map[string]bool
	end    error
}

func (r *recorder) note(what string, i *tree.Item) error {
	r.lines = append(r.lines, fmt.Sprintf("%s %s %d %v", what, i.Path, i.Link, i.Again))
	if r.refuse[i.Path] {
		return errors.New("refused")
	}
	return nil
}

func (r *recorder) Enter(i *tree.Item) error { return r.note("enter", i) }
func (r *recorder) Leave(i *tree.Item) error { return r.note("leave", i) }
func (r *recorder) Take(i *tree.Item) error  { return r.note("take", i) }
func (r *recorder) Failed(path string, err error) error {
	r.lines = append(r.lines, "failed "+path)
	return r.end
}

// A file with several names has one number, from the first name that was taken
// on; a directory that was refused is not gone into.
func TestVisitShowsLinksAndFailures(t *testing.T) {
	fs := treetest.New("ext4", "", "r")
	f := fs.File("/d/a", "x")
	f.Nlink = 3
	fs.Link("/d/b", f)
	fs.Link("/d/c", f)
	fs.File("/d/no/x", "x")
	g := fs.File("/d/z1", "x")
	g.Nlink = 2
	fs.Link("/d/z2", g)
	fs.File("/d/zz", "x").Err = filesystem.ErrCorrupt
	v := open(t, manifest(), treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: fs}})
	from, err := v.Walk(t.Context(), v.Root(), "/d", false)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{refuse: map[string]bool{"top/a": true, "top/no": true}}
	if err := tree.Visit(t.Context(), v, from, "top", r); err != nil {
		t.Fatal(err)
	}
	want := []string{"enter top 0 false", "take top/a 1 false", "failed top/a", "take top/b 2 false", "take top/c 2 true", "enter top/no 0 false", "failed top/no",
		"take top/z1 3 false", "take top/z2 3 true", "failed top/zz", "leave top 0 false"}
	if !reflect.DeepEqual(r.lines, want) {
		t.Errorf("got  %q\nwant %q", r.lines, want)
	}
	r.end = errors.New("enough")
	if err := tree.Visit(t.Context(), v, from, "top", r); !errors.Is(err, r.end) {
		t.Errorf("a sink that has had enough: %v", err)
	}
}
