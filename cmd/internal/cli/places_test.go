package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/backend/spread"
)

// spreadHost is a host whose repository lies in six places.
type spreadHost struct {
	*host
	places []string
	img    []byte
}

func newSpreadHost(t *testing.T, shards string, n int) *spreadHost {
	t.Helper()
	h := &spreadHost{host: newHost(t), img: sampleImage(t)}
	argv := []string{"init", "--shards", shards}
	for i := range n {
		h.places = append(h.places, filepath.Join(t.TempDir(), fmt.Sprintf("d%d", i+1)))
		argv = append(argv, "--place", h.places[i])
	}
	h.must(exitOK, argv...)
	return h
}

// reads restores the newest point and compares it.
func (h *spreadHost) reads(argv ...string) string {
	h.t.Helper()
	raw := filepath.Join(h.t.TempDir(), "disk.raw")
	_, errs := h.must(exitOK, append([]string{"restore", "web01@latest", "--disk", "vda", "--to", raw}, argv...)...)
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, h.img) {
		h.t.Fatalf("the restored disk differs (%v)", err)
	}
	return errs
}

// states gives what place ls says, by place.
func (h *spreadHost) states(code int) map[string]spread.PlaceState {
	h.t.Helper()
	out, _ := h.must(code, "place", "ls", "--json")
	var list struct {
		Places []spread.PlaceState `json:"places"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Places) != len(h.places) {
		h.t.Fatalf("place ls: %s (%v)", out, err)
	}
	by := map[string]spread.PlaceState{}
	for _, s := range list.Places {
		by[s.Spec] = s
	}
	return by
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// The life of a repository in six places: two die, backups and restores go on
// and say so, one comes back and is brought up to date, the other is replaced.
func TestPlacesLife(t *testing.T) {
	h := newSpreadHost(t, "4+2", 6)
	at := time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC)
	h.addPoint(h.img, at)
	if errs := h.reads(); strings.Contains(errs, "warning") {
		t.Errorf("all is well, and yet: %s", errs)
	}
	h.reads("-r", h.places[3])
	for _, s := range h.states(exitOK) {
		if s.State != "ok" || s.Held == 0 {
			t.Errorf("%+v", s)
		}
	}
	h.must(exitOK, "check", "--read-data")

	away := h.places[1] + ".away"
	move(t, h.places[1], away)
	if err := os.RemoveAll(h.places[4]); err != nil {
		t.Fatal(err)
	}
	errs := h.reads()
	for _, want := range []string{h.places[1], h.places[4], "cairn place replace"} {
		if !strings.Contains(errs, want) {
			t.Errorf("with two places gone %q is not said: %s", want, errs)
		}
	}
	h.img = append(bytes.Clone(h.img), bytes.Repeat([]byte("new data"), 1<<14)...)
	h.addPoint(h.img, at.Add(24*time.Hour))
	h.reads()
	// What is stored on fewer places than it should be is a warning.
	if _, errs := h.must(exitWarnings, "catalogue", "web01@latest"); !strings.Contains(errs, "fewer places than") {
		t.Errorf("a degraded put is not told: %s", errs)
	}
	if out, _ := h.must(exitWarnings, "check"); !strings.Contains(out, "away: place "+h.places[4]) {
		t.Errorf("check: %s", out)
	}
	if out, _ := h.must(exitWarnings, "place", "ls"); !strings.HasSuffix(out, "any 2 of the 6 places may be lost; of objects that a place misses now, fewer\n") {
		t.Errorf("place ls: %s", out)
	}
	h.must(exitUsage, "gc", "--wait", "-1s")
	if st := h.states(exitWarnings); st[h.places[1]].State != "away" || st[h.places[0]].State != "ok" {
		t.Errorf("place ls: %+v", st)
	}

	// One comes back.
	move(t, away, h.places[1])
	if out, _ := h.must(exitDamage, "check"); !strings.Contains(out, "DAMAGE: place "+h.places[1]) {
		t.Errorf("check: %s", out)
	}
	if st := h.states(exitWarnings)[h.places[1]]; st.State != "behind" || st.Missing == 0 {
		t.Errorf("back: %+v", st)
	}
	h.must(exitWarnings, "repair", "places") // the other one is still away
	if st := h.states(exitWarnings)[h.places[1]]; st.State != "ok" {
		t.Errorf("repaired: %+v", st)
	}

	// The other one is replaced, by a new disk in the same folder; an empty
	// folder alone is not taken for the place.
	if err := os.Mkdir(h.places[4], 0o700); err != nil {
		t.Fatal(err)
	}
	if errs := h.reads(); !strings.Contains(errs, "is its disk mounted") {
		t.Errorf("an empty folder in a place's stead: %s", errs)
	}
	h.must(exitOK, "place", "replace", h.places[4], h.places[4])
	for _, s := range h.states(exitOK) {
		if s.State != "ok" {
			t.Errorf("replaced: %+v", s)
		}
	}
	h.must(exitOK, "check", "--read-data")
	h.reads("-r", h.places[4])

	// A living place moves to another folder, and the old one is known as
	// such; the door and every place find the new one.
	moved := filepath.Join(t.TempDir(), "d9")
	h.must(exitOK, "place", "replace", h.places[0], moved)
	old := h.places[0]
	h.places[0] = moved
	h.must(exitOK, "check", "--read-data")
	for _, door := range append([]string{h.repo, old}, h.places...) {
		if errs := h.reads("-r", door); strings.Contains(errs, "warning") {
			t.Errorf("-r %s: %s", door, errs)
		}
	}
	h.must(exitUsage, "place", "replace", old, filepath.Join(t.TempDir(), "x"))
	h.must(exitFailed, "place", "replace", h.places[2], h.places[3])
}

// Rotten bytes are served from parity, told, found by check even so, and
// mended by check --repair; places that are swapped are refused by name.
func TestPlacesDamage(t *testing.T) {
	h := newSpreadHost(t, "2+1", 3)
	h.addPoint(h.img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	// A place may hold nothing but parity, which no read asks for.
	if i := slices.IndexFunc(h.places, func(p string) bool {
		data, err := filepath.Glob(filepath.Join(p, "packs", "*", "*.0"))
		return err == nil && len(data) > 0
	}); i > 0 {
		h.places[0], h.places[i] = h.places[i], h.places[0]
	}
	shards, err := filepath.Glob(filepath.Join(h.places[0], "packs", "*", "*"))
	if err != nil || len(shards) == 0 {
		t.Fatal(err)
	}
	for _, f := range shards {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for i := len(b) - 1; i > len(b)/4; i -= 2048 {
			b[i] ^= 0x10
		}
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if errs := h.reads(); !strings.Contains(errs, "served from parity") || !strings.Contains(errs, h.places[0]) {
		t.Errorf("reads from parity are not told: %s", errs)
	}
	h.must(exitWarnings, "check") // it met some of it
	out, _ := h.must(exitDamage, "check", "--read-data")
	if strings.Contains(out, "no damage found") {
		t.Errorf("check says both: %s", out)
	}
	if strings.Count(out, "DAMAGE: place "+h.places[0]) != len(shards) {
		t.Errorf("check --read-data: %s", out)
	}
	if out, _ = h.must(exitDamage, "check", "--keyless"); strings.Count(out, "DAMAGE: place "+h.places[0]) != len(shards) {
		t.Errorf("check --keyless: %s", out)
	}
	out, _ = h.must(exitWarnings, "check", "--read-data", "--repair")
	if !strings.Contains(out, fmt.Sprintf("replaced %d damaged", len(shards))) {
		t.Errorf("check --repair: %s", out)
	}
	if errs := h.reads(); strings.Contains(errs, "parity") {
		t.Errorf("mended, and yet: %s", errs)
	}

	tmp := h.places[0] + ".tmp"
	move(t, h.places[0], tmp)
	move(t, h.places[1], h.places[0])
	move(t, tmp, h.places[1])
	if _, errs := h.must(exitNoRepository, "points", "-r", h.places[2]); !strings.Contains(errs, "swapped") {
		t.Errorf("swapped places: %s", errs)
	}
}

// A repository in one folder can have parity, and init says what is wrong
// with what it was told.
func TestInitShards(t *testing.T) {
	h := newHost(t)
	h.must(exitUsage, "init", "--place", "/a")
	h.must(exitUsage, "init", "--shards", "4")
	h.must(exitUsage, "init", "--shards", "4+0")
	h.must(exitUsage, "init", "--shards", "4+2", "--place", "/a", "--place", "/b")
	for _, places := range [][2]string{{"a", "./a/"}, {"a", "a/b"}, {"a/b", "a"}} {
		if _, errs := h.must(exitUsage, "init", "--shards", "1+1", "--place", filepath.Join(h.repo, places[0]), "--place", h.repo+"/"+places[1]); !strings.Contains(errs, "twice") && !strings.Contains(errs, "in the other") {
			t.Errorf("%v: %s", places, errs)
		}
	}
	if out, _ := h.must(exitOK, "init", "--shards", "4+2"); !strings.Contains(out, "any 2 may be damaged") {
		t.Errorf("init: %s", out)
	}
	img := sampleImage(t)
	h.addPoint(img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	shards, err := filepath.Glob(filepath.Join(h.repo, "packs", "*", "*.[14]"))
	if err != nil || len(shards) == 0 {
		t.Fatal(err)
	}
	for _, f := range shards {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	raw := filepath.Join(t.TempDir(), "raw")
	if _, errs := h.must(exitOK, "restore", "web01@latest", "--disk", "vda", "--to", raw); !strings.Contains(errs, "parity") {
		t.Errorf("restore: %s", errs)
	}
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, img) {
		t.Errorf("the restored disk differs (%v)", err)
	}
	h.must(exitOK, "repair", "places")
	h.must(exitOK, "check", "--read-data")
	together := newHost(t)
	argv := []string{"init", "--shards", "1+1", "--place", filepath.Join(together.repo, "a"), "--place", filepath.Join(together.repo, "b")}
	if out, _ := together.must(exitOK, argv...); !strings.Contains(out, "But "+argv[4]+", "+argv[6]+" lie on one file system: with its disk the repository is lost; put no more than 1 place on one.\n") {
		t.Errorf("init: %s", out)
	}
	first := filepath.Join(t.TempDir(), "a") // a repository named by one of its places
	if out, _ := together.must(exitOK, "init", first, "--shards", "1+1", "--place", first+"/", "--place", filepath.Join(t.TempDir(), "b")); !strings.Contains(out, "Recovery key") {
		t.Errorf("init: %s", out)
	}
	together.must(exitOK, "check", "-r", first)
	plain := newHost(t)
	plain.must(exitOK, "init")
	if _, errs := plain.must(exitFailed, "place", "ls"); !strings.Contains(errs, "without parity") {
		t.Errorf("place ls: %s", errs)
	}
}

// A record in which a bit flipped is not what repair copies to a place that misses
// it, nor what a new place gets: the keys tell which copy is whole.
func TestFlippedCopyIsNotTheSource(t *testing.T) {
	h := newSpreadHost(t, "2+1", 3)
	h.addPoint(h.img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	names, err := filepath.Glob(filepath.Join(h.places[0], "points", "*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%q, %v", names, err)
	}
	name := filepath.Join("points", filepath.Base(names[0]))
	want, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	hurt := func(lies, misses string) {
		t.Helper()
		bad := bytes.Clone(want)
		bad[len(bad)-1] ^= 1
		for _, p := range []string{lies, misses} {
			if err := os.Remove(filepath.Join(p, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(lies, name), bad, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	same := func() {
		t.Helper()
		for _, p := range h.places {
			if got, err := os.ReadFile(filepath.Join(p, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s in %s is not what was stored: %v", name, p, err)
			}
		}
	}
	for i, p := range h.places {
		hurt(p, h.places[(i+1)%3])
		if errs := h.reads(); !strings.Contains(errs, "copies could not be read") {
			t.Errorf("a copy that lies is not told: %s", errs)
		}
		h.must(exitOK, "repair", "places")
		same()
	}
	for i, p := range h.places {
		hurt(h.places[(i+1)%3], h.places[(i+2)%3])
		fresh := filepath.Join(t.TempDir(), "new")
		h.must(exitOK, "place", "replace", p, fresh)
		h.places[i] = fresh
		same()
	}
	h.must(exitOK, "check", "--read-data")
}
