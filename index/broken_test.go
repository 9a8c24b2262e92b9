package index

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

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
