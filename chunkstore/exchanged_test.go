package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// A place that gives one object's bytes under another's name is found by
// whoever reads, not only by check: two data packs of equal shape, two map
// packs, two commits, of two sessions and of one.
func TestExchangedObjectsAreNotRead(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	var kinds [3][]PackRef // data and map packs
	var ids []SessionID
	for seed := range uint64(2) {
		_, id, _, err := save(ctx, s, newMemIndex(), image(seed+1, 64), nil)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	counts := map[PackRef]int{}
	err := s.Packs(ctx, func(r PackRef, _ int64) error {
		f, err := s.ReadFooter(ctx, r)
		if err == nil {
			kinds[f.Kind] = append(kinds[f.Kind], r)
			counts[r] = f.Count
		}
		return err
	})
	if err != nil || len(kinds[pack.KindData]) != 2 || len(kinds[pack.KindMap]) != 2 {
		t.Fatalf("%v, %v", kinds, err)
	}
	data, maps := kinds[pack.KindData], kinds[pack.KindMap]
	exchange(t, m, packName(data[0]), packName(data[1]))
	exchange(t, m, packName(maps[0]), packName(maps[1]))
	exchange(t, m, DecisionObject(ids[0]), DecisionObject(ids[1]))
	for i, r := range data {
		buf := make([]byte, chunk.Size)
		if err := s.NewReader(1<<20).ReadChunks(ctx, r, 0, buf); !errors.Is(err, pack.ErrCorrupt) {
			t.Errorf("chunk of data pack %d: %v, %q", i, err, buf[:16])
		}
		if n := min(counts[data[0]], counts[data[1]]); n < 30 {
			t.Errorf("data packs of %d chunks have no equal shape", n)
		}
		if ids, err := s.ChunkIDs(ctx, r); !errors.Is(err, pack.ErrCorrupt) {
			t.Errorf("IDs of data pack %d: %d, %v", i, len(ids), err)
		}
		if b, err := s.NewReader(1<<20).ReadRecord(ctx, maps[i], 0); !errors.Is(err, pack.ErrCorrupt) {
			t.Errorf("record of map pack %d: %q, %v", i, b, err)
		}
		if b, err := s.ReadCommit(ctx, ids[i]); !pack.IsDamage(err) {
			t.Errorf("commit %d: %q, %v", i, b, err)
		}
	}
	// Whole by their own trailers, and another's: so says who has no key, too.
	if _, err := VerifyPack(ctx, m, data[0]); !errors.Is(err, pack.ErrOtherName) {
		t.Errorf("without a key: %v", err)
	}
	// A pack moved into the folder of another session is the same pack.
	exchange(t, m, packName(data[0]), packName(data[1]))
	moved := PackRef{Session: ids[0], Hash: data[1].Hash}
	if moved.Session == data[1].Session {
		moved.Session = ids[1]
	}
	b, err := backend.Get(ctx, m, packName(data[1]), pack.MaxSize)
	if err == nil {
		err = m.Put(ctx, packName(moved), b)
	}
	var one, other [chunk.Size]byte
	err = errors.Join(err, s.NewReader(1<<20).ReadChunks(ctx, data[1], 3, one[:]), s.NewReader(1<<20).ReadChunks(ctx, moved, 3, other[:]))
	if err != nil || !bytes.Equal(one[:], other[:]) {
		t.Errorf("the same pack in another folder: %v", err)
	}
}

// exchange gives each of two objects the other's bytes.
func exchange(t *testing.T, m backend.Backend, a, b string) {
	t.Helper()
	ctx := context.Background()
	x, err := backend.Get(ctx, m, a, pack.MaxSize)
	y, err2 := backend.Get(ctx, m, b, pack.MaxSize)
	if err := errors.Join(err, err2, m.Delete(ctx, a), m.Delete(ctx, b), m.Put(ctx, a, y), m.Put(ctx, b, x)); err != nil {
		t.Fatal(err)
	}
}
