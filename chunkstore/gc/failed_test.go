package gc

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// listIndex is an index that is built from what the store lists, as on a host
// that has never seen it.
type listIndex map[chunk.ID]chunk.PackRef

func (x listIndex) Packs(_ context.Context, hooks []chunk.ID) (out []chunk.PackRef, _ error) {
	for _, h := range hooks {
		if ref, ok := x[h]; ok {
			out = append(out, ref)
		}
	}
	return out, nil
}

func (x listIndex) Add(context.Context, chunk.PackRef, []chunk.ID) error { return nil }

func indexOf(t *testing.T, s *chunkstore.Store) listIndex {
	t.Helper()
	x := listIndex{}
	err := s.Packs(t.Context(), func(ref chunk.PackRef, _ int64) error {
		f, err := s.ReadFooter(t.Context(), ref)
		if err != nil || f.Kind != pack.KindData {
			return err
		}
		ids, err := s.ChunkIDs(t.Context(), ref)
		for _, id := range ids {
			x[id] = ref
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// storeSome stores n chunks in a session, and leaves it open.
func storeSome(t *testing.T, s *chunkstore.Store, n int) *chunkstore.Session {
	t.Helper()
	w, err := s.Begin(t.Context(), indexOf(t, s), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	for off := 0; off < n; off += chunkstore.BatchSize / chunk.Size {
		buf, err := w.Buffer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		clear(buf) // an earlier session's bytes may be in it
		k := min(n-off, chunkstore.BatchSize/chunk.Size)
		for i := range k {
			copy(buf[i*chunk.Size:(i+1)*chunk.Size], fmt.Appendf(nil, "chunk %d", off+i))
		}
		if err := w.Append(t.Context(), &chunkstore.Batch{Data: buf[:k*chunk.Size], Placed: func([]chunk.Loc) error { return nil }}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// What a session stored that died, or failed, is used by the next one, on
// another host and after gc, until it was kept long enough.
func TestFailedSessionsWorkIsKept(t *testing.T) {
	place := mem.New()
	now := time.Date(2026, 10, 1, 2, 0, 0, 0, time.UTC)
	place.Now = func() time.Time { return now }
	c, err := chunkstore.Init(t.Context(), place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(t.Context(), place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	store := func() *chunkstore.Store { return chunkstore.NewStore(place, c, keys) }
	// A place whose clock stands still until it is set: what a run takes is not counted.
	run := func() *Result {
		t.Helper()
		o := Options{KeepFailed: 7 * 24 * time.Hour, Trace: func(context.Context, chunkstore.Commit, chunk.Tracer) error { return nil }}
		r, err := Collect(t.Context(), store(), o)
		if err != nil && !errors.Is(err, ErrRunning) {
			t.Fatal(err)
		}
		return r
	}
	again := func(when string, want bool) {
		t.Helper()
		w := storeSome(t, store(), 1000)
		st := w.Statistics()
		if stored := st.ChunksNew > 150; stored == want {
			t.Errorf("%s: %d of 1000 chunks are stored again", when, st.ChunksNew)
		}
		if err := store().Abort(t.Context(), w.ID(), "a test"); err != nil {
			t.Fatal(err)
		}
	}
	died := storeSome(t, store(), 900) // its process is killed: it neither commits nor closes
	run()
	again("while it is undecided", true)
	now = now.Add(25 * time.Hour) // it is taken for dead
	if r := run(); r.Fenced != 1 || r.PacksRemoved != 0 || r.PacksKept == 0 {
		t.Errorf("after a day: %+v", r)
	}
	again("after it was fenced", true)
	failed := storeSome(t, store(), 1200)
	failed.Close()
	if gone, err := store().IsAborted(t.Context(), failed.ID()); err != nil || !gone {
		t.Errorf("a session that failed is not decided: %v", err)
	}
	now = now.Add(6 * 24 * time.Hour)
	if r := run(); r.PacksKept == 0 { // the very first try's few chunks go
		t.Errorf("after six days: %+v", r)
	}
	again("after six days", true)
	now = now.Add(8 * 24 * time.Hour)
	if r := run(); r.PacksRemoved == 0 || r.PacksKept != 0 {
		t.Errorf("after two weeks: %+v", r)
	}
	again("after two weeks", false)
	_ = died
}
