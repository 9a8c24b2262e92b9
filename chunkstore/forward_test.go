package chunkstore

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"

	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

func sampleForward() *Forward {
	a, b := PackRef{Session: SessionID{1}, Hash: chunk.PackHash{2}}, PackRef{Session: SessionID{3}, Hash: chunk.PackHash{4}}
	return &Forward{Kind: pack.KindData, Count: 100, Runs: []ForwardRun{{0, 3, a, 10}, {5, 2, b, 0}, {50, 50, a, 13}}}
}

func TestForward(t *testing.T) {
	f := sampleForward()
	b, err := f.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeForward(b)
	if err != nil || !reflect.DeepEqual(got, f) {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, c := range []struct{ n, count, at, k int }{{0, 9, 10, 3}, {2, 9, 12, 1}, {6, 1, 1, 1}, {99, 4, 62, 1}} {
		to, at, k, ok := f.Find(c.n, c.count)
		if !ok || at != c.at || k != c.k || c.n != 6 && to != f.Runs[0].To {
			t.Errorf("find %d+%d: %v at %d, %d, %v", c.n, c.count, to, at, k, ok)
		}
	}
	for _, n := range []int{3, 4, 7, 49, 100, 1 << 30} {
		if _, _, _, ok := f.Find(n, 1); ok {
			t.Errorf("chunk %d was not kept", n)
		}
	}
}

// Two collectors have copied one pack, and what one of them made was copied on, but
// for a part: what the other one's copy has is known all the same.
func TestIDsOfWhatMovedTwice(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	img := image(3, 60)
	var refs []PackRef
	for range 2 {
		places, _, _, err := save(ctx, s, newMemIndex(), img, nil)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, places[slices.IndexFunc(places, func(p place) bool { return p != place{} })].ref)
	}
	old, now := refs[0], refs[1]
	want, err := s.ChunkIDs(ctx, old)
	if err != nil {
		t.Fatal(err)
	}
	n := len(want)
	between := PackRef{Session: SessionID{9}, Hash: chunk.PackHash{9}}
	for _, f := range []struct {
		of  PackRef
		by  SessionID
		run ForwardRun
	}{
		{old, SessionID{1}, ForwardRun{0, n, now, 0}},
		{old, SessionID{2}, ForwardRun{0, n, between, 0}},
		{between, SessionID{3}, ForwardRun{0, n / 2, now, 0}},
	} {
		if err := s.PutForward(ctx, f.of, f.by, &Forward{Kind: pack.KindData, Count: n, Runs: []ForwardRun{f.run}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Delete(ctx, packName(old)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.ChunkIDs(ctx, old); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d of %d IDs are not known, %v", len(slices.DeleteFunc(got, func(id chunk.ID) bool { return id != chunk.ID{} })), n, err)
	}
}

// A chunk has two forwards: what the one leads to was removed, what the other leads
// to is not answered for. Then nothing says that the chunk is lost (seed 60166495).
func TestMovedToWhereNobodyAnswers(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	old, silent, removed := PackRef{Session: SessionID{7}}, PackRef{Session: SessionID{8}}, PackRef{Session: SessionID{9}}
	for i, to := range []PackRef{silent, removed} {
		if err := s.PutForward(ctx, old, SessionID{byte(i)}, &Forward{Kind: pack.KindData, Count: 1, Runs: []ForwardRun{{0, 1, to, 0}}}); err != nil {
			t.Fatal(err)
		}
	}
	want := errors.New("no answer")
	m.Fault = func(_, name string) error {
		if name == packName(silent) {
			return want
		}
		return nil
	}
	if err := s.NewReader(1<<20).ReadChunks(ctx, old, 0, make([]byte, chunk.Size)); !errors.Is(err, want) {
		t.Fatalf("%v; %v wanted", err, want)
	}
}

// Goal: no forward, whatever is in it, leads out of its bounds.
func FuzzForward(f *testing.F) {
	b, err := sampleForward().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"kind":1,"count":2,"packs":[],"runs":[[0,1,0,0]]}`))
	f.Add([]byte(`{"kind":1,"count":9223372036854775807,"packs":[],"runs":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fw, err := decodeForward(b)
		if err != nil {
			return
		}
		end := 0
		for _, r := range fw.Runs {
			if r.First < end || r.Count < 1 || r.First+r.Count > fw.Count || r.At < 0 || r.At+r.Count > pack.MaxChunks {
				t.Fatalf("%+v", r)
			}
			end = r.First + r.Count
		}
	})
}
