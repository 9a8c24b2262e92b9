package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/local"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// forge stores a point of web01 as somebody does who has the repository's keys
// and access to the place, and is no host of it.
func (h *host) forge(like string, at time.Time) string {
	h.t.Helper()
	ctx := context.Background()
	repo, err := wire.OpenRepo(ctx, h.repo, wire.Secret{File: os.Getenv("CAIRN_PASSWORD_FILE")}, h.dirs)
	if err != nil {
		h.t.Fatal(err)
	}
	defer repo.Close()
	m, err := wire.ReadManifest(ctx, repo.Store, like)
	if err != nil {
		h.t.Fatal(err)
	}
	place, err := local.Open(h.repo)
	if err != nil {
		h.t.Fatal(err)
	}
	defer place.Close()
	s, err := chunkstore.NewStore(place, repo.Store.Config, repo.Store.Keys()).Begin(ctx, nothing{}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	m.ID, m.Time = s.ID().String(), at
	body, err := json.Marshal(m)
	if err == nil {
		err = s.Commit(ctx, body)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return m.ID
}

// A point that no host signed is told of, restored with a warning, and does not
// push out others; a revoked host's new points are like it.
func TestForgedPoint(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init", "--no-recovery-key")
	img := bytes.Repeat([]byte("what the guest wrote "), 10_000)
	day := time.Date(2026, 10, 1, 2, 0, 0, 0, time.UTC)
	first := h.addPoint(img, day)
	if _, errs := h.must(exitOK, "check"); errs != "" && strings.Contains(errs, "vouches") {
		t.Errorf("all is well: %s", errs)
	}
	if out, _ := h.must(exitOK, "key", "ls"); strings.Count(out, "it signs points") != 1 {
		t.Errorf("key ls:\n%s", out)
	}
	forged := h.forge(first, day.AddDate(0, 0, 1))
	out, _ := h.must(exitDamage, "check", "--json")
	if !strings.Contains(out, `"untrusted"`) || !strings.Contains(out, forged) {
		t.Errorf("check: %s", out)
	}
	to := filepath.Join(t.TempDir(), "vda.raw")
	_, errs := h.must(exitOK, "restore", forged[:12], "--disk", "vda", "--to", to)
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, img) || !strings.Contains(errs, "no host of this repository vouches") {
		t.Errorf("restored with: %s (%v)", errs, err)
	}
	// The newest is kept, and that is not the forged one, which stays, too.
	h.must(exitOK, "forget", "--keep-last", "1")
	h.must(exitOK, "gc")
	var all struct{ Points []pointJSON }
	out, _ = h.must(exitOK, "points", "--json")
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all.Points) != 2 {
		t.Fatalf("left: %s, %v", out, err)
	}
	h.must(exitOK, "forget", forged[:12])
	// Revoked, with a point that comes later.
	var keys struct{ Keys []keyJSON }
	out, _ = h.must(exitOK, "key", "ls", "--json")
	if err := json.Unmarshal([]byte(out), &keys); err != nil || keys.Keys[len(keys.Keys)-1].Kind != kindHost {
		t.Fatalf("%s, %v", out, err)
	}
	repo, err := wire.OpenRepo(t.Context(), h.repo, wire.Secret{File: os.Getenv("CAIRN_PASSWORD_FILE")}, h.dirs)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	if _, err := repo.Store.ReadCommit(t.Context(), idOf(t, first)); err != nil { // it knows its own key from now on
		t.Fatal(err)
	}
	h.must(exitOK, "key", "rm", keys.Keys[len(keys.Keys)-1].ID[:8])
	if out, _ := h.must(exitOK, "key", "ls"); !strings.Contains(out, "revoked 2") {
		t.Errorf("key ls:\n%s", out)
	}
	s, err := repo.Store.Begin(t.Context(), nothing{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m := restorepoint.Manifest{Version: 1, ID: s.ID().String(), VM: restorepoint.VM{Name: "web01"}, Time: day.AddDate(0, 0, 3), Read: "full"}
	body, err := json.Marshal(m)
	if err == nil {
		err = s.Commit(t.Context(), body)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := h.must(exitDamage, "check", "--json"); strings.Count(out, `"untrusted"`) != 1 || !strings.Contains(out, m.ID) {
		t.Errorf("after the revocation: %s", out)
	}
}

func idOf(t *testing.T, text string) chunkstore.SessionID {
	t.Helper()
	id, err := chunkstore.ParseSessionID(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A place that shows an older state is told of by every command of a host that
// has seen more, until it shows the rest again; gc removes nothing; and a host
// that has seen nothing restores what there is.
func TestRolledBackPlace(t *testing.T) {
	h := newHost(t)
	h.must(exitOK, "init", "--no-recovery-key")
	day := time.Date(2026, 10, 1, 2, 0, 0, 0, time.UTC)
	img := bytes.Repeat([]byte("what the guest wrote "), 10_000)
	first := h.addPoint(img, day)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(h.repo)); err != nil {
		t.Fatal(err)
	}
	second := h.addPoint(img, day.AddDate(0, 0, 1))
	h.must(exitOK, "points")
	newer := h.repo + ".newer"
	for _, move := range [][2]string{{h.repo, newer}, {old, h.repo}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		_, errs := h.must(exitWarnings, "points")
		if !strings.Contains(errs, "older state") || !strings.Contains(errs, second) {
			t.Errorf("points says: %s", errs)
		}
	}
	if _, errs := h.must(exitDamage, "gc"); !strings.Contains(errs, "nothing is removed") {
		t.Errorf("gc says: %s", errs)
	}
	// What comes on top of the older state does not end the warning.
	third := h.addPoint(img, day.AddDate(0, 0, 2))
	if _, errs := h.must(exitWarnings, "points"); !strings.Contains(errs, second) {
		t.Errorf("points says: %s", errs)
	}
	// A bare host.
	state := h.dirs.State
	t.Setenv("CAIRN_STATE_DIR", filepath.Join(t.TempDir(), "state"))
	t.Setenv("CAIRN_CACHE_DIR", filepath.Join(t.TempDir(), "cache"))
	to := filepath.Join(t.TempDir(), "vda.raw")
	_, errs := h.must(exitOK, "restore", first[:12], "--disk", "vda", "--to", to)
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, img) || strings.Contains(errs, "warning") {
		t.Errorf("a bare host: %s, %v", errs, err)
	}
	t.Setenv("CAIRN_STATE_DIR", state)
	// The missing one comes back.
	for _, dir := range []string{"packs", "points", "sessions"} {
		from := filepath.Join(newer, dir)
		err := filepath.Walk(from, func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() || !strings.Contains(path, second) {
				return err
			}
			rel, err := filepath.Rel(newer, path)
			if err == nil {
				err = os.MkdirAll(filepath.Join(h.repo, filepath.Dir(rel)), 0o700)
			}
			if err == nil {
				err = os.Link(path, filepath.Join(h.repo, rel))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, errs := h.must(exitOK, "points"); strings.Contains(errs, "older state") {
		t.Errorf("all is back: %s", errs)
	}
	// What is forgotten is missed by nobody, the newest that was seen included.
	h.must(exitOK, "forget", second[:12], third[:12])
	h.must(exitOK, "gc")
	if _, errs := h.must(exitOK, "points"); errs != "" {
		t.Errorf("after forget and gc: %s", errs)
	}
}
