package restorepoint_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// A measure is what the extents add up to, point after point.
func TestMeasure(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	s := openStore(t)
	src := s.NewReader(32 << 20)
	disk := make([]byte, 40<<20+1000)
	measure := restorepoint.NewMeasure(src)
	var parent *restorepoint.Map
	for point := range 8 {
		root, _ := backUp(t, s, src, disk, parent, scribble(r, disk, 20))
		m, err := restorepoint.OpenMap(src, root, int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		var want int64
		if err := m.Extents(t.Context(), func(e restorepoint.Extent) error { want += int64(e.Chunks); return nil }); err != nil {
			t.Fatal(err)
		}
		d := restorepoint.Disk{Size: int64(len(disk)), MapRoot: root}
		if got, err := measure.Disk(t.Context(), d); err != nil || got != want || want == 0 {
			t.Errorf("point %d holds %d chunks, want %d: %v", point, got, want, err)
		}
		parent = m
	}
	d := restorepoint.Disk{Size: 1 << 20, MapRoot: restorepoint.MapRoot{Nodes: [][3]int{{0, 7, 0}}}}
	if _, err := measure.Disk(t.Context(), d); !errors.Is(err, restorepoint.ErrCorrupt) {
		t.Errorf("a damaged root: %v", err)
	}
	if n, err := measure.Disk(t.Context(), restorepoint.Disk{Size: 100 * chunk.Size}); n != 0 || err != nil {
		t.Errorf("an empty disk: %d, %v", n, err)
	}
}
