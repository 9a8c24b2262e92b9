package gc

import (
	"math/rand/v2"
	"slices"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
)

// What is needed is known to the chunk as long as memory suffices. When it does
// not, more is taken for needed, never less; packs that are asked for stay exact,
// and each pack is known in one of a few runs.
func TestNeeds(t *testing.T) {
	everKnown := map[int]bool{}
	const packs = 40
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 9))
		var l chunkstore.PackList
		refs := make([]chunk.PackRef, packs+2)
		for i := range refs {
			refs[i].Session[0] = byte(i / 7)
			refs[i].Hash[0], refs[i].Hash[31] = byte(i), byte(i)
			for k := 1; k < 31; k++ {
				refs[i].Hash[k] = byte(i*31 + k*k)
			}
			refs[i].Hash[16] = byte(i) // the bits that choose
			if i < packs {
				l.Add(refs[i], 16<<20)
			}
		}
		limit := int64(0)
		if seed%2 == 1 {
			limit = 2000
		}
		n := newNeeds(&l, limit, chunk.SessionID{byte(r.Uint32()), byte(r.Uint32())}, refs[3:5])
		want := make([]map[int]bool, len(refs))
		for range 400 {
			i, first, count := r.IntN(len(refs)), r.IntN(5000), 1+r.IntN(30)
			if i%4 == 0 && i > 4 {
				continue // nobody needs these
			}
			if want[i] == nil {
				want[i] = map[int]bool{}
			}
			fresh := false
			for c := first; c < first+count; c++ {
				fresh = fresh || !want[i][c]
				want[i][c] = true
			}
			if got := n.add(refs[i], first, count); got != fresh && (limit == 0 || got && !fresh) {
				t.Fatalf("seed %d: new %v, want %v", seed, got, fresh)
			}
		}
		for i, ref := range refs {
			s, known := n.of(ref)
			if n.any(ref) != (want[i] != nil) || known && (s != nil) != (want[i] != nil) {
				t.Fatalf("seed %d: pack %d: any %v, set %v", seed, i, n.any(ref), s)
			}
			if !known {
				if limit == 0 || i == 3 || i == 4 || i >= packs {
					t.Fatalf("seed %d: pack %d is not known to the chunk", seed, i)
				}
				continue
			}
			if limit > 0 {
				everKnown[i] = true
			}
			var all, got []int
			for c := range want[i] {
				all = append(all, c)
			}
			slices.Sort(all)
			if s != nil {
				s.each(func(first, count int) bool {
					for c := range count {
						got = append(got, first+c)
					}
					return true
				})
			}
			if !slices.Equal(all, got) {
				t.Fatalf("seed %d: pack %d: %d chunks, want %d", seed, i, len(got), len(all))
			}
		}
		if limit > 0 && n.bytes > limit+2*48*8 && n.mask < 1<<8 {
			t.Errorf("seed %d: the sets take %d bytes, mask %x", seed, n.bytes, n.mask)
		}
	}
	for i := range packs {
		if !everKnown[i] {
			t.Errorf("pack %d is taken whole in every run", i)
		}
	}
}

// The simulation finds nothing, either, when memory is short from the start.
func TestSimulationShortOfMemory(t *testing.T) {
	world, copied := newWorld(t), 0
	for seed := range uint64(25) {
		s := world.newSim(t, 1000+seed, nil)
		s.sets = 1
		if err := s.play(); err != nil {
			t.Fatalf("seed %d: step %d: %v", 1000+seed, s.steps, err)
		}
		copied += s.counts["packs copied"]
	}
	t.Logf("%d packs copied", copied)
}
