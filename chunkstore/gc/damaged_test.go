package gc

import (
	"bytes"
	"context"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
)

// A list of gc's that cannot be read stops no backup and no gc: that run
// removes nothing. What was already decided stays decided.
func TestDamagedListRemovesNothing(t *testing.T) {
	for _, part := range []string{"condemned", "final"} {
		s, a := quietWorld(t)
		kept := point(t, a, [simLeaves * simBlocks]int{1, 2, 3})
		gone := point(t, a, [simLeaves * simBlocks]int{4, 5, 6})
		drop(t, a, gone)
		s.place.Fault = func(op, name string) error { // gc stops behind the part
			if op == "put" && part == "condemned" && bytes.HasSuffix([]byte(name), []byte("/final")) || op == "delete" && part == "final" {
				return errCrashed
			}
			return nil
		}
		if _, err := Collect(t.Context(), a.open(), Options{Trace: simTrace(a.open().NewReader(simCache))}); err == nil {
			t.Fatal("gc did not stop")
		}
		s.place.Fault = nil
		s.place.Damage(chunkstore.GenerationName(1, "condemned"), func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		w, err := a.open().Begin(t.Context(), s.index, nil)
		if err != nil {
			t.Fatalf("%s: a backup fails: %v", part, err)
		}
		w.Close()
		packs := func() (n int) {
			_ = s.place.List(context.Background(), "packs/"+gone.id.String(), func(backend.Object) error { n++; return nil })
			return n
		}
		before := packs()
		if before == 0 {
			t.Fatal("the point has no packs")
		}
		_, err = Collect(t.Context(), a.open(), Options{Trace: simTrace(a.open().NewReader(simCache))})
		if part == "condemned" {
			if err != nil || packs() != 0 { // the run that follows removes them
				t.Errorf("%d packs of %d are left: %v", packs(), before, err)
			}
		} else if err == nil || packs() != before {
			t.Errorf("decided by a list that cannot be read: %v", err)
		}
		if err := s.readable(s.reading(), kept); err != nil {
			t.Error(err)
		}
	}
}
