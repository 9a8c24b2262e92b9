package filesystemtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"cairn/guest/filesystem"
)

// memory is a correct little Reader: inode 1 is the top, every node has its
// place in the list as inode number.
type memory struct {
	nodes []memNode
}

type memNode struct {
	name   string
	dir    filesystem.Ino
	mode   uint32
	data   string // contents or target
	xattrs []filesystem.Xattr
}

func newMemory() *memory {
	return &memory{nodes: []memNode{
		{mode: filesystem.ModeDir | 0o755},
		{name: "a", dir: 1, mode: filesystem.ModeRegular | 0o644, data: strings.Repeat("contents ", 1000)},
		{name: "b", dir: 1, mode: filesystem.ModeRegular | 0o600, xattrs: []filesystem.Xattr{{Name: "user.a", Value: []byte("1")}, {Name: "user.b"}}},
		{name: "link", dir: 1, mode: filesystem.ModeSymlink | 0o777, data: "b"},
		{name: "sub", dir: 1, mode: filesystem.ModeDir | 0o700},
		{name: "x\xffy\n", dir: 5, mode: filesystem.ModeFIFO},
		{name: "z", dir: 5, mode: filesystem.ModeRegular, data: "z"},
	}}
}

func (m *memory) Info() filesystem.Info {
	return filesystem.Info{Type: "memory", BlockSize: 1, TotalBytes: 1 << 20, Inodes: 7}
}

func (m *memory) Root() filesystem.Ino { return 1 }

func (m *memory) node(ctx context.Context, ino filesystem.Ino, kind uint32, wrong error) (memNode, error) {
	if err := ctx.Err(); err != nil {
		return memNode{}, err
	}
	if ino == 0 || ino > filesystem.Ino(len(m.nodes)) {
		return memNode{}, filesystem.ErrNotExist
	}
	n := m.nodes[ino-1]
	if kind != 0 && n.mode&filesystem.ModeType != kind {
		return memNode{}, wrong
	}
	return n, nil
}

func (m *memory) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	n, err := m.node(ctx, ino, 0, nil)
	return filesystem.Attr{Ino: ino, Mode: n.mode, Nlink: 1, Size: int64(len(n.data))}, err
}

func (m *memory) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	if _, err := m.node(ctx, dir, filesystem.ModeDir, filesystem.ErrNotDir); err != nil {
		return 0, err
	}
	for i, n := range m.nodes {
		if n.dir == dir && n.name == name {
			return filesystem.Ino(i + 1), nil
		}
	}
	return 0, filesystem.ErrNotExist
}

func (m *memory) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	if _, err := m.node(ctx, dir, filesystem.ModeDir, filesystem.ErrNotDir); err != nil {
		return err
	}
	for i, n := range m.nodes {
		if n.dir == dir && uint64(i) >= cookie && !fn(filesystem.Entry{Name: n.name, Ino: filesystem.Ino(i + 1), Type: n.mode & filesystem.ModeType, Next: uint64(i + 1)}) {
			break
		}
	}
	return nil
}

func (m *memory) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	n, err := m.node(ctx, ino, filesystem.ModeRegular, filesystem.ErrIsDir)
	if err != nil {
		return nil, err
	}
	return memFile{strings.NewReader(n.data)}, nil
}

func (m *memory) Readlink(ctx context.Context, ino filesystem.Ino) (string, error) {
	n, err := m.node(ctx, ino, filesystem.ModeSymlink, filesystem.ErrNotSymlink)
	return n.data, err
}

func (m *memory) Xattrs(ctx context.Context, ino filesystem.Ino) ([]filesystem.Xattr, error) {
	n, err := m.node(ctx, ino, 0, nil)
	return n.xattrs, err
}

type memFile struct{ *strings.Reader }

func (f memFile) NextData(off int64) (int64, int64, error) {
	if off >= f.Size() {
		return 0, 0, io.EOF
	}
	return off, f.Size(), nil
}

func TestSuiteAcceptsACorrectReader(t *testing.T) {
	want, err := Walk(context.Background(), newMemory())
	if err != nil {
		t.Fatal(err)
	}
	TestReader(t, func(*testing.T) filesystem.Reader { return newMemory() }, want, AllFields)
}

// verdict is a testing.TB that takes failures without failing.
type verdict struct {
	testing.TB
	failed bool
}

func (v *verdict) Errorf(string, ...any) { v.failed = true }
func (v *verdict) Error(...any)          { v.failed = true }
func (v *verdict) Fatal(...any)          { v.failed = true; runtime.Goexit() }
func (v *verdict) Fatalf(string, ...any) { v.failed = true; runtime.Goexit() }

// liar is a Reader with one fault.
type liar struct {
	*memory
	attr     func(a *filesystem.Attr)
	lookup   func(name string) (filesystem.Ino, error)
	entry    func(e *filesystem.Entry)
	file     func(f filesystem.File) filesystem.File
	openKind bool // opens everything
	deaf     bool // does not look at contexts
}

func (l *liar) Attr(ctx context.Context, ino filesystem.Ino) (filesystem.Attr, error) {
	if l.deaf {
		ctx = context.Background()
	}
	a, err := l.memory.Attr(ctx, ino)
	if l.attr != nil {
		l.attr(&a)
	}
	return a, err
}

func (l *liar) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	if ino, err := l.memory.Lookup(ctx, dir, name); err == nil || l.lookup == nil || !errors.Is(err, filesystem.ErrNotExist) {
		return ino, err
	}
	return l.lookup(name)
}

func (l *liar) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	return l.memory.ReadDir(ctx, dir, cookie, func(e filesystem.Entry) bool {
		if l.entry != nil {
			l.entry(&e)
		}
		return fn(e)
	})
}

func (l *liar) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	f, err := l.memory.Open(ctx, ino)
	if err != nil && l.openKind && ctx.Err() == nil {
		return memFile{strings.NewReader("")}, nil
	}
	if err == nil && l.file != nil {
		f = l.file(f)
	}
	return f, err
}

type lyingFile struct {
	filesystem.File
	readAt   func(f filesystem.File, p []byte, off int64) (int, error)
	nextData func(f filesystem.File, off int64) (int64, int64, error)
}

func (f lyingFile) ReadAt(p []byte, off int64) (int, error) {
	if f.readAt == nil {
		return f.File.ReadAt(p, off)
	}
	return f.readAt(f.File, p, off)
}

func (f lyingFile) NextData(off int64) (int64, int64, error) {
	if f.nextData == nil {
		return f.File.NextData(off)
	}
	return f.nextData(f.File, off)
}

// TestSuiteCatchesLiars breaks one promise at a time.
func TestSuiteCatchesLiars(t *testing.T) {
	want, err := Walk(context.Background(), newMemory())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		run  contractTest
		liar liar
	}{
		{"lookup of nothing succeeds", testLookup, liar{lookup: func(string) (filesystem.Ino, error) { return 3, nil }}},
		{"lookup of nothing gives another error", testLookup, liar{lookup: func(string) (filesystem.Ino, error) { return 0, filesystem.ErrCorrupt }}},
		{"dot is found", testLookup, liar{lookup: func(name string) (filesystem.Ino, error) {
			if name == "." {
				return 1, nil
			}
			return 0, filesystem.ErrNotExist
		}}},
		{"mode", testLookup, liar{attr: func(a *filesystem.Attr) { a.Mode ^= 1 }}},
		{"directories open", testWrongType, liar{openKind: true}},
		{"cookies begin again", testCookies, liar{entry: func(e *filesystem.Entry) { e.Next-- }}},
		{"cookies skip", testCookies, liar{entry: func(e *filesystem.Entry) { e.Next++ }}},
		{"no EOF", testReadAt, liar{file: func(f filesystem.File) filesystem.File {
			return lyingFile{File: f, readAt: func(f filesystem.File, p []byte, off int64) (int, error) {
				n, _ := f.ReadAt(p, off)
				return n, nil
			}}
		}}},
		{"offset is lost", testReadAt, liar{file: func(f filesystem.File) filesystem.File {
			return lyingFile{File: f, readAt: func(f filesystem.File, p []byte, off int64) (int, error) {
				if off > 100 && off < f.Size()-100 {
					off++
				}
				return f.ReadAt(p, off)
			}}
		}}},
		{"data called a hole", testReadAt, liar{file: func(f filesystem.File) filesystem.File {
			return lyingFile{File: f, nextData: func(f filesystem.File, off int64) (int64, int64, error) {
				return f.NextData(max(off, 50))
			}}
		}}},
		{"data behind the end", testReadAt, liar{file: func(f filesystem.File) filesystem.File {
			return lyingFile{File: f, nextData: func(f filesystem.File, off int64) (int64, int64, error) {
				return off, f.Size() + 1, nil
			}}
		}}},
		{"deaf to the context", testCancel, liar{deaf: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.liar.memory = newMemory()
			v := &verdict{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				test.run.on(v, &test.liar, want)
			}()
			<-done
			if !v.failed {
				t.Error("the suite did not notice")
			}
		})
	}
}

func TestCompare(t *testing.T) {
	want, err := Walk(context.Background(), newMemory())
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(n *Node){
		func(n *Node) { n.Mode ^= 1 }, func(n *Node) { n.UID++ }, func(n *Node) { n.Nlink++ }, func(n *Node) { n.Size++ },
		func(n *Node) { n.Blocks++ }, func(n *Node) { n.Mtime.Nsec++ }, func(n *Node) { n.Ctime.Sec++ }, func(n *Node) { n.Minor++ },
		func(n *Node) { n.Target += "x" }, func(n *Node) { n.Sum = "" }, func(n *Node) { n.Data = nil },
		func(n *Node) { n.Xattrs = map[string]string{"user.c": ""} }, func(n *Node) { n.Err = "x" },
	} {
		got := Tree{}
		for path, n := range want {
			if path == "a" {
				change(&n)
			}
			got[path] = n
		}
		if d := Compare(want, got, AllFields); len(d) != 1 {
			t.Errorf("%+v: %q", got["a"], d)
		}
	}
	got := Tree{"new": {}}
	if d := Compare(want, got, AllFields); len(d) != len(want)+1 {
		t.Errorf("another tree: %q", d)
	}
}

// TestRecord writes down a directory, saves it and loads it again.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "f\xff"), []byte("x"), 0o640), os.Symlink("t\x01\xfe", filepath.Join(dir, "l"))); err != nil {
		t.Fatal(err)
	}
	tree, err := Record(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := tree["f\xff"]
	if len(tree) != 3 || n.Size != 1 || n.Sum != "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" || len(n.Data) != 1 || tree["l"].Target != "t\x01\xfe" {
		t.Errorf("recorded %+v", tree)
	}
	var b bytes.Buffer
	if err := tree.Save(&b); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := Compare(tree, loaded, AllFields); len(d) > 0 {
		t.Error(d)
	}
}

// TestWalkDamagedCatches a reader that panics, one that hangs, one that eats
// memory.
func TestWalkDamagedCatches(t *testing.T) {
	limits := DefaultLimits()
	limits.Deadline, limits.Heap = 300*time.Millisecond, 32<<20
	open := func(l *liar) Opener {
		return func(context.Context, io.ReaderAt, int64) (filesystem.Reader, error) {
			l.memory = newMemory()
			return l, nil
		}
	}
	var hoard [][]byte
	for name, l := range map[string]*liar{
		"panic": {attr: func(*filesystem.Attr) { panic("oops") }},
		"took":  {attr: func(*filesystem.Attr) { time.Sleep(400 * time.Millisecond) }},
		"memory": {attr: func(*filesystem.Attr) {
			hoard = append(hoard, bytes.Repeat([]byte{1}, 64<<20))
			time.Sleep(100 * time.Millisecond)
		}},
	} {
		if _, err := WalkDamaged(nil, open(l), limits); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if opened, err := WalkDamaged(nil, open(&liar{}), limits); !opened || err != nil {
		t.Errorf("a good reader: %v, %v", opened, err)
	}
}

func TestDamageHitsMetadataOnly(t *testing.T) {
	image := make([]byte, 64<<10)
	copy(image[4096:], bytes.Repeat([]byte(filler), 512))
	image[1024], image[9000] = 1, 2
	sectors := MetadataSectors(image)
	if len(sectors) != 2 || sectors[0] != 1024 || sectors[1] != 8704 {
		t.Fatalf("sectors %v", sectors)
	}
	b := bytes.Clone(image)
	Damage(b, sectors, rand.New(rand.NewPCG(1, 1)), 64)
	changed := 0
	for i := range b {
		if b[i] != image[i] {
			changed++
			if s := int64(i) &^ (sectorSize - 1); s != 1024 && s != 8704 {
				t.Fatalf("byte %d changed", i)
			}
		}
	}
	if changed < 10 {
		t.Errorf("%d bytes changed", changed)
	}
}
