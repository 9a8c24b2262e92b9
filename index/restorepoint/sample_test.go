package restorepoint

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSample: every part of the disk is drawn from, the count is as asked for,
// and where the map has no node only the first few are.
func TestSample(t *testing.T) {
	ctx := context.Background()
	rnd := rand.New(rand.NewPCG(3, 4))
	const size = 64<<20 + 100 // 16,385 chunks in 5 leaves, the last one short
	empty, err := OpenMap(nil, MapRoot{}, size)
	if err != nil {
		t.Fatal(err)
	}
	got, err := empty.Sample(ctx, rnd, 0.5, 300)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 300 {
		t.Errorf("a map of nothing: %d drawn, want only the least of 300", len(got))
	}
	for _, off := range got {
		if off < 0 || off >= size || off%4096 != 0 {
			t.Fatalf("drew %d", off)
		}
	}
	if slices.IsSorted(got) {
		t.Error("the order is not random")
	}
	// Leaf 1 alone is there.
	m := &Map{size: size, nodes: map[int]nodeRef{0: {}}, leaves: map[int64]*cachedLeaf{},
		middles: map[int]*middle{0: {leaves: map[int]nodeRef{1: {}}}}}
	if got, err = m.Sample(ctx, rnd, 0.5, 300); err != nil {
		t.Fatal(err)
	}
	in := 0
	for _, off := range got[300:] {
		if off/LeafSize != 1 {
			t.Fatalf("behind the least ones, %d was drawn, where nothing is", off)
		}
		in++
	}
	if want := 0.5 * 16385 / 4; float64(in) < want/2 || float64(in) > want*2 {
		t.Errorf("%d drawn from the leaf, want about %.0f", in, want)
	}
	if none, err := (&Map{}).Sample(ctx, rnd, 1, 10); err != nil || len(none) > 0 {
		t.Errorf("an empty disk: %v, %v", none, err)
	}
}
