package library_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/library"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/web/webtest"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// repository makes a real one with a point of web01.
func repository(t *testing.T) *webtest.Repository {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	r, err := webtest.NewRepository(t.Context(), t.TempDir(), "main", 0)
	must(t, err)
	t.Cleanup(func() { r.Close() })
	_, err = r.Point(t.Context(), "web01", time.Now().Add(-time.Hour), false, true, nil)
	must(t, err)
	return r
}

// until waits for a snapshot.
func until(t *testing.T, l *library.Library, what string, ok func(*library.Snapshot) bool) *library.Snapshot {
	t.Helper()
	for range 400 {
		if s := l.Snapshot("main"); ok(s) {
			return s
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it does not become true that %s: %+v", what, l.Snapshot("main"))
	return nil
}

func read(s *library.Snapshot) bool { return !s.AsOf.IsZero() && s.Problem == "" }

// What 10,000 points cost in memory.
func TestTenThousandPoints(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // what waited for its finalizer
	runtime.ReadMemStats(&before)
	points := make([]restorepoint.Summary, 10_000)
	reason := "vda: incremental: bitmap cairn-b3f94e59 recorded all changes since the last point"
	for i := range points {
		points[i] = restorepoint.Summary{ID: fmt.Sprintf("%032x", i), Parent: fmt.Sprintf("%032x", i-200), VM: fmt.Sprintf("vm%03d", i%200), Time: time.Unix(int64(i)*3600, 0), Read: "incremental", Reason: reason,
			Consistency: restorepoint.Consistency{Level: "application", Reason: "postgresql@15-main and redis were told; 2 filesystems frozen"}, Disks: []restorepoint.DiskSize{{Name: "vda", Size: 1 << 35}, {Name: "vdb", Size: 1 << 35}}}
	}
	s := library.NewSnapshot("main", points, time.Now())
	runtime.GC()
	runtime.ReadMemStats(&after)
	cost := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("10,000 points: %.1f MiB, %d bytes each", float64(cost)/(1<<20), cost/10_000)
	if cost > 16<<20 {
		t.Errorf("10,000 points take %d bytes", cost)
	}
	if len(s.VMs()) != 200 || len(s.Of("vm007")) != 50 {
		t.Errorf("%d VMs, %d points", len(s.VMs()), len(s.Of("vm007")))
	}
}

func TestSnapshotFollowsTheBook(t *testing.T) {
	r := repository(t)
	book, err := runs.Open(t.TempDir())
	must(t, err)
	defer book.Close()
	l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{r.Config}, Dirs: r.Dirs, Book: book, Every: time.Hour})
	defer l.Close()
	s := until(t, l, "it was read", read)
	if len(s.Points) != 1 || s.Points[0].VM != "web01" || len(s.Of("web01")) != 1 || s.Unreadable != "" || len(s.Sizes) != 1 || s.Sizes[0].Bytes == 0 {
		t.Fatalf("%+v", s)
	}
	id, err := r.Point(t.Context(), "db02", time.Now(), true, false, nil)
	must(t, err)
	run := webtest.NewRun("db02", time.Now())
	must(t, book.Begin(run))
	run.Ended, run.Outcome = time.Now(), runs.Done
	must(t, book.End(run))
	s = until(t, l, "the new point is there", func(s *library.Snapshot) bool { return len(s.Points) == 2 })
	if p, ok := s.Point(id); !ok || p.VM != "db02" {
		t.Errorf("%+v", s.Points)
	}
	if p, ok := s.Latest("db02"); !ok || p.ID != id {
		t.Errorf("latest %+v", p)
	}
	points, at, err := l.Points(t.Context(), "main")
	if len(points) != 2 || at.IsZero() || err != nil {
		t.Error(len(points), at, err)
	}
	if _, _, err := l.Points(t.Context(), "nope"); !errors.Is(err, library.ErrUnknown) {
		t.Error(err)
	}
	if _, _, err := l.Catalogue(t.Context(), "nope"); !errors.Is(err, library.ErrUnknown) {
		t.Error(err)
	}
	cat, release, err := l.Catalogue(t.Context(), "main")
	must(t, err)
	m, err := cat.Manifest(t.Context(), id)
	release()
	release() // twice is once
	if err != nil || m.VM.Name != "db02" {
		t.Error(m, err)
	}
}

// A repository that goes away keeps its points, says so, keeps nobody waiting, and
// is there again when it comes back. Another one does not notice.
func TestAwayAndBack(t *testing.T) {
	r := repository(t)
	other := r.Config
	other.Name = "never"
	other.Address = filepath.Join(t.TempDir(), "not-mounted")
	l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{r.Config, other}, Dirs: r.Dirs, Every: 50 * time.Millisecond, Patience: 300 * time.Millisecond})
	defer l.Close()
	until(t, l, "it was read", read)
	must(t, os.Rename(r.Config.Address, r.Config.Address+".away"))
	s := until(t, l, "it is away", func(s *library.Snapshot) bool { return s.Problem != "" })
	if len(s.Points) != 1 || s.AsOf.IsZero() || len(s.Sizes) != 1 {
		t.Errorf("the old points are gone: %+v", s)
	}
	points, _, err := l.Points(t.Context(), "main")
	if len(points) != 1 || !errors.Is(err, library.ErrAway) {
		t.Error(points, err)
	}
	began := time.Now()
	for _, name := range []string{"main", "never"} {
		if _, _, err := l.Catalogue(t.Context(), name); !errors.Is(err, library.ErrAway) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v to say that they are away", took)
	}
	if s := l.Snapshot("never"); !s.AsOf.IsZero() || !strings.Contains(s.Problem, "no repository") || !s.Tried {
		t.Errorf("%+v", s)
	}
	must(t, os.Rename(r.Config.Address+".away", r.Config.Address))
	until(t, l, "it is back", read)
	cat, release, err := l.Catalogue(t.Context(), "main")
	must(t, err)
	defer release()
	if _, err := cat.Manifest(t.Context(), points[0].ID); err != nil {
		t.Error(err)
	}
}

// A repository is opened anew after some hours; who uses the one before is not
// disturbed.
func TestOpenedAnew(t *testing.T) {
	r := repository(t)
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{r.Config}, Dirs: r.Dirs, Every: 20 * time.Millisecond, Now: func() time.Time { return time.Unix(0, now.Load()) }})
	defer l.Close()
	s := until(t, l, "it was read", read)
	old, release, err := l.Catalogue(t.Context(), "main")
	must(t, err)
	now.Add(int64(7 * time.Hour))
	for range 200 {
		cat, done, err := l.Catalogue(t.Context(), "main")
		must(t, err)
		done()
		if cat != old {
			if _, err := old.Manifest(t.Context(), s.Points[0].ID); err != nil {
				t.Errorf("the old one is closed while it is used: %v", err)
			}
			release()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("it stays open")
}

// The other places of a repository open it when its address does not.
func TestOtherPlacesOpenIt(t *testing.T) {
	r := repository(t)
	c := r.Config
	c.Address, c.Places = filepath.Join(t.TempDir(), "gone"), []string{r.Config.Address}
	l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{c}, Dirs: r.Dirs})
	defer l.Close()
	until(t, l, "it was read", read)
}

// A manifest that is damaged is named, and hides no other point.
func TestDamagedManifest(t *testing.T) {
	r := repository(t)
	id, err := r.Point(t.Context(), "db02", time.Now(), true, false, nil)
	must(t, err)
	name := filepath.Join(r.Config.Address, "points", id)
	b, err := os.ReadFile(name)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(name, b, 0o600))
	l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{r.Config}, Dirs: r.Dirs})
	defer l.Close()
	s := until(t, l, "it is damaged", func(s *library.Snapshot) bool { return s.Tried && len(s.Damaged) == 1 })
	if len(s.Points) != 1 || s.Damaged[id] == "" {
		t.Errorf("%+v", s)
	}
}

// A key that may only write cannot read guests' files, and the snapshot says so.
func TestAKeyThatCannotRead(t *testing.T) {
	dir := t.TempDir()
	where := filepath.Join(dir, "repo")
	secret, _, err := seal.NewIdentity() // no passphrase: its derivation takes seconds
	must(t, err)
	_, err = wire.InitRepo(t.Context(), where, chunkstore.InitOptions{Now: time.Now, Secrets: []string{secret}})
	must(t, err)
	pass, key := filepath.Join(dir, "pass"), filepath.Join(dir, "key")
	must(t, os.WriteFile(pass, []byte(secret+"\n"), 0o600))
	must(t, webtest.AddWriteKey(t.Context(), where, pass, key))
	dirs := config.Dirs{Cache: filepath.Join(dir, "cache"), State: filepath.Join(dir, "state")}
	l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{{Name: "main", Address: where, KeyFile: key}}, Dirs: dirs})
	defer l.Close()
	if s := until(t, l, "it was read", read); s.Unreadable == "" {
		t.Error("nobody says that files cannot be read")
	}
	wrong := library.Open(t.Context(), library.Options{Repositories: []config.Repository{{Name: "main", Address: where, KeyFile: filepath.Join(dir, "none")}}, Dirs: dirs})
	defer wrong.Close()
	until(t, wrong, "the secret is missed", func(s *library.Snapshot) bool { return s.Tried && strings.Contains(s.Problem, "password file") })
}

// The sizes of the days are kept over a restart.
func TestSizesAreKept(t *testing.T) {
	r := repository(t)
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for day := range 3 {
		l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{r.Config}, Dirs: r.Dirs, Now: func() time.Time { return now.AddDate(0, 0, day) }})
		s := until(t, l, "it was read", read)
		if len(s.Sizes) != day+1 || s.Sizes[day].Day != fmt.Sprintf("2026-11-%02d", day+1) || s.Sizes[0].Disks != 24<<20 {
			t.Errorf("day %d: %+v", day, s.Sizes)
		}
		l.Close()
	}
	file := filepath.Join(r.Dirs.State, "web", "sizes-"+r.ID()+".json")
	must(t, os.WriteFile(file, []byte(`[{"day":"x"},{"day":"2026-11-02","bytes":-1}`), 0o600))
	l := library.Open(t.Context(), library.Options{Repositories: []config.Repository{r.Config}, Dirs: r.Dirs, Now: func() time.Time { return now }})
	defer l.Close()
	if s := until(t, l, "it was read", read); len(s.Sizes) != 1 {
		t.Errorf("of a damaged file: %+v", s.Sizes)
	}
}
