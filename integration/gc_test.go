package integration

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// gcSummary is what `cairn gc --json` prints.
type gcSummary struct {
	DryRun        bool  `json:"dry_run"`
	Points        int   `json:"points"`
	PacksRemoved  int   `json:"packs_removed"`
	BytesRemoved  int64 `json:"bytes_removed"`
	PacksCopied   int   `json:"packs_copied"`
	PointsRemoved int   `json:"points_removed"`
	Unfinished    bool  `json:"unfinished"`
}

// gc runs gc and gives its summary.
func (h *host) gc(t *testing.T, args ...string) gcSummary {
	t.Helper()
	r := h.run(t, exitOK, append([]string{"gc", "--json", "--quiet"}, args...)...)
	var s gcSummary
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("%v: %s", err, r.stdout)
	}
	return s
}

// stored is what lies in the repository's packs.
func (h *host) stored(t *testing.T) (files int, size int64) {
	t.Helper()
	for _, name := range listFiles(t, filepath.Join(h.repo, "packs")) {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		files, size = files+1, size+st.Size()
	}
	return files, size
}

// offVM is a VM that is off, with one raw disk.
type offVM struct {
	h     *host
	image string
}

func newOffVM(t *testing.T, h *host) *offVM {
	t.Helper()
	v := &offVM{h, filepath.Join(t.TempDir(), "vda.raw")}
	if err := os.WriteFile(v.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", "/nonexistent", "--disk", "vda="+v.image+",format=raw")
	return v
}

// backUp makes a point of what is given as the disk.
func (v *offVM) backUp(t *testing.T, disk []byte) (id string) {
	t.Helper()
	if err := os.WriteFile(v.image, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	v.h.run(t, exitOK, "backup", vmName, "--quiet", "--every-block")
	points := v.h.points(t)
	return points[len(points)-1].ID
}

// restored compares a point with what it must hold.
func (v *offVM) restored(t *testing.T, id string, want []byte) {
	t.Helper()
	to := filepath.Join(t.TempDir(), "disk")
	v.h.run(t, exitOK, "restore", id, "--disk", "vda", "--to", to)
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("point %s is not what it was: %v", id[:8], err)
	}
}

// noise fills p so that no two chunks are equal.
func noise(p []byte, seed byte) { _, _ = rand.NewChaCha8([32]byte{seed}).Read(p) } // never fails

// Goal: what forgotten points alone need is gone from the disk; what others need
// moves where a pack is nearly empty, and everything that is left restores as
// it was, is found by the next backup, and stands every check.
func TestGC(t *testing.T) {
	h := newHost(t)
	first, second := make([]byte, 8<<20), make([]byte, 8<<20)
	noise(first[:6<<20], 7)
	noise(second[:6<<20], 11)
	copy(second[5<<20:6<<20], first[5<<20:])
	v := newOffVM(t, h)
	one, two := v.backUp(t, first), v.backUp(t, second)
	if s := h.gc(t); s.PacksRemoved != 0 || s.Points != 2 {
		t.Fatalf("nothing is forgotten: %+v", s)
	}
	_, before := h.stored(t)
	h.run(t, exitOK, "forget", one)
	if s := h.gc(t, "--dry-run"); s.PacksRemoved == 0 || s.BytesRemoved == 0 || !s.DryRun {
		t.Errorf("dry run: %+v", s)
	}
	if _, now := h.stored(t); now != before {
		t.Errorf("a dry run changed %d bytes to %d", before, now)
	}
	s := h.gc(t)
	_, after := h.stored(t)
	if s.PacksRemoved == 0 || s.PacksCopied == 0 || s.PointsRemoved == 0 || after >= before*3/4 {
		t.Errorf("%+v; %d bytes were stored, %d are", s, before, after)
	}
	h.run(t, exitOK, "check", "--read-data")
	v.restored(t, two, second)
	third := bytes.Clone(second)
	third[7<<20] = 9
	three := v.backUp(t, third)
	if _, now := h.stored(t); now-after > 128<<10 {
		t.Errorf("one chunk more took %d bytes", now-after)
	}
	h.run(t, exitOK, "forget", two)
	h.gc(t)
	v.restored(t, three, third)
	if s := h.gc(t); s.PacksRemoved+s.PointsRemoved+s.PacksCopied != 0 {
		t.Errorf("there was more to remove: %+v", s)
	}
	if r := h.run(t, exitOK, "check", "--read-data"); strings.Contains(r.stdout, "note:") {
		t.Errorf("check has doubts about what gc left: %s", r.stdout)
	}
	h.run(t, exitOK, "repair", "index")
	if r := h.run(t, exitOK, "gc"); !strings.Contains(r.stdout, "1 points need") || !strings.Contains(r.stdout, "removed 0 packs") {
		t.Errorf("gc says %q", r.stdout)
	}
	for _, args := range [][]string{{"gc", "--rewrite", "96"}, {"gc", "--fence-after", "1m"}, {"gc", "x"}} {
		h.run(t, exitUsage, args...)
	}
}

// Nothing is removed while a point cannot be read whole.
func TestGCStopsAtDamage(t *testing.T) {
	h := newHost(t)
	v := newOffVM(t, h)
	disk := make([]byte, 1<<20)
	noise(disk, 5)
	one := v.backUp(t, disk)
	noise(disk, 9)
	two := v.backUp(t, disk)
	h.run(t, exitOK, "forget", one)
	name := filepath.Join(h.repo, "points", two)
	if err := os.WriteFile(name, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, _ := h.stored(t)
	if r := h.run(t, exitDamage, "gc"); !strings.Contains(r.stderr, "points/"+two) {
		t.Errorf("gc says %q", r.stderr)
	}
	if now, _ := h.stored(t); now != files {
		t.Errorf("%d packs became %d", files, now)
	}
}
