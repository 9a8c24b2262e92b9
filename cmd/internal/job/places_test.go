package job

import (
	"context"
	"errors"
	"strings"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/faulty"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/gc"
	"cairn/index"
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

// A run that died while it stored a pack leaves some of the pack's shards, perhaps
// enough to read it. Who finds it later must not rest on it: his point would be
// told to be stored, and be lost with fewer places than may be.
func TestHalfStoredPackIsNotUsed(t *testing.T) {
	base := newFaultWorld(t, 6)
	died := 0
	for n := 0; ; n++ {
		w := base.again(t)
		p := faulty.At(n, faulty.Stop)
		r := w.open(t, p)
		_, err := r.backUp(t.Context(), noPacks{}, 20, w.next, nil)
		if err == nil {
			break
		}
		if !strings.Contains(p.String(), "(put packs/") {
			continue
		}
		died++
		r = w.open(t, nil)
		x, err := index.Open(t.Context(), t.TempDir(), r.store, index.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.backUp(t.Context(), x, 21, w.next, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		for i := range w.places {
			for j := range i {
				for _, gone := range []int{i, j} {
					w.places[gone].Fault = func(string, string) error { return errCrash }
				}
				if good, _ := w.open(t, nil).readable(t, m, w.next); !all(good) {
					t.Fatalf("%s: without places %d and %d the next point cannot be read: %v", p, i, j, good)
				}
				w.places[i].Fault, w.places[j].Fault = nil, nil
			}
		}
	}
	if died < 12 { // two packs of six shards
		t.Errorf("%d runs died while they stored a pack", died)
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
