package push

import (
	"context"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/cmd/internal/push/pushtest"
	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest"
	"cairn/guest/agent/receive/receivetest"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// file is a disk image in a file.
type file struct {
	*os.File
	size int64
}

func (f file) Size() int64 { return f.size }

func (f file) NextData(off int64) (start, end int64, err error) { return off, f.size, nil }

// openImage gives the view of the one volume in an image.
func openImage(t testing.TB, name string) *tree.View {
	t.Helper()
	f, err := os.Open(name)
	receivetest.Must(t, err)
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	receivetest.Must(t, err)
	m := &restorepoint.Manifest{Disks: []restorepoint.Disk{{Name: "vda", Size: st.Size()}}}
	tr, err := tree.Open(t.Context(), m, func(string) (restorepoint.Image, error) { return file{f, st.Size()}, nil })
	receivetest.Must(t, err)
	v, err := tr.Volume(t.Context(), 0)
	receivetest.Must(t, err)
	return v
}

// memory gives the view of a filesystem in memory.
func memory(t testing.TB, fs filesystem.Reader) *tree.View {
	t.Helper()
	tr := tree.New(&restorepoint.Manifest{}, treetest.Volumes{{Volume: tree.Volume{Name: "r"}, Reader: fs}}.Scan)
	v, err := tr.Volume(t.Context(), 0)
	receivetest.Must(t, err)
	return v
}

// newPush gives a push into a guest.
func newPush(t testing.TB, v *tree.View, g *pushtest.Guest, trees ...Tree) *Push {
	return &Push{View: v, Trees: trees, Say: t.Logf,
		Progress: func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} },
		Dial:     func(ctx context.Context) (Session, error) { return session(g.Dial(ctx)) }}
}

// session keeps a nil *guest.Inside from becoming a Session that is not nil.
func session(s *guest.Inside, err error) (Session, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// A tree of everything, out of an ext4 image that our reader reads, through the
// protocol, into another filesystem; each entry is compared.
func TestPushOfARealImage(t *testing.T) {
	var want []string
	img := receivetest.Image(t, "ext4", 200, []string{"-b", "4096", "-I", "256"}, func(dir string) {
		receivetest.Awkward(t, dir+"/srv/tree")
		receivetest.WriteFile(t, dir+"/srv/alone", "alone")
		want = receivetest.List(t, dir+"/srv/tree")
	})
	xfs := receivetest.Mounted(t, "xfs", 400)
	receivetest.WriteFile(t, xfs+"/srv/tree/old", "old")
	g := pushtest.Start(t, xfs)
	p := newPush(t, openImage(t, img), g, Tree{From: "/srv/tree", Where: guest.PutAt}, Tree{From: "/srv/alone", To: "/srv/other", Where: guest.PutAt})
	before := receivetest.List(t, xfs)
	p.DryRun = true
	r, err := p.Run(t.Context())
	if err != nil || r.Done || r.Targets[0].Replaced != "directory" || string(r.Targets[1].Path) != "/srv/other" || r.TotalEntries != 18+64+4+3+1 {
		t.Fatalf("dry run: %+v, %v", r, err)
	}
	receivetest.Same(t, receivetest.List(t, xfs), before)
	p.DryRun = false
	r, err = p.Run(t.Context())
	if err != nil || !r.Done || len(r.Failures) > 0 || r.Bytes != r.TotalBytes || r.Verified != 19 {
		t.Fatalf("%+v, %v", r, err)
	}
	receivetest.Same(t, receivetest.List(t, xfs+"/srv/tree"), want)
	if receivetest.ReadFile(t, xfs+"/srv/other") != "alone" {
		t.Error("the second tree is wrong")
	}
	p.KeepBoth = ".cairn-then"
	if r, err = p.Run(t.Context()); err != nil || string(r.Targets[0].Path) != "/srv/tree.cairn-then" {
		t.Fatalf("keep both: %+v, %v", r, err)
	}
	receivetest.Same(t, receivetest.List(t, xfs+"/srv/tree.cairn-then"), want)
}

// app is a point of an application with two folders, and a guest that has both.
func app(t *testing.T) (*treetest.FS, *pushtest.Guest) {
	t.Helper()
	receivetest.NeedRoot(t)
	fs := treetest.New("ext4", "", "r")
	f := fs.File("/data/a", "new")
	f.Nlink = 2
	fs.Link("/data/b", f)
	f = fs.File("/conf/a", "new")
	f.Nlink = 2
	fs.Link("/conf/b", f)
	root := t.TempDir()
	receivetest.WriteFile(t, root+"/data/a", "old")
	receivetest.WriteFile(t, root+"/conf/a", "old")
	return fs, pushtest.Start(t, root)
}

var appTrees = []Tree{{From: "/data", Where: guest.PutAt}, {From: "/conf", Where: guest.PutAt}}

// The service is stopped for the put alone, and started whatever happens.
func TestServiceIsAlwaysStartedAgain(t *testing.T) {
	whole := []string{"put?", "stop db", "put", "start db"}
	for name, c := range map[string]struct {
		fail   string
		err    error
		change func(*Push, *pushtest.Guest, context.CancelFunc)
		calls  []string
		failed bool
		new    bool
		down   bool // NotStarted
	}{
		"all well":          {calls: whole, new: true},
		"dry run":           {change: func(p *Push, _ *pushtest.Guest, _ context.CancelFunc) { p.DryRun = true }, calls: []string{"put?", "stop db?"}},
		"keep both":         {change: func(p *Push, _ *pushtest.Guest, _ context.CancelFunc) { p.KeepBoth = ".x" }, calls: []string{"put?", "put"}},
		"refused at first":  {fail: "put?", err: &guest.CallError{Code: guest.CodeNoSpace, Message: "full"}, calls: []string{"put?"}, failed: true},
		"put fails":         {fail: "put", err: &guest.CallError{Code: guest.CodeNoSpace, Message: "full"}, calls: whole, failed: true},
		"put is broken":     {fail: "put", err: errors.New("no code"), calls: whole, failed: true},
		"gone from guest":   {fail: "stop db", err: &guest.CallError{Code: guest.CodeNotFound, Message: "no db"}, calls: whole, new: true},
		"cannot be stopped": {fail: "stop db", err: &guest.CallError{Code: guest.CodeUnsupported, Message: "how?"}, calls: whole[:2], failed: true},
		"has no service": {fail: "stop db", err: &guest.CallError{Code: guest.CodeUnsupported, Message: "how?"}, change: func(p *Push, _ *pushtest.Guest, _ context.CancelFunc) { p.Service = "" },
			calls: whole[:3], new: true},
		"stop fails":   {fail: "stop db", err: &guest.CallError{Code: guest.CodeFailed, Message: "hangs"}, calls: []string{"put?", "stop db", "start db"}, failed: true},
		"a step fails": {fail: "stopped", err: errors.New("exit status 1"), calls: []string{"put?", "stop db", "start db"}, failed: true},
		"start fails":  {fail: "start db", err: &guest.CallError{Code: guest.CodeFailed, Message: "exit status 1"}, calls: whole, new: true, down: true},
		"interrupted":  {change: func(_ *Push, g *pushtest.Guest, cancel context.CancelFunc) { g.During = cancel }, calls: whole, failed: true},
		"agent cannot": {change: func(_ *Push, g *pushtest.Guest, _ context.CancelFunc) { g.Can = []string{guest.CallPut} }, failed: true},
		"agent is gone": {change: func(p *Push, g *pushtest.Guest, cancel context.CancelFunc) {
			dial, n := p.Dial, 0
			p.Dial = func(ctx context.Context) (Session, error) {
				if n++; n > 1 {
					return nil, guest.ErrNoAgent
				}
				return dial(ctx)
			}
			g.During = cancel
		}, calls: []string{"put?", "stop db", "put"}, failed: true, down: true},
		"agent restarts": {change: func(p *Push, g *pushtest.Guest, cancel context.CancelFunc) {
			dial, n := p.Dial, 0
			p.Dial = func(ctx context.Context) (Session, error) {
				if n++; n == 2 || n == 3 {
					return nil, guest.ErrNoAgent
				}
				return dial(ctx)
			}
			g.During = cancel
			p.redial = 10 * time.Second
		}, calls: whole, failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			fs, g := app(t)
			p := newPush(t, memory(t, fs), g, appTrees...)
			p.Object, p.Service = "db", "db.service"
			p.redial = 300 * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.fail != "" {
				g.Fail[c.fail] = c.err
			}
			if c.change != nil {
				c.change(p, g, cancel)
			}
			r, err := p.Run(ctx)
			if (err != nil) != c.failed || r != nil && (r.NotStarted != nil) != c.down {
				t.Errorf("%+v, %v", r, err)
			}
			if calls := g.Calls(); !reflect.DeepEqual(calls, c.calls) {
				t.Errorf("calls %q, want %q", calls, c.calls)
			}
			want := "old"
			if c.new {
				want = "new"
			}
			for _, path := range []string{"/data/a", "/conf/a"} {
				if got := receivetest.ReadFile(t, g.Root+path); got != want {
					t.Errorf("%s holds %q, want %q", path, got, want)
				}
			}
			if c.new {
				var a, b unix.Stat_t
				receivetest.Must(t, errors.Join(unix.Stat(g.Root+"/conf/a", &a), unix.Stat(g.Root+"/conf/b", &b)))
				if a.Ino != b.Ino {
					t.Error("the second tree's hard link is none")
				}
			}
		})
	}
}

// torn cannot read files of a certain size to their end.
type torn struct{ *treetest.FS }

const tornSize = 3<<20 + 1

func (t torn) Open(ctx context.Context, ino filesystem.Ino) (filesystem.File, error) {
	f, err := t.FS.Open(ctx, ino)
	if err == nil && f.Size() == tornSize {
		return tornFile{f}, nil
	}
	return f, err
}

type tornFile struct{ filesystem.File }

func (f tornFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= 2<<20 {
		return 0, filesystem.ErrCorrupt
	}
	return f.File.ReadAt(p, off)
}

// What cannot be read from the point is said, and replaces nothing; beside what
// is there, the rest is put.
func TestUnreadableFilesReplaceNothing(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(*treetest.FS)
		before bool // it shows before anything is sent
		path   string
	}{
		"attributes": {func(fs *treetest.FS) { fs.File("/data/bad", "x").Err = filesystem.ErrCorrupt }, true, "/data/bad"},
		"listing":    {func(fs *treetest.FS) { fs.Dir("/data/bad").ListErr = filesystem.ErrCorrupt }, true, "/data/bad"},
		"contents": {func(fs *treetest.FS) {
			bad := fs.File("/data/bad", strings.Repeat("x", tornSize))
			bad.Nlink = 2
			fs.Link("/data/bad2", bad)
		}, false, "/data/bad"},
		"link's target": {func(fs *treetest.FS) { fs.Symlink("/data/bad", "\x00") }, false, "/data/bad"},
		"name": {func(fs *treetest.FS) {
			d := fs.Get("/data")
			d.Children = append(d.Children, filesystem.Entry{Name: "../bad", Ino: d.Children[0].Ino})
		}, true, "/bad"},
		"type": {func(fs *treetest.FS) { fs.Add("/data/bad", 0o030000) }, false, "/data/bad"},
	} {
		t.Run(name, func(t *testing.T) {
			fs, g := app(t)
			c.spoil(fs)
			p := newPush(t, memory(t, torn{fs}), g, appTrees...)
			r, err := p.Run(t.Context())
			if err != nil || r.Done || r.Reason == "" || len(r.Failures) == 0 || r.Failures[0].Path != c.path {
				t.Errorf("%+v, %v", r, err)
			}
			if calls := g.Calls(); (len(calls) == 0) != c.before {
				t.Errorf("the agent was asked: %q", calls)
			}
			if receivetest.ReadFile(t, g.Root+"/data/a") != "old" {
				t.Error("something was replaced")
			}
			p.KeepBoth = ".cairn-x"
			r, err = p.Run(t.Context())
			if err != nil || !r.Done || r.Lost == 0 || len(r.Failures) == 0 {
				t.Errorf("beside: %+v, %v", r, err)
			}
			if receivetest.ReadFile(t, g.Root+"/data.cairn-x/a") != "new" {
				t.Error("what can be read is not there")
			}
		})
	}
}

// What an answer of a lying agent holds is checked.
func TestLyingAgent(t *testing.T) {
	fs, g := app(t)
	p := newPush(t, memory(t, fs), g, appTrees...)
	for name, answer := range map[string]func(*guest.PutResult){
		"targets":  func(r *guest.PutResult) { r.Targets = make([]guest.PutOutcome, 3) },
		"fewer":    func(r *guest.PutResult) { r.Done = true },
		"counts":   func(r *guest.PutResult) { r.Files = -1 },
		"text":     func(r *guest.PutResult) { r.Reason = strings.Repeat("x", 1<<16) },
		"failures": func(r *guest.PutResult) { r.Failures = make([]guest.PutFailure, guest.MaxPutFailures+1) },
	} {
		p.Dial = func(context.Context) (Session, error) { return liar{answer}, nil }
		if _, err := p.Run(t.Context()); !errors.Is(err, guest.ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// liar answers every call in one way.
type liar struct{ answer func(*guest.PutResult) }

func (l liar) Can(string) bool { return true }
func (l liar) Close() error    { return nil }
func (l liar) Call(_ context.Context, _ string, _, out any) error {
	l.answer(out.(*guest.PutResult))
	return nil
}
func (l liar) CallStream(ctx context.Context, name string, args, out any, _ func(io.Writer) error) error {
	return l.Call(ctx, name, args, out)
}
