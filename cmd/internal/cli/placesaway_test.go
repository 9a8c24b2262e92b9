package cli

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A place whose folder is not there has not said that it holds nothing: with
// more of them gone than parity makes good, what is stored is out of reach,
// not damaged and not lost, and comes back with them.
func TestTooManyPlacesAway(t *testing.T) {
	h := newSpreadHost(t, "4+2", 6)
	h.addPoint(h.img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	for _, p := range h.places[:3] {
		move(t, p, p+".away")
	}
	out, errs := h.must(exitNoRepository, "check")
	if strings.Contains(out, "DAMAGE") || !strings.Contains(errs, "3 of the 6 places are away") || !strings.Contains(errs, h.places[1]) {
		t.Errorf("check: %s%s", out, errs)
	}
	_, errs = h.must(exitNoRepository, "restore", "web01@latest", "--disk", "vda", "--to", t.TempDir()+"/raw")
	if !strings.Contains(errs, "too few places") || strings.Contains(errs, "object does not exist") {
		t.Errorf("restore: %s", errs)
	}
	h.must(exitNoRepository, "check", "--read-data")
	out, _ = h.must(exitWarnings, "doctor")
	for _, want := range []string{"BAD   place " + h.places[0] + ": is away", "cairn place replace " + h.places[2], "place " + h.places[5] + ": ", strings.Join(h.places[3:], ", ") + " lie on one file system: with its disk the repository is lost"} {
		if !strings.Contains(out, want) {
			t.Errorf("doctor does not say %q: %s", want, out)
		}
	}
	for _, p := range h.places[:3] {
		move(t, p+".away", p)
	}
	h.must(exitOK, "check", "--read-data")
	h.reads()

	// With all but one gone nothing is said not to exist.
	for _, p := range h.places[1:] {
		move(t, p, p+".away")
	}
	if _, errs := h.must(exitNoRepository, "show", "web01@latest"); strings.Contains(errs, "no such restore point") {
		t.Errorf("show: %s", errs)
	}
}

// A place is named as a person in its folder names it, also when it is gone;
// a name that is none makes nothing.
func TestReplaceNames(t *testing.T) {
	h := newSpreadHost(t, "1+1", 2)
	h.addPoint(h.img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	fresh := filepath.Join(t.TempDir(), "new")
	if _, errs := h.must(exitUsage, "place", "replace", "d7", fresh); !strings.Contains(errs, h.places[1]) {
		t.Errorf("replace: %s", errs)
	}
	if _, err := os.Stat(fresh); err == nil {
		t.Error("a folder was made for a place that is none")
	}
	if err := os.RemoveAll(h.places[1]); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(h.places[1]))
	h.must(exitOK, "place", "replace", filepath.Base(h.places[1]), fresh)
	h.must(exitOK, "check", "--read-data")
}

// gc needs all places, since what it deletes would come back with one that was
// away, and says so before it does anything.
func TestGCNeedsAllPlaces(t *testing.T) {
	h := newSpreadHost(t, "2+1", 3)
	h.addPoint(h.img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	h.addPoint(h.img, time.Date(2026, 10, 13, 2, 0, 0, 0, time.UTC))
	h.must(exitOK, "forget", "--keep-last", "1", "--clock", "host")
	move(t, h.places[1], h.places[1]+".away")
	h.must(exitOK, "gc", "--dry-run")
	before := listed(t, h.places[0])
	_, errs := h.must(exitNoRepository, "gc")
	if !strings.Contains(errs, "nothing is removed") || !strings.Contains(errs, h.places[1]) || !strings.Contains(errs, "cairn place replace") {
		t.Errorf("gc: %s", errs)
	}
	if after := listed(t, h.places[0]); !slices.Equal(before, after) {
		t.Errorf("gc left %d objects, there were %d", len(after), len(before))
	}
	move(t, h.places[1]+".away", h.places[1])
	h.must(exitOK, "gc")
	h.must(exitOK, "check", "--read-data")
}

// listed gives the files in a folder.
func listed(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A share of the packs is a share of their shards, too: a flip in a pack that is
// not in it is not looked for.
func TestShareOfShards(t *testing.T) {
	h := newSpreadHost(t, "2+1", 3)
	h.addPoint(h.img, time.Date(2026, 10, 12, 2, 0, 0, 0, time.UTC))
	// Of a shard of parity, which no reader reads while all is well.
	packs, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(h.places[0])), "*", "d?", "packs", "*", "*.2"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("%q, %v", packs, err)
	}
	b, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(packs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	hash, err := strconv.ParseUint(filepath.Base(packs[0])[:16], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	at := float64(hash>>11) / (1 << 53)
	from := func(start float64) string {
		_, start = math.Modf(start + 1)
		return strconv.FormatFloat(start, 'f', -1, 64)
	}
	h.must(exitOK, "check", "--read-data=1%", "--start", from(at+0.01))
	h.must(exitOK, "check", "--keyless", "--read-data=1%", "--start", from(at+0.01))
	h.must(exitDamage, "check", "--keyless", "--read-data=1%", "--start", from(at-0.005))
	if out, _ := h.must(exitDamage, "check", "--read-data=1%", "--start", from(at-0.005)); !strings.Contains(out, filepath.Base(packs[0])) {
		t.Errorf("check: %s", out)
	}
	h.must(exitOK, "check", "--read-data=1%", "--repair", "--start", from(at+0.01))
	h.must(exitDamage, "check", "--read-data")
	h.must(exitWarnings, "check", "--read-data=1%", "--repair", "--start", from(at-0.005), "--rate", "1GiB")
	h.must(exitOK, "check", "--read-data")
}
