package catalogue

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"testing"
	"time"

	"cairn/guest/ext4"
	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/xfs"
)

// openReal opens an image with the real reader.
func openReal(t testing.TB, kind, image string) filesystem.Reader {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var r filesystem.Reader
	if kind == "xfs" {
		r, err = xfs.Open(t.Context(), f, st.Size())
	} else {
		r, err = ext4.Open(t.Context(), f, st.Size())
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fileChanges compares two images block by block: what two disk maps tell.
func fileChanges(t testing.TB, now, before string) func(context.Context, func(start, end int64) error) error {
	t.Helper()
	a, err := os.ReadFile(now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	var list [][2]int64
	for off := 0; off < len(a); off += spanUnit {
		end := min(off+spanUnit, len(a))
		if !bytes.Equal(a[off:end], b[off:end]) {
			list = append(list, [2]int64{int64(off), int64(end)})
		}
	}
	return func(_ context.Context, fn func(start, end int64) error) error {
		for _, r := range list {
			if err := fn(r[0], r[1]); err != nil {
				return err
			}
		}
		return nil
	}
}

// build makes a catalogue of one volume in memory.
func build(t testing.TB, m *Memory, r filesystem.Reader, parent *Point, b *Before) (*Point, Statistics) {
	t.Helper()
	root, stats, err := Build(t.Context(), m, []Source{{Volume: Volume{Name: "vda", Type: "ext4"}, Reader: r, Before: b}}, parent, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &Point{Root: root, Nodes: NewCache(m, 8<<20)}, stats
}

// flatten lists all that a catalogue says, by path.
func flatten(t testing.TB, p *Point) map[string]Entry {
	t.Helper()
	all := map[string]Entry{}
	var visit func(path string, e Entry)
	visit = func(path string, e Entry) {
		ref := e.Dir
		if e.Dir != nil {
			e.Dir = &Ref{Hash: e.Dir.Hash}
		}
		all[path] = e
		if ref == nil {
			return
		}
		d, err := p.Directory(t.Context(), *ref)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if d.Damaged {
			all[path+"/ damaged"] = Entry{}
		}
		for _, below := range d.Entries {
			visit(path+"/"+below.Name, below)
		}
	}
	visit("", *p.Root.Volumes[0].Top)
	return all
}

// equalCatalogues holds a catalogue made from its parent's against one made by
// a walk.
func equalCatalogues(t testing.TB, what string, got, want *Point, m *Memory) {
	t.Helper()
	if err := NewChecker(m).Root(t.Context(), got.Root); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	a, b := flatten(t, got), flatten(t, want)
	shown := 0
	for path, e := range b {
		if o, ok := a[path]; !ok || !reflect.DeepEqual(o, e) {
			if shown++; shown < 5 {
				t.Errorf("%s: %q: is %+v, must be %+v", what, path, o, e)
			}
		}
	}
	if len(a) != len(b) {
		t.Errorf("%s: %d paths, must be %d", what, len(a), len(b))
	}
	if g, w := got.Root.Volumes[0].Top.Dir.Hash, want.Root.Volumes[0].Top.Dir.Hash; g != w {
		t.Errorf("%s: hash %x, must be %x", what, g, w)
	}
}

// chain builds each image's catalogue from the one before it, once by what
// changed and once by a walk that shares, and holds both against a walk alone.
func chain(t *testing.T, kind string, images []string) {
	t.Helper()
	var m, byHash Memory
	var parent, sharing *Point
	var before filesystem.Reader
	compared, inodes := int64(0), int64(0)
	for i, image := range images {
		r := openReal(t, kind, image)
		want, _ := build(t, &Memory{}, r, nil, nil)
		var b *Before
		var bh *Before
		if i > 0 {
			b = &Before{Reader: before, Changed: fileChanges(t, image, images[i-1])}
			bh = &Before{}
		}
		got, stats := build(t, &m, r, parent, b)
		if i > 0 && stats.Incremental != 1 {
			t.Fatalf("image %d: not made by what changed", i)
		}
		equalCatalogues(t, fmt.Sprintf("image %d by changes", i), got, want, &m)
		shared, full := build(t, &byHash, r, sharing, bh)
		equalCatalogues(t, fmt.Sprintf("image %d by hash", i), shared, want, &byHash)
		if i > 0 {
			compared += stats.Inodes
			inodes += full.Inodes
			t.Logf("image %d: %+v, of %d inodes", i, stats, full.Inodes)
		}
		parent, sharing, before = got, shared, r
	}
	if compared*2 > inodes {
		t.Errorf("%d of %d inodes were read: the changes help nothing", compared, inodes)
	}
}

// realKinds are the filesystems whose readers tell of inode records.
var realKinds = []struct {
	name, kind string
	size       int64
	mkfs       []string
}{
	{"ext4", "ext4", 96 << 20, []string{"mkfs.ext4", "-q", "-N", "16384", "-b", "4096"}},
	{"ext4 small blocks", "ext4", 96 << 20, []string{"mkfs.ext4", "-q", "-N", "16384", "-b", "1024", "-I", "128"}},
	{"xfs", "xfs", 300 << 20, []string{"mkfs.xfs", "-q"}},
}

// Goal: a catalogue made from its parent's by what changed on the disk is the
// one that a walk gives, after hundreds of random changes by the kernel.
// Method: rounds of Churn on a mounted filesystem, on which much else lies.
func TestIncrementalIsAWalk(t *testing.T) {
	filesystemtest.NeedRoot(t)
	for _, k := range realKinds {
		t.Run(k.name, func(t *testing.T) {
			filesystemtest.NeedTool(t, k.mkfs[0])
			image := filesystemtest.Image(t, k.size, k.mkfs...)
			rounds := 3
			if filesystemtest.Long() {
				rounds = 30
			}
			var images []string
			for i := range rounds {
				dir, unmount := filesystemtest.LoopMount(t, image, "")
				if i == 0 {
					if err := filesystemtest.Populate(dir, filesystemtest.SmallScale()); err != nil {
						t.Fatal(err)
					}
					for n := range 4000 { // lie still
						sub := fmt.Sprintf("%s/still/%d/deep/er", dir, n/100)
						if err := os.MkdirAll(sub, 0o755); err != nil {
							t.Fatal(err)
						}
						if err := os.WriteFile(fmt.Sprintf("%s/%d", sub, n), nil, 0o644); err != nil {
							t.Fatal(err)
						}
					}
				}
				ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
				filesystemtest.Churn(ctx, dir, uint64(i))
				stop()
				unmount()
				images = append(images, filesystemtest.CopyImage(t, image))
			}
			chain(t, k.kind, images)
		})
	}
}

// The same of copies that a crash would leave, where a journal is replayed.
func TestIncrementalOfLiveCopies(t *testing.T) {
	n := 3
	if filesystemtest.Long() {
		n = 12
	}
	for _, k := range realKinds {
		if k.name == "ext4 small blocks" && !filesystemtest.Long() {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			images := filesystemtest.LiveCopies(t, k.size, n, "", k.mkfs...)
			var m Memory
			var parent *Point
			var before filesystem.Reader
			for i, image := range images {
				r := openReal(t, k.kind, image)
				var b *Before
				if i > 0 {
					b = &Before{Reader: before, Changed: fileChanges(t, image, images[i-1])}
				}
				got, stats := build(t, &m, r, parent, b)
				want, _ := build(t, &Memory{}, r, nil, nil)
				equalCatalogues(t, fmt.Sprint("copy ", i), got, want, &m)
				t.Logf("copy %d: %+v", i, stats)
				parent, before = got, r
			}
		})
	}
}

// TestIncrementalOfUnreplayedParent: without a journal an inode may be on the
// disk before its directory's block is. The parent lists what the block had;
// what it has later is not missed, though no inode changes any more.
func TestIncrementalOfUnreplayedParent(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.ext4")
	filesystemtest.NeedTool(t, "debugfs")
	whole := filesystemtest.Image(t, 16<<20, "mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal,^metadata_csum,^dir_index")
	debugfs := func(image string, commands ...string) {
		t.Helper()
		for _, c := range commands {
			if out, err := exec.Command("debugfs", "-w", "-R", c, image).CombinedOutput(); err != nil || bytes.Contains(out, []byte("error")) {
				t.Fatalf("%s: %v: %s", c, err, out)
			}
		}
	}
	debugfs(whole, "mkdir d", "mkdir d/e", "set_super_value state 0") // mounted and in use
	// A file in d: the block of d comes last.
	early := filesystemtest.CopyImage(t, whole)
	debugfs(whole, "symlink d/new target", "set_inode_field d ctime 20200101000000", "set_inode_field d mtime 20200101000000")
	a, err := os.ReadFile(early)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for off := 0; off < len(a); off += 1024 {
		name := []byte("new")
		if !bytes.Equal(a[off:off+1024], b[off:off+1024]) && !(bytes.Contains(b[off:off+1024], name) && !bytes.Contains(a[off:off+1024], name)) {
			copy(a[off:], b[off:off+1024])
		} else if !bytes.Equal(a[off:off+1024], b[off:off+1024]) {
			changed++
		}
	}
	if changed != 1 {
		t.Fatalf("%d blocks are late, want the directory's alone", changed)
	}
	if err := os.WriteFile(early, a, 0o600); err != nil {
		t.Fatal(err)
	}
	var m Memory
	before := openReal(t, "ext4", early)
	parent, _ := build(t, &m, before, nil, nil)
	r := openReal(t, "ext4", whole)
	got, _ := build(t, &m, r, parent, &Before{Reader: before, Changed: fileChanges(t, whole, early)})
	want, _ := build(t, &Memory{}, r, nil, nil)
	if _, ok := flatten(t, want)["/d/new"]; !ok {
		t.Fatal("the walk does not find the file")
	}
	equalCatalogues(t, "the later image", got, want, &m)
}
