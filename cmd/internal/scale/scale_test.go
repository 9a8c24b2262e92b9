package scale

import (
	"cairn/chunkstore/backend"
	"cairn/chunkstore/seal"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestOwnPlace: the place is one that the code can read, at a size at which all
// of it can be looked at.
func TestOwnPlace(t *testing.T) {
	s := Shape{Machines: 2, Points: 6, Leaves: 1024}
	keys, err := seal.NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	place, _, err := New(t.Context(), s, keys, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	packs, bytes := 0, int64(0)
	last := ""
	err = place.List(t.Context(), "packs/", func(o backend.Object) error {
		if o.Name <= last {
			t.Errorf("%s behind %s", o.Name, last)
		}
		last = o.Name
		packs, bytes = packs+1, bytes+o.Size
		if _, err := place.Size(t.Context(), o.Name); err != nil {
			t.Error(o.Name, err)
		}
		return nil
	})
	if err != nil || packs != s.Packs() {
		t.Errorf("%d packs, want %d: %v", packs, s.Packs(), err)
	}
}

// limits of memory at full size, in bytes.
const limit = 2 << 30

// TestCampaign measures at full size, or at CAIRN_SCALE's "machines points leaves".
func TestCampaign(t *testing.T) {
	text := os.Getenv("CAIRN_SCALE")
	if text == "" {
		t.Skip("set CAIRN_SCALE=full, or to machines, points and leaves")
	}
	s := Full
	if text != "full" {
		if _, err := fmt.Sscan(text, &s.Machines, &s.Points, &s.Leaves); err != nil {
			t.Fatal(err)
		}
	}
	cache := t.TempDir()
	if dir := os.Getenv("CAIRN_SCALE_DIR"); dir != "" {
		cache = dir
	}
	what := "nothing mount forget gc check reconcile backup"
	if only := os.Getenv("CAIRN_SCALE_ONLY"); only != "" {
		what = only
	}
	for _, w := range strings.Fields(what) {
		if r := run(t, w, s, cache); r.RSS > limit {
			t.Errorf("%s takes %d MiB", w, r.RSS>>20)
		}
	}
}

// TestMemoryGrowsLittle: what gc and check keep of a pack is some dozens of
// bytes. Method: the most that is in use in two repositories of which one is
// larger, without the caches of maps that only the larger one fills.
func TestMemoryGrowsLittle(t *testing.T) {
	t.Setenv(envLive, "1")
	small, large := Shape{Machines: 1, Points: 2, Leaves: 256 * 48}, Shape{Machines: 7, Points: 2, Leaves: 256 * 136}
	dirs := [2]string{t.TempDir(), t.TempDir()}
	for i, s := range []Shape{small, large} {
		run(t, "nothing", s, dirs[i])
	}
	for what, cached := range map[string]int64{"gc": 16 << 20, "check": 24 << 20} {
		a, b := run(t, what, small, dirs[0]), run(t, what, large, dirs[1])
		each := (b.Live - a.Live - cached) / int64(large.Packs()-small.Packs())
		t.Logf("%s: %d bytes a pack", what, each)
		if each > 300 {
			t.Errorf("%s takes %d bytes more for each pack", what, each)
		}
	}
}
