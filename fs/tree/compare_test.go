package tree_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

func TestSameContents(t *testing.T) {
	ctx := context.Background()
	long := strings.Repeat("x", 3<<20)
	fs := treetest.New("ext4", "", "aaaa")
	fs.File("/etc/fstab", "UUID=aaaa / ext4 defaults 0 1\n")
	fs.File("/a", long)
	fs.File("/b", long)
	fs.File("/c", long[:3<<20-1]+"y")
	fs.File("/short", "x")
	fs.File("/empty", "")
	fs.Symlink("/link", "a")
	tr := tree.New(&restorepoint.Manifest{}, treetest.Volumes{{Volume: tree.Volume{Name: "vda1", UUID: "aaaa"}, Reader: fs}}.Scan)
	for _, c := range []struct {
		a, b string
		same bool
	}{{"/a", "volumes/vda1/b", true}, {"/a", "/c", false}, {"/a", "/short", false}, {"/empty", "/empty", true}} {
		a, err := tr.OpenRegular(ctx, c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := tr.OpenRegular(ctx, c.b)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := tree.SameContents(ctx, a, b); same != c.same || err != nil {
			t.Errorf("%s and %s: %t, %v", c.a, c.b, same, err)
		}
	}
	for _, p := range []string{"/link", "/etc", "/none", "volumes/none/a"} {
		if _, err := tr.OpenRegular(ctx, p); err == nil {
			t.Errorf("%s is opened", p)
		}
	}
	if _, err := tr.Find(ctx, "/none"); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
	if _, _, ok := tree.InVolume("/volumes/x/y"); ok {
		t.Error("a guest's own /volumes is taken for a volume")
	}
}
