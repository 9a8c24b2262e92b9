package index

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// newStore makes a repository without a secret in a place.
func newStore(t testing.TB, place backend.Backend) *chunkstore.Store {
	t.Helper()
	ctx := t.Context()
	_, err := chunkstore.Init(ctx, place, chunkstore.InitOptions{Now: time.Now})
	if err != nil && !errors.Is(err, chunkstore.ErrRepositoryExists) {
		t.Fatal(err)
	}
	c, err := chunkstore.ReadConfig(ctx, place)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(ctx, place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	return chunkstore.NewStore(place, c, keys)
}

// image makes n chunks that differ for each seed.
func image(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	out := make([]byte, n*chunk.Size)
	_, _ = r.Read(out)
	return out
}

// imageChunks is enough for some 60 hooks in one pack.
const imageChunks = 512

// backup stores an image as a point, as a job does, and tells the index.
func backup(t testing.TB, s *chunkstore.Store, ix chunkstore.Index, seed uint64) (restorepoint.Summary, chunkstore.Statistics) {
	t.Helper()
	ctx := t.Context()
	w, err := s.Begin(ctx, ix, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for img := image(seed, imageChunks); len(img) > 0; {
		buf, err := w.Buffer(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n := copy(buf, img)
		if err := w.Append(ctx, &chunkstore.Batch{Data: buf[:n], Placed: func([]chunkstore.Loc) error { return nil }}); err != nil {
			t.Fatal(err)
		}
		img = img[n:]
	}
	_, err = w.AddRecord(func(int) ([]byte, error) { return fmt.Appendf(nil, "a map of image %d", seed), nil })
	if err := errors.Join(err, w.Flush(ctx), w.FlushRecords(ctx)); err != nil {
		t.Fatal(err)
	}
	m := restorepoint.Manifest{Version: restorepoint.ManifestVersion, ID: w.ID().String(), VM: restorepoint.VM{Name: "web01"},
		Time: time.Now().UTC(), Read: restorepoint.ReadFull, Reason: "a test",
		Disks: []restorepoint.Disk{{Name: "vda", Size: imageChunks * chunk.Size}}}
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx, body); err != nil {
		t.Fatal(err)
	}
	if x, ok := ix.(*Index); ok {
		if err := x.PutPoint(ctx, m.Summary()); err != nil {
			t.Fatal(err)
		}
	}
	return m.Summary(), w.Statistics()
}

// nothing is an index that knows nothing: another host's.
type nothing struct{}

func (nothing) Packs(context.Context, []chunk.ID) ([]chunkstore.PackRef, error) { return nil, nil }
func (nothing) Add(context.Context, chunkstore.PackRef, []chunk.ID) error       { return nil }

// opening opens an index and counts what was read from the store for it.
func opening(t testing.TB, dir string, s Store) (x *Index, read int) {
	t.Helper()
	x, err := Open(t.Context(), dir, s, Options{Progress: func(_, total int) { read = total }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x, read
}

func closing(t testing.TB, x *Index) {
	t.Helper()
	if err := errors.Join(x.Err(), x.Close()); err != nil {
		t.Fatal(err)
	}
}

func dump(t testing.TB, x *Index) string {
	t.Helper()
	var b strings.Builder
	if err := x.Dump(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkHooks makes sure that an index finds every pack of the store by its
// hooks. It gives the packs with their chunk IDs.
func checkHooks(t testing.TB, x *Index, s *chunkstore.Store) map[chunkstore.PackRef][]chunk.ID {
	t.Helper()
	ctx := t.Context()
	found := map[chunkstore.PackRef][]chunk.ID{}
	err := s.Packs(ctx, func(ref chunkstore.PackRef, _ int64) error {
		want, err := s.ChunkIDs(ctx, ref)
		if err != nil {
			return nil // a map pack
		}
		found[ref] = want
		for _, id := range want {
			refs, err := x.Packs(ctx, []chunk.ID{id})
			if err != nil {
				return err
			}
			if id.IsHook() != (len(refs) == 1) {
				t.Errorf("hook %v is in packs %v", id.IsHook(), refs)
			}
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("looked at %d packs: %v", len(found), err)
	}
	return found
}

// checkKnows makes sure that an index knows all packs of the store, and
// exactly the points.
func checkKnows(t testing.TB, x *Index, s *chunkstore.Store, points ...restorepoint.Summary) {
	t.Helper()
	for ref, want := range checkHooks(t, x, s) {
		if got, ok := x.ChunkIDs(t.Context(), ref); !ok || !slices.Equal(got, want) {
			t.Errorf("%s: chunk IDs known: %v, %d of them, want %d", ref, ok, len(got), len(want))
		}
	}
	got, err := x.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkPoints(t, got, points)
}

func checkPoints(t testing.TB, got, want []restorepoint.Summary) {
	t.Helper()
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if !bytes.Equal(a, b) {
		t.Errorf("points %s, want %s", a, b)
	}
}

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

func TestFreeSpace(t *testing.T) {
	s := newStore(t, mem.New())
	dir := t.TempDir()
	free := uint64(minFree)
	opts := Options{free: func(string) (uint64, error) { return free, nil }}
	x, err := Open(t.Context(), dir, s, opts)
	if err != nil {
		t.Fatal(err)
	}
	closing(t, x)
	free--
	if _, err := Open(t.Context(), dir, s, opts); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	// Being refused must not cost the index.
	if _, err := checkState(dir, newSealer(s.IndexKey())); err != nil {
		t.Errorf("after it was refused: %v", err)
	}
	free++
	if x, err = Open(t.Context(), dir, s, opts); err != nil {
		t.Fatal(err)
	}
	free = reserveFree - 1
	p1, _ := backup(t, s, x, 1) // is not failed by it
	if !errors.Is(x.Err(), ErrNoSpace) {
		t.Errorf("the index's error: %v", x.Err())
	}
	checkBroken(t, x)
	free = minFree
	x, _ = opening(t, dir, s)
	checkKnows(t, x, s, p1)
	closing(t, x)
}

// TestFullWhileItCatchesUp: the disk is full at each question for its free space in
// turn, while an index is brought to a store's state, new and old. The error names
// the folder; the next Open, with room, has all.
func TestFullWhileItCatchesUp(t *testing.T) {
	s := newStore(t, mem.New())
	old := t.TempDir()
	x, _ := opening(t, old, s)
	first, _ := backup(t, s, x, 1)
	points := []restorepoint.Summary{first}
	closing(t, x)
	other, _ := opening(t, t.TempDir(), s) // another host's
	for seed := uint64(2); seed < 5; seed++ {
		p, _ := backup(t, s, other, seed)
		points = append(points, p)
	}
	closing(t, other)
	for name, prepare := range map[string]func(t *testing.T) string{
		"new": func(t *testing.T) string { return t.TempDir() },
		"old": func(t *testing.T) string {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(old)); err != nil {
				t.Fatal(err)
			}
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				dir, left := prepare(t), n
				opts := Options{free: func(string) (uint64, error) {
					if left--; left <= 0 {
						return reserveFree - 1, nil
					}
					return minFree, nil
				}}
				x, err := Open(t.Context(), dir, s, opts)
				if err != nil && (!errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), dir)) {
					t.Fatalf("full at question %d: %v", n, err)
				}
				full := err != nil
				if !full {
					closing(t, x)
				}
				x, _ = opening(t, dir, s)
				checkKnows(t, x, s, points...)
				closing(t, x)
				if !full {
					t.Logf("%d questions", n-1)
					if n < 4 {
						t.Error("it asks too seldom")
					}
					return
				}
			}
		})
	}
}

// checkBroken makes sure that a failed index knows nothing, and closes it
// such that the next one is built anew.
func checkBroken(t testing.TB, x *Index) {
	t.Helper()
	if _, err := x.Points(t.Context()); err == nil {
		t.Error("a failed index lists points")
	}
	if _, ok := x.ChunkIDs(t.Context(), chunkstore.PackRef{}); ok {
		t.Error("a failed index gives chunk IDs")
	}
	if err := x.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Stat(filepath.Join(x.dir, stateName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed index left a STATE: %v", err)
	}
}

// Badger fails in the middle of a backup: the backup goes on.
func TestBadgerFailsDuringBackup(t *testing.T) {
	s := newStore(t, mem.New())
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	p1, _ := backup(t, s, x, 1)
	if err := x.db.Close(); err != nil { // every write fails from now on
		t.Fatal(err)
	}
	p2, st := backup(t, s, x, 2)
	if x.Err() == nil || st.ChunksNew != imageChunks {
		t.Fatalf("error %v, %+v", x.Err(), st)
	}
	if refs, err := x.Packs(t.Context(), []chunk.ID{{}}); len(refs) > 0 || err != nil {
		t.Errorf("a failed index answers %v, %v", refs, err)
	}
	x.db = nil // closed above
	checkBroken(t, x)
	x, _ = opening(t, dir, s)
	checkKnows(t, x, s, p1, p2)
	closing(t, x)
}

// A value with a wrong checksum, or another key's, is absent.
func TestBadChecksumIsAbsent(t *testing.T) {
	s := newStore(t, mem.New())
	dir := t.TempDir()
	x, _ := opening(t, dir, s)
	p1, _ := backup(t, s, x, 1)
	closing(t, x)
	x, _ = opening(t, dir, s)
	want := dump(t, x)

	values := map[string][]byte{}
	err := x.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.DefaultIteratorOptions)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			v, err := it.Item().ValueCopy(nil)
			if err != nil {
				return err
			}
			values[string(it.Item().Key())] = v
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var hooks, i int
	err = x.db.Update(func(txn *badger.Txn) error {
		for k, v := range values {
			bad := bytes.Clone(v)
			switch i++; {
			case i%2 == 0:
				bad[i%len(bad)] ^= 0x40
			case k[0] == prefixHook:
				bad = values[string(prefixNumber)+"\x00\x00\x00\x00"]
			default:
				bad = bad[:len(bad)-1]
			}
			if k[0] == prefixHook {
				hooks++
			}
			if err := txn.Set([]byte(k), bad); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || hooks < 20 {
		t.Fatalf("%d hooks changed: %v", hooks, err)
	}
	h := chunk.NewHasher(s.ChunkKey())
	var ids []chunk.ID
	for img := image(1, imageChunks); len(img) > 0; img = img[chunk.Size:] {
		ids = append(ids, h.Sum(img[:chunk.Size]))
	}
	if refs, err := x.Packs(t.Context(), ids); len(refs) > 0 || err != nil {
		t.Errorf("packs %v, %v", refs, err)
	}
	if _, err := x.Points(t.Context()); !errors.Is(err, errDamagedPoint) {
		t.Errorf("points: %v", err)
	}
	checkBroken(t, x)
	x, _ = opening(t, dir, s)
	checkKnows(t, x, s, p1)
	if dump(t, x) != want {
		t.Error("the index that was built anew differs")
	}
	closing(t, x)
}
