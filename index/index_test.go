package index

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// A second backup of the same bytes, after the index was closed and opened,
// stores nothing.
func TestSecondBackupFindsTheFirst(t *testing.T) {
	s := newStore(t, mem.New())
	dir := t.TempDir()
	x, read := opening(t, dir, s)
	if read != 0 {
		t.Errorf("%d objects read for an empty store", read)
	}
	p1, st := backup(t, s, x, 1)
	if st.ChunksNew != imageChunks {
		t.Fatalf("first: %+v", st)
	}
	checkKnows(t, x, s, p1)
	closing(t, x)
	// The session's map pack is all that the index was not told of.
	x, read = opening(t, dir, s)
	if read != 1 {
		t.Errorf("%d objects read at a clean start, want the map pack", read)
	}
	p2, st := backup(t, s, x, 1)
	if st.ChunksNew != 0 || st.ChunksKnown != imageChunks {
		t.Errorf("second: %+v", st)
	}
	checkKnows(t, x, s, p1, p2)
	closing(t, x)
}

// The cache can be deleted: what is built from the store is equal.
func TestRebuiltIndexIsEqual(t *testing.T) {
	s := newStore(t, mem.New())
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	for seed := range uint64(4) {
		backup(t, s, x, seed)
	}
	backup(t, s, nothing{}, 1) // the same chunks in two packs
	closing(t, x)
	x, _ = opening(t, dir, s) // takes in map packs and the other host's
	want := dump(t, x)
	closing(t, x)
	if !strings.Contains(want, "hook ") || strings.Count(want, "\nsession ") != 5 || strings.Count(want, "kind 2 chunks 0") != 5 {
		t.Fatalf("a dump that shows too little:\n%s", want)
	}

	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	x, _ = opening(t, dir, s)
	if got := dump(t, x); got != want {
		t.Error("after the directory was deleted, the dump differs")
	}
	closing(t, x)

	reads := 0
	x, err := Rebuild(t.Context(), dir, s, Options{Progress: func(done, total int) {
		if reads++; done != reads || total != 15 {
			t.Errorf("progress %d of %d", done, total)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got := dump(t, x); got != want || reads != 15 {
		t.Errorf("after Rebuild: equal %v, %d objects read", got == want, reads)
	}
	closing(t, x)
}

// What other hosts add or delete is seen at the next start.
func TestReconcile(t *testing.T) {
	place := mem.New()
	s := newStore(t, place)
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	p1, _ := backup(t, s, x, 1)
	p2, _ := backup(t, s, x, 2)
	closing(t, x)

	p3, _ := backup(t, s, nothing{}, 3)
	for _, prefix := range []string{"points/" + p1.ID, "packs/" + p1.ID + "/"} {
		deleteAll(t, place, prefix)
	}
	x, _ = opening(t, dir, s)
	checkKnows(t, x, s, p2, p3)
	h := chunk.NewHasher(s.ChunkKey())
	for img := image(1, imageChunks); len(img) > 0; img = img[chunk.Size:] {
		if refs, err := x.Packs(t.Context(), []chunk.ID{h.Sum(img[:chunk.Size])}); len(refs) > 0 || err != nil {
			t.Fatalf("a pack that is gone is still known: %v, %v", refs, err)
		}
	}
	got := dump(t, x)
	closing(t, x)
	x, err := Rebuild(t.Context(), dir, s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := dump(t, x); got != want {
		t.Error("the reconciled index is not the rebuilt one")
	}
	if _, st := backup(t, s, x, 1); st.ChunksNew != imageChunks {
		t.Errorf("chunks of a pack that is gone were not stored again: %+v", st)
	}
	closing(t, x)
}

// A hook in two packs is found in the other one when one of them goes.
func TestHookInTwoPacks(t *testing.T) {
	place := mem.New()
	s := newStore(t, place)
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	p1, _ := backup(t, s, x, 1)
	closing(t, x)
	backup(t, s, nothing{}, 1)
	x, _ = opening(t, dir, s)
	closing(t, x)
	deleteAll(t, place, "packs/"+p1.ID+"/")
	x, _ = opening(t, dir, s)
	if _, st := backup(t, s, x, 1); st.ChunksNew != 0 {
		t.Errorf("stored again: %+v", st)
	}
	closing(t, x)
}

// deleteAll deletes objects, or one.
func deleteAll(t testing.TB, place *mem.Place, prefix string) {
	t.Helper()
	var names []string
	folder, _, _ := strings.Cut(prefix, "/")
	err := place.List(t.Context(), folder+"/", func(o backend.Object) error {
		if strings.HasPrefix(o.Name, prefix) {
			names = append(names, o.Name)
		}
		return nil
	})
	if err != nil || len(names) == 0 {
		t.Fatalf("%d objects to delete: %v", len(names), err)
	}
	for _, name := range names {
		if err := place.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDeletePoint(t *testing.T) {
	s := newStore(t, mem.New())
	x, _ := opening(t, t.TempDir(), s)
	p1, _ := backup(t, s, x, 1)
	p2, _ := backup(t, s, x, 2)
	for range 2 {
		if err := x.DeletePoint(t.Context(), p1.ID); err != nil {
			t.Fatal(err)
		}
	}
	checkKnows(t, x, s, p2)
	if err := x.DeletePoint(t.Context(), "web01@latest"); err == nil {
		t.Error("a name that is no id was taken")
	}
	if err := x.PutPoint(t.Context(), restorepoint.Summary{ID: p1.ID, Reason: strings.Repeat("x", maxSummary)}); !errors.Is(err, errTooLarge) {
		t.Errorf("too large a summary: %v", err)
	}
	closing(t, x)
}

// An unreadable commit or pack is left out, with a word, and read again next
// time; what is not a manifest too.
func TestDamagedObjectsAreLeftOut(t *testing.T) {
	place := mem.New()
	s := newStore(t, place)
	p1, _ := backup(t, s, nothing{}, 1)
	p2, _ := backup(t, s, nothing{}, 2)
	flip := func(b []byte) []byte { b[max(0, len(b)-120)] ^= 1; return b } // in a pack: its frame table
	place.Damage("points/"+p1.ID, flip)
	err := s.Packs(t.Context(), func(r chunkstore.PackRef, _ int64) error {
		if r.Session.String() == p1.ID {
			place.Damage("packs/"+p1.ID+"/"+r.Hash.String(), flip)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Begin(t.Context(), nothing{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), []byte("no manifest")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	dir := t.TempDir()
	for range 2 {
		var log strings.Builder
		read := 0
		x, err := Open(t.Context(), dir, s, Options{Progress: func(_, total int) { read = total },
			Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		points, err := x.Points(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		checkPoints(t, points, []restorepoint.Summary{p2})
		if n := strings.Count(log.String(), "left out of the index"); read < 4 || n != 4 {
			t.Errorf("%d objects were tried and %d named, want the four unreadable ones:\n%s", read, n, log.String())
		}
		closing(t, x)
	}
}

// A store that cannot be read fails Open, and what was read until then is
// not read again.
func TestStoreFailsDuringRebuild(t *testing.T) {
	place := mem.New()
	s := newStore(t, place)
	for seed := range uint64(3) {
		backup(t, s, nothing{}, seed)
	}
	dir := t.TempDir()
	gone := errors.New("no route to host")
	var wantRead int
	for n := 1; ; n++ {
		calls := 0
		place.Fault = func(op, name string) error {
			if calls++; calls == n {
				return gone
			}
			return nil
		}
		x, err := Open(t.Context(), dir, s, Options{Progress: func(_, total int) { wantRead = total }})
		if err == nil {
			place.Fault = nil
			if got := dump(t, x); strings.Count(got, "\nsession ") != 3 {
				t.Errorf("incomplete:\n%s", got)
			}
			closing(t, x)
			break
		}
		if !errors.Is(err, gone) {
			t.Fatalf("call %d: %v", n, err)
		}
		if n > 200 {
			t.Fatal("Open never succeeds")
		}
	}
	if wantRead >= 9 {
		t.Errorf("the last Open read %d objects: the ones before kept nothing", wantRead)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, t.TempDir(), s, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	checkGoroutines(t, before)
}

// checkGoroutines waits a little: Badger does not wait for one of its own
// that ends by itself.
func checkGoroutines(t testing.TB, before int) {
	t.Helper()
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("%d goroutines, were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

func TestCloseEndsAllGoroutines(t *testing.T) {
	s := newStore(t, mem.New())
	backup(t, s, nothing{}, 1)
	dir := t.TempDir()
	before := runtime.NumGoroutine()
	for range 3 {
		x, _ := opening(t, dir, s)
		closing(t, x)
		if _, err := x.Packs(t.Context(), nil); err == nil {
			t.Error("a closed index answers")
		}
		if err := x.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
	checkGoroutines(t, before)
}

func TestBusy(t *testing.T) {
	s := newStore(t, mem.New())
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	waits := 0
	_, err := Open(t.Context(), dir, s, Options{Wait: 100 * time.Millisecond, Waiting: func() { waits++ }})
	if !errors.Is(err, ErrBusy) || waits != 1 {
		t.Errorf("got %v after %d calls of Waiting", err, waits)
	}
	if _, ok := ReadPoints(t.Context(), dir, s); ok {
		t.Error("ReadPoints reads an index that is being written")
	}
	_, err = Open(t.Context(), dir, s, Options{Wait: time.Minute, Waiting: func() { closing(t, x) }})
	if err != nil {
		t.Errorf("after the other ended: %v", err)
	}
}

func TestReadPoints(t *testing.T) {
	place := mem.New()
	s := newStore(t, place)
	dir := t.TempDir()
	if _, ok := ReadPoints(t.Context(), dir, s); ok {
		t.Error("no index, but points")
	}
	x, _ := opening(t, dir, s)
	p1, _ := backup(t, s, x, 1)
	p2, _ := backup(t, s, x, 2)
	closing(t, x)
	p3, _ := backup(t, s, nothing{}, 3)
	deleteAll(t, place, "points/"+p1.ID)
	before := runtime.NumGoroutine()
	for range 2 {
		got, ok := ReadPoints(t.Context(), dir, s)
		if !ok {
			t.Fatal("not read")
		}
		checkPoints(t, got, []restorepoint.Summary{p2, p3})
	}
	checkGoroutines(t, before)
	// It left the index as it was: nothing is built anew.
	if _, err := checkState(dir, newSealer(s.IndexKey())); err != nil {
		t.Errorf("ReadPoints left it unclean: %v", err)
	}
	x, read := opening(t, dir, s)
	if read != 2+3 { // both map packs, and all of the third
		t.Errorf("%d objects read", read)
	}
	closing(t, x)
}
