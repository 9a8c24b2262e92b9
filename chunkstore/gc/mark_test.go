package gc

import (
	"context"
	"slices"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
)

// A point that cannot be read whole, and was dropped meanwhile, hides nothing of
// what another point needs by the same node: where its trace ended, the other's
// goes on (found by seed 3041500 of the simulation).
func TestFailedTraceHidesNothing(t *testing.T) {
	s, a := quietWorld(t)
	points := []*simPoint{point(t, a, [simLeaves * simBlocks]int{1, 2, 3}), point(t, a, [simLeaves * simBlocks]int{4, 5, 6})}
	slices.SortFunc(points, func(x, y *simPoint) int { return slices.Compare(x.id[:], y.id[:]) })
	store := a.open()
	v, err := store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var refs []chunk.PackRef
	for _, p := range v.Packs.All() {
		refs = append(refs, p.Ref)
	}
	node, data := refs[0], refs[1]
	c := &collector{store: store, opts: Options{Trace: func(_ context.Context, p chunkstore.Commit, m chunk.Tracer) error {
		if !m.Enter(node, 0) {
			return nil
		}
		if p.ID == points[0].id {
			drop(t, a, points[0])
			return errLost
		}
		m.Chunks(data, 0, 1)
		return nil
	}, Progress: func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }}}
	m, err := c.mark(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if !m.need.any(data) {
		t.Errorf("%s is taken for dead, and a point of %d needs it", data, len(s.points))
	}
}
