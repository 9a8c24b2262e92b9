package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/cmd/internal/wire"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// addPointAfter stores what differs between two images as a point behind
// another one, as an incremental backup would.
func (h *host) addPointAfter(parent string, now, old []byte, at time.Time) string {
	h.t.Helper()
	ctx := context.Background()
	fatal := func(err error) {
		h.t.Helper()
		if err != nil {
			h.t.Fatal(err)
		}
	}
	var id string
	h.catalogue(func(repo *wire.Repo, cat *wire.Catalogue) {
		pm, err := cat.Manifest(ctx, parent)
		fatal(err)
		before, err := cat.Map(pm, "vda")
		fatal(err)
		s, err := repo.Store.Begin(ctx, nothing{}, nil)
		fatal(err)
		defer s.Close()
		b, err := restorepoint.NewBuilder(ctx, s, before, int64(len(now)))
		fatal(err)
		const cluster = 64 << 10
		for off := 0; off < len(now); off += cluster {
			end := min(off+cluster, len(now))
			if bytes.Equal(now[off:end], old[off:end]) {
				continue
			}
			buf, err := s.Buffer(ctx)
			fatal(err)
			batch := &chunkstore.Batch{Data: buf[:copy(buf, now[off:end])]}
			batch.Parent = make([]chunk.Loc, len(batch.Data)/chunk.Size)
			first := int64(off / chunk.Size)
			fatal(b.ParentLocs(first, batch.Parent))
			batch.Placed = func(l []chunk.Loc) error { return b.Set(first, l) }
			fatal(s.Append(ctx, batch))
		}
		fatal(s.Flush(ctx))
		fatal(b.Finish())
		fatal(s.FlushRecords(ctx))
		m := restorepoint.Manifest{Version: 1, ID: s.ID().String(), VM: restorepoint.VM{Name: "web01"}, Time: at, Read: "incremental", Parent: parent, Reason: "a test",
			Consistency: restorepoint.Consistency{Level: "crash", Reason: "a test"}, Disks: []restorepoint.Disk{{Name: "vda", Size: int64(len(now)), MapRoot: b.Root()}}}
		body, err := json.Marshal(m)
		fatal(err)
		fatal(s.Commit(ctx, body))
		id = m.ID
	})
	return id
}

// catalogue opens the repository for f.
func (h *host) catalogue(f func(*wire.Repo, *wire.Catalogue)) {
	h.t.Helper()
	repo, err := wire.OpenRepo(context.Background(), h.repo, wire.Secret{File: os.Getenv("CAIRN_PASSWORD_FILE")}, h.dirs)
	if err != nil {
		h.t.Fatal(err)
	}
	defer repo.Close()
	cat := repo.NewCatalogue(context.Background(), 8<<20)
	defer cat.Close()
	f(repo, cat)
}

// sameFiles holds a point's stored catalogue against one made by a walk, and
// gives how it was made.
func (h *host) sameFiles(id string) catalogue.Made {
	h.t.Helper()
	var made catalogue.Made
	h.catalogue(func(_ *wire.Repo, cat *wire.Catalogue) {
		m, err := cat.Manifest(h.t.Context(), id)
		if err != nil {
			h.t.Fatal(err)
		}
		stored, err := cat.Files(h.t.Context(), m)
		if err != nil {
			h.t.Fatal(err)
		}
		walked, err := cat.Walk(h.t.Context(), m)
		if err != nil {
			h.t.Fatal(err)
		}
		if len(stored.Root.Volumes) != 1 || stored.Root.Volumes[0].Top == nil || len(stored.Root.Mounts) != 1 || stored.Root.Mounts[0].Path != "/" {
			h.t.Fatalf("root %+v", stored.Root)
		}
		a, b := stored.Root.Volumes[0].Top, walked.Root.Volumes[0].Top
		if a.Dir.Hash != b.Dir.Hash || a.Ctime != b.Ctime {
			h.t.Errorf("the stored catalogue is not that of a walk: %+v, %+v", a, b)
		}
		if _, err := walked.Directory(h.t.Context(), *b.Dir); err != nil {
			h.t.Error(err)
		}
		made = stored.Root.Made
	})
	return made
}

// history makes a repository with a point of an ext4 and one after it, in
// which little changed.
func (h *host) history() (first, second string) {
	h.t.Helper()
	filesystemtest.NeedRoot(h.t)
	filesystemtest.NeedTool(h.t, "mkfs.ext4")
	image := filesystemtest.Image(h.t, 24<<20, "mkfs.ext4", "-q", "-N", "2048")
	write := func(change func(dir string)) []byte {
		dir, unmount := filesystemtest.LoopMount(h.t, image, "")
		change(dir)
		unmount()
		b, err := os.ReadFile(image)
		if err != nil {
			h.t.Fatal(err)
		}
		return b
	}
	put := func(dir, name, text string) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			h.t.Fatal(err)
		}
	}
	old := write(func(dir string) {
		for _, d := range []string{"etc", "usr/lib", "home/anna", "var/log"} {
			for _, f := range strings.Fields("a b c d e f g h i j k l m n o p q r s t u v w x y z") {
				put(dir, d+"/"+f, d+f)
			}
		}
	})
	now := write(func(dir string) {
		put(dir, "home/anna/new", "new")
		if err := os.Remove(filepath.Join(dir, "var/log/c")); err != nil {
			h.t.Fatal(err)
		}
	})
	h.must(exitOK, "init")
	first = h.addPoint(old, time.Date(2026, 10, 1, 2, 0, 0, 0, time.UTC))
	second = h.addPointAfter(first, now, old, time.Date(2026, 10, 2, 2, 0, 0, 0, time.UTC))
	return first, second
}

// Goal: catalogues of files are made, shown, checked and made anew, and no
// other command takes them for points.
func TestCatalogueOfFiles(t *testing.T) {
	h := newHost(t)
	first, second := h.history()
	if out, errs := h.must(exitOK, "catalogue"); strings.Count(out, "none") != 2 || !strings.Contains(errs, "cairn catalogue --all") {
		t.Errorf("before: %s%s", out, errs)
	}
	if out, _ := h.must(exitOK, "show", "web01@latest"); !strings.Contains(out, "none; make it with: cairn catalogue web01@2026-10-02T02-00-00Z") {
		t.Errorf("show: %s", out)
	}
	if out, _ := h.must(exitOK, "catalogue", first); !strings.Contains(out, "made") || !strings.Contains(out, "all folders read") {
		t.Errorf("first: %s", out)
	}
	if out, _ := h.must(exitOK, "catalogue", "--all", "--json"); strings.Count(out, `"state":"made"`) != 1 || strings.Count(out, `"state":"stored"`) != 1 {
		t.Errorf("all: %s", out)
	}
	if m := h.sameFiles(first); m.Parent != "" || m.Incremental != 0 {
		t.Errorf("first: %+v", m)
	}
	if m := h.sameFiles(second); m.Parent != first || m.Incremental != 1 || m.Stored > 6 || m.Inodes > 60 {
		t.Errorf("second: %+v", m)
	}
	two := func(what string) {
		t.Helper()
		if out, _ := h.must(exitOK, "points", "--json"); strings.Count(out, `"vm":"web01"`) != 2 {
			t.Errorf("%s: points %s", what, out)
		}
		if out, _ := h.must(exitOK, "repair", "index"); !strings.Contains(out, ": 2 points") {
			t.Errorf("%s: repair index: %s", what, out)
		}
		if out, _ := h.must(exitOK, "points", "--json"); strings.Count(out, `"vm":"web01"`) != 2 {
			t.Errorf("%s: points from the index %s", what, out)
		}
	}
	two("made")
	if out, _ := h.must(exitOK, "check"); !strings.Contains(out, "checked 2 points, 2 catalogues") {
		t.Errorf("check: %s", out)
	}
	if out, _ := h.must(exitOK, "show", "web01@latest"); !strings.Contains(out, "from what changed since "+first[:8]) {
		t.Errorf("show: %s", out)
	}
	// A damaged node harms no point.
	h.damagePacks(first)
	out, _ := h.must(exitDamage, "check")
	if strings.Count(out, "DAMAGE: catalogue") == 0 || strings.Contains(out, "DAMAGE: point") || !strings.Contains(out, "cairn catalogue --rebuild web01@2026-10-01T02-00-00Z") {
		t.Errorf("check of a damaged one: %s", out)
	}
	if out, _ := h.must(exitOK, "cat", first+":/etc/a"); out != "etca" {
		t.Errorf("cat: %q", out)
	}
	h.must(exitOK, "catalogue", "--rebuild", "--all")
	h.must(exitOK, "check")
	h.sameFiles(first)
	h.sameFiles(second)
	two("made anew")
	// So does a damaged commit.
	id := chunkstore.CatalogueSession(session(t, second), 1)
	if err := os.WriteFile(filepath.Join(h.repo, "points", id.String()), []byte("rubbish"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, errs := h.must(exitWarnings, "catalogue"); strings.Count(out, "damaged") != 1 || !strings.Contains(errs, "--rebuild") {
		t.Errorf("damaged: %s%s", out, errs)
	}
	if out, _ := h.must(exitOK, "show", second); !strings.Contains(out, "damaged, the point is not") {
		t.Errorf("show: %s", out)
	}
	h.must(exitDamage, "check")
	two("damaged")
	h.must(exitOK, "catalogue", second)
	h.must(exitOK, "check")
	for _, argv := range [][]string{{"catalogue", "--all", first}, {"catalogue", "--rebuild"}, {"catalogue", "web02@latest"}} {
		h.must(exitUsage, argv...)
	}
}

func session(t *testing.T, id string) chunk.SessionID {
	t.Helper()
	s, err := chunkstore.ParseSessionID(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// damagePacks flips a byte in the middle of each pack of a point's catalogue.
func (h *host) damagePacks(point string) {
	h.t.Helper()
	packs, err := filepath.Glob(filepath.Join(h.repo, "packs", chunkstore.CatalogueSession(session(h.t, point), 0).String(), "*"))
	if err != nil || len(packs) == 0 {
		h.t.Fatalf("packs %v, %v", packs, err)
	}
	for _, name := range packs {
		b, err := os.ReadFile(name)
		if err != nil {
			h.t.Fatal(err)
		}
		b[60] ^= 1
		if err := errors.Join(os.Remove(name), os.WriteFile(name, b, 0o644)); err != nil {
			h.t.Fatal(err)
		}
	}
}

// One that is interrupted leaves no catalogue, and the next try makes it.
func TestInterruptedCatalogue(t *testing.T) {
	h := newHost(t)
	first, second := h.history()
	h.catalogue(func(_ *wire.Repo, cat *wire.Catalogue) {
		m, err := cat.Manifest(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stop := func(string, int64) (func(int64), func()) { return func(int64) { cancel() }, func() {} }
		if _, _, err := cat.Make(ctx, m, wire.MakeOptions{Progress: stop}); !errors.Is(err, context.Canceled) {
			t.Fatalf("interrupted: %v", err)
		}
		if _, err := cat.Files(t.Context(), m); !errors.Is(err, catalogue.ErrNone) {
			t.Errorf("after an interrupt: %v", err)
		}
	})
	h.must(exitOK, "points")
	h.must(exitOK, "check")
	h.must(exitOK, "catalogue", "--all")
	h.sameFiles(first)
	if m := h.sameFiles(second); m.Parent != first {
		t.Errorf("second: %+v", m)
	}
}

// After a backup a catalogue that cannot be made is a warning.
func TestCatalogueAfterBackup(t *testing.T) {
	h := newHost(t)
	first, _ := h.history()
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs}
	h.catalogue(func(_ *wire.Repo, cat *wire.Catalogue) {
		m, err := cat.Manifest(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name  string
			limit time.Duration
			stop  bool
			says  string
			want  error
		}{
			{"too slow", time.Nanosecond, false, "it took too long", errWarnings},
			{"interrupted", 0, true, "interrupted; make it with: cairn catalogue web01@2026-10-01T02-00-00Z", errWarnings},
			{"good", time.Minute, false, "catalogue of files: ", nil},
		} {
			errs.Reset()
			ctx, cancel := context.WithCancel(t.Context())
			if c.stop {
				cancel()
			}
			files := a.catalogueAfter(ctx, cat, true, c.limit, 1)
			files.add(m)
			if err := files.finish(); !errors.Is(err, c.want) || !strings.Contains(errs.String(), c.says) {
				t.Errorf("%s: %v, %q", c.name, err, errs.String())
			}
			cancel()
		}
	})
	h.sameFiles(first)
	none := a.catalogueAfter(t.Context(), nil, false, 0, 1)
	none.add(nil)
	if err := none.finish(); err != nil {
		t.Error(err)
	}
}
