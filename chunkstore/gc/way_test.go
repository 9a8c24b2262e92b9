package gc

import (
	"encoding/json"
	"slices"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// A pack that is gone moved twice: once to a pack whose forwards a run of gc that
// is not done removes, and once to one that this run itself removed, and whose
// chunks lead on. The next collector follows the way that stays.
func TestTheWayThatStays(t *testing.T) {
	for _, leads := range []bool{true, false} { // whether the other way would lead on, too
		s, a := quietWorld(t)
		ctx := t.Context()
		first := point(t, a, [simLeaves * simBlocks]int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
		raw, err := a.open().ReadCommit(ctx, first.id)
		if err != nil {
			t.Fatal(err)
		}
		leaves, err := decodeBlocks(raw)
		if err != nil {
			t.Fatal(err)
		}
		blocks, err := readLeaf(ctx, a.reader, leaves[0])
		if err != nil {
			t.Fatal(err)
		}
		there := blocks[0]
		gone := make([]chunk.PackRef, 3) // the pack, and where it moved
		for i := range gone {
			gone[i] = chunk.PackRef{Session: chunkstore.NewSessionID(), Hash: pack.Hash{byte(i)}}
		}
		by := []chunk.SessionID{chunkstore.NewSessionID(), chunkstore.NewSessionID(), chunkstore.NewSessionID(), chunkstore.NewSessionID()}
		slices.SortFunc(by, func(a, b chunk.SessionID) int { return slices.Compare(a[:], b[:]) })
		moved := func(from chunk.PackRef, by chunk.SessionID, to chunk.PackRef, at int) {
			f := &chunkstore.Forward{Kind: pack.KindData, Count: 1, Runs: []chunkstore.ForwardRun{{First: 0, Count: 1, To: to, At: at}}}
			if err := a.open().PutForward(ctx, from, by, f); err != nil {
				t.Fatal(err)
			}
		}
		moved(gone[0], by[0], gone[1], 0)
		moved(gone[0], by[1], gone[2], 0)
		moved(gone[2], by[2], there.ref, there.n)
		if leads {
			moved(gone[1], by[3], there.ref, there.n)
		}

		w, err := a.open().Begin(ctx, s.index, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		loc, err := w.AddRecord(func(int) ([]byte, error) {
			return encodeBlocks(slices.Repeat([]simBlock{{gone[0], 0}}, simBlocks)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.FlushRecords(ctx); err != nil {
			t.Fatal(err)
		}
		second := &simPoint{id: w.ID(), content: first.content}
		leaf := simBlock{w.MapPack(loc.Pack), loc.Record}
		if err := w.Commit(ctx, encodeBlocks(slices.Repeat([]simBlock{leaf}, simLeaves))); err != nil {
			t.Fatal(err)
		}
		s.points = append(s.points, second)

		condemned, err := json.Marshal(chunkstore.Condemned{Collector: by[2].String(), Rewritten: []string{chunkstore.PackText(gone[2])}, Forwards: []string{chunkstore.PackText(gone[1])}})
		if err != nil {
			t.Fatal(err)
		}
		final, err := json.Marshal(chunkstore.Final{Packs: []string{chunkstore.PackText(gone[2])}, Forwards: []string{chunkstore.PackText(gone[1])}})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.open().PutRecord(ctx, chunkstore.GenerationName(1, "condemned"), chunkstore.RecordCondemned, condemned); err != nil {
			t.Fatal(err)
		}
		if err := a.open().PutRecord(ctx, chunkstore.GenerationName(1, "final"), chunkstore.RecordFinal, final); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := Collect(ctx, a.open(), Options{Trace: simTrace(a.open().NewReader(simCache))}); err != nil {
				t.Errorf("the other way leads on %v: %v", leads, err)
			}
			if err := s.check("after a collection"); err != nil {
				t.Error(err)
			}
		}
	}
}
