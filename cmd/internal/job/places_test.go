package job

import (
	"context"
	"errors"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/gc"
)

// A pack whose rest moved, and that was removed while a place was away, seems to
// be there again when the place is back: gc must not take a few of its shards for
// it, and remove where its chunks are now.
func TestPlaceComesBackWithRemovedPacks(t *testing.T) {
	w := newFaultWorld(t, 6)
	collect := func() *gc.Result {
		t.Helper()
		r := w.open(t, nil)
		res, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95}, func(string) {})
		if err != nil && !errors.Is(err, spread.ErrAway) { // a point cannot be removed then
			t.Fatal(err)
		}
		return res
	}
	holds := func(when string) {
		t.Helper()
		r := w.open(t, nil)
		for i, m := range w.points[1:] {
			if good, _ := r.readable(t, m, w.images[i+1]); len(good) == 0 || !all(good) {
				t.Fatalf("%s: a point lost chunks: %v", when, good)
			}
		}
	}
	w.places[2].Fault = func(string, string) error { return errCrash }
	if r := collect(); r.PacksCopied == 0 {
		t.Fatalf("nothing moved: %+v", r)
	}
	w.places[2].Fault = nil
	holds("a place is back")
	// Something to collect again.
	r := w.open(t, nil)
	m, err := r.backUp(t.Context(), noPacks{}, 20, w.next, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := chunkstore.ParseSessionID(m.ID)
	if err == nil {
		err = r.store.Drop(context.Background(), id, chunkstore.Note{})
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		collect()
		w.dayPasses()
		holds("behind gc")
	}
}

func all(list []bool) bool {
	for _, ok := range list {
		if !ok {
			return false
		}
	}
	return true
}
