package wire

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/pack"
	"cairn/fs"
	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/guest/filesystem"
	"cairn/guest/object"
	"cairn/guest/object/discover"
	"cairn/index/restorepoint"
)

// sampleView is a guest's tree with what a look may meet.
func sampleView(t *testing.T) *tree.View {
	t.Helper()
	root := treetest.New("ext4", "root", "aaaa")
	passwd := root.File("/etc/passwd", "root:x:0:0\n")
	passwd.UID, passwd.Mode = 7, filesystem.ModeRegular|0o4640
	root.Symlink("/var/lib/pg", "/../../srv/pg")
	root.File("/srv/pg/15/PG_VERSION", "15\n")
	root.Symlink("/loop", "loop")
	root.Symlink("/out", "../../../../etc/passwd")
	root.File("/lost/x", "x").Err = errors.New("the store does not answer")
	root.File("/torn/x", "x").Err = fmt.Errorf("pack 3f: %w", pack.ErrCorrupt)
	root.File("/damaged/b", "x")
	root.Get("/damaged").ListErr = filesystem.ErrCorrupt
	root.Dir("/odd").Children = append(root.Get("/odd").Children,
		filesystem.Entry{Name: "../../etc", Ino: passwd.Ino}, filesystem.Entry{Name: "..", Ino: passwd.Ino}, filesystem.Entry{Name: "a\x00b", Ino: passwd.Ino}, filesystem.Entry{Name: "\xff", Ino: passwd.Ino})
	huge := root.File("/huge", "small")
	huge.Size = 1 << 50
	for i := range 50 {
		root.File(fmt.Sprintf("/many/%02d", 49-i), "")
	}
	v, err := tree.New(&restorepoint.Manifest{}, treetest.Volumes{{Volume: tree.Volume{Name: "vda", UUID: "aaaa"}, Reader: root}}.Scan).Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRootOfAPoint(t *testing.T) {
	r := &pointRoot{ctx: t.Context(), view: sampleView(t)}
	for name, want := range map[string]string{"/etc/passwd": "root:x:0:0\n", "/var/lib/pg/15/PG_VERSION": "15\n", "/out": "root:x:0:0\n", "/../etc//./passwd": "root:x:0:0\n"} {
		if b, err := r.ReadFile(name, 100); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for name, want := range map[string]error{
		"/none": iofs.ErrNotExist, "/etc/passwd/x": iofs.ErrNotExist, "/huge": discover.ErrTooLarge, "/loop": tree.ErrLoop, "/etc": nil, "/torn/x": pack.ErrCorrupt,
	} {
		if b, err := r.ReadFile(name, 100); b != nil || err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %d bytes, %v; want %v", name, len(b), err, want)
		}
	}
	if _, err := r.ReadFile("/etc/passwd", 10); !errors.Is(err, discover.ErrTooLarge) {
		t.Errorf("11 bytes with a limit of 10: %v", err)
	}
	if i, err := r.Stat("/var/lib/pg/15"); err != nil || !i.Dir || i.Path != "/srv/pg/15" {
		t.Errorf("stat of a folder: %+v, %v", i, err)
	}
	if i, err := r.Stat("/out"); err != nil || i != (discover.Info{Size: 11, Mode: 0o4640, UID: 7, Path: "/etc/passwd"}) {
		t.Errorf("stat of a file: %+v, %v", i, err)
	}
	if _, err := r.Stat("/none"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("stat of nothing: %v", err)
	}
	if names, err := r.ReadDir("/many", 50); err != nil || len(names) != 50 || !slices.IsSorted(names) {
		t.Errorf("50 names: %q, %v", names, err)
	}
	if names, err := r.ReadDir("/many", 10); !errors.Is(err, discover.ErrTooLarge) || len(names) != 10 {
		t.Errorf("10 of 50 names: %q, %v", names, err)
	}
	if names, err := r.ReadDir("/odd", 50); err != nil || len(names) != 1 || names[0] != "\xff" {
		t.Errorf("odd names: %q, %v", names, err)
	}
	if names, err := r.ReadDir("/damaged", 50); !errors.Is(err, filesystem.ErrCorrupt) || len(names) != 1 {
		t.Errorf("a damaged folder: %q, %v", names, err)
	}
	for _, name := range []string{"/none", "/etc/passwd"} {
		if _, err := r.ReadDir(name, 50); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("the names in %s: %v", name, err)
		}
	}
	if r.missed() != nil {
		t.Errorf("%v is called passing", r.missed())
	}
	if _, err := r.Stat("/lost/x"); err == nil || r.missed() == nil {
		t.Errorf("a store that does not answer: %v, %v", err, r.missed())
	}
}

func TestALookAtAPointIsBounded(t *testing.T) {
	r := &pointRoot{ctx: t.Context(), view: sampleView(t)}
	calls := 0
	for ; calls <= maxLooks; calls++ {
		if _, err := r.ReadDir("/many", 100); err != nil {
			if !errors.Is(err, errMaxLooks) {
				t.Fatal(err)
			}
			break
		}
	}
	if calls < maxLooks/100 || calls > maxLooks/50 {
		t.Errorf("%d folders of 50 names were read", calls)
	}
	r = &pointRoot{ctx: t.Context(), view: sampleView(t)}
	if _, err := r.ReadFile("/huge", 1<<60); !errors.Is(err, errMaxLooks) {
		t.Errorf("a file of a PiB: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r = &pointRoot{ctx: ctx, view: sampleView(t)}
	if _, err := r.Stat("/etc"); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func TestDerivedDocumentIsMarked(t *testing.T) {
	v := sampleView(t)
	for level, want := range map[string]string{restorepoint.ConsistencyApplication: object.Filesystem, restorepoint.ConsistencyFilesystem: object.Filesystem, restorepoint.ConsistencyCrash: object.Crash} {
		m := &restorepoint.Manifest{ID: "p1", Time: time.Unix(1e9, 0), Consistency: restorepoint.Consistency{Level: level, Reason: strings.Repeat("why", 4000)}}
		d, err := Derive(func(context.Context, discover.Root) (*object.Document, error) {
			return &object.Document{Source: object.SourceAgent, Agent: "9", Objects: []object.Object{{Name: "x", Consistency: object.Consistency{Level: object.Application}, Steps: []object.Step{{Phase: "pre"}}}}}, nil
		})(t.Context(), m, v)
		if err != nil {
			t.Fatal(err)
		}
		o := d.Objects[0]
		if d.Source != object.SourceImage || d.Agent != "" || d.Point != "p1" || !d.Taken.Equal(m.Time) || !o.Derived || o.Steps != nil || o.Consistency.Level != want {
			t.Errorf("of a point that is %s: %+v", level, d)
		}
		if _, err := object.Encode(d); err != nil {
			t.Error(err)
		}
	}
}

func TestFailuresToDerive(t *testing.T) {
	v, m := sampleView(t), new(restorepoint.Manifest)
	look := func(name string, then error) Finder {
		return func(_ context.Context, root discover.Root) (*object.Document, error) {
			_, err := root.Stat(name)
			if err != nil && then != nil {
				return nil, err
			}
			return nil, then
		}
	}
	if d, err := Derive(look("/etc", nil))(t.Context(), m, v); err != nil || len(d.Objects) != 0 {
		t.Errorf("nothing found: %+v, %v", d, err)
	}
	own := errors.New("its own")
	if _, err := Derive(look("/etc", own))(t.Context(), m, v); !errors.Is(err, own) || errors.Is(err, fs.ErrTryAgain) {
		t.Errorf("a failure of the finder: %v", err)
	}
	if _, err := Derive(look("/lost/x", nil))(t.Context(), m, v); !errors.Is(err, fs.ErrTryAgain) {
		t.Errorf("a store that did not answer, and a finder that does not mind: %v", err)
	}
	if d, err := Derive(look("/torn/x", nil))(t.Context(), m, v); err != nil || d == nil {
		t.Errorf("a file that is damaged for good: %v", err)
	}
	if _, err := Derive(nil)(t.Context(), m, v); !errors.Is(err, ErrNoFinder) {
		t.Errorf("no finder: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := Derive(func(ctx context.Context, _ discover.Root) (*object.Document, error) {
		<-ctx.Done()
		return new(object.Document), nil
	})(ctx, m, v)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("late: %v", err)
	}
}
