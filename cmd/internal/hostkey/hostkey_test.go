package hostkey

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"cairn/chunkstore"
)

// Hosts of one folder, as so many processes, make one key and never give one
// number twice; what was seen only grows.
func TestManyProcessesOfOneHost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	var mu sync.Mutex
	var numbers []uint64
	keys := map[string]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			h := New(dir, "repo", "web01")
			for range 5 {
				k, err := h.Key()
				n, err2 := h.Next()
				if err != nil || err2 != nil {
					t.Error(err, err2)
					return
				}
				mu.Lock()
				keys[k.ID().String()] = true
				numbers = append(numbers, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(numbers)
	if len(numbers) != 20 || len(slices.Compact(numbers)) != 20 || len(keys) != 1 {
		t.Errorf("numbers %v of keys %v", numbers, keys)
	}
	h := New(dir, "repo", "web01")
	if st, err := os.Stat(filepath.Join(dir, "host.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", st, err)
	}
	for _, seen := range []map[string]chunkstore.Seen{{"a": {Counter: 7, Session: "x"}}, {"a": {Counter: 5, Session: "old"}, "b": {Counter: 1, Session: "y"}}} {
		if err := h.Remember(seen, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := h.Known(); err != nil || !slices.Equal(got, []string{"x", "y"}) {
		t.Errorf("known: %v, %v", got, err)
	}
	if err := h.Remember(map[string]chunkstore.Seen{"a": {Counter: 9, Session: "z"}}, []string{"x"}); err != nil {
		t.Fatal(err)
	}
	if got, err := New(dir, "repo", "").Known(); err != nil || !slices.Equal(got, []string{"x", "y", "z"}) {
		t.Errorf("what is gone is not known any more: %v, %v", got, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", ".tmp-*"))
	top, err2 := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	if err != nil || err2 != nil || len(left)+len(top) > 0 {
		t.Errorf("left behind: %v %v", left, top)
	}
}
