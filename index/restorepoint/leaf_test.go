package restorepoint

import (
	"context"
	"reflect"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
)

type forgetful struct{}

func (forgetful) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (forgetful) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// A log that grows by 4 KiB from one backup to the next makes a leaf of which
// every chunk lies in a pack of its own. The store must take it.
func TestWorstLeafIsStored(t *testing.T) {
	ctx := context.Background()
	place := mem.New()
	c, err := chunkstore.Init(ctx, place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(ctx, place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	s := chunkstore.NewStore(place, c, keys)
	w, err := s.Begin(ctx, forgetful{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	h := chunk.NewHasher([32]byte{1}) // for names that do not compress
	name := func(i int, part byte) chunk.ID {
		return h.Sum(append(make([]byte, chunk.Size-3), byte(i), byte(i>>8), part))
	}
	l := &leaf{}
	for i := range leafChunks {
		ref := chunk.PackRef{Session: chunk.SessionID(name(i, 0))}
		for part := range len(ref.Hash) / chunk.IDSize {
			id := name(i, byte(part+1))
			copy(ref.Hash[part*chunk.IDSize:], id[:])
		}
		l.packs = append(l.packs, ref)
		l.runs = append(l.runs, run{uint16(i), 1, uint16(i), 1<<24 - 1 - uint32(i)})
	}
	var locs []chunk.RecordLoc
	for range 2 {
		loc, err := w.AddRecord(func(int) ([]byte, error) { return encodeLeaf(l), nil })
		if err != nil {
			t.Fatal(err)
		}
		locs = append(locs, loc)
	}
	if err := w.FlushRecords(ctx); err != nil {
		t.Fatal(err)
	}
	for _, loc := range locs {
		b, err := s.NewReader(1<<20).ReadRecord(ctx, w.MapPack(loc.Pack), loc.Record)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeLeaf(b); err != nil || !reflect.DeepEqual(got, l) {
			t.Errorf("the leaf came back otherwise, %v", err)
		}
	}
}
