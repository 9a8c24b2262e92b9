package restorepoint_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// counted counts the records that are read.
type counted struct {
	restorepoint.Source
	records int
}

func (c *counted) ReadRecord(ctx context.Context, ref chunk.PackRef, n int) ([]byte, error) {
	c.records++
	return c.Source.ReadRecord(ctx, ref, n)
}

// Goal: outside of what Changed gives, the disks of two points are equal, and
// inside there is no chunk that both share. Method: random histories of disks
// that grow and shrink, every pair of points.
func TestChanged(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	s := openStore(t)
	reader := s.NewReader(4 << 20)
	disk := make([]byte, 36<<20+1000)
	var disks [][]byte
	var maps []*restorepoint.Map
	for point := range 6 {
		var parent *restorepoint.Map
		todo := scribble(r, disk, 1+r.IntN(20))
		if point > 0 {
			parent = maps[point-1]
		}
		if point == 0 || point == 3 {
			disk = append(bytes.Clone(disk[:len(disk)-r.IntN(9<<20)]), make([]byte, r.IntN(20<<20))...)
			todo = []extent{{0, int64(len(disk)), false}}
		}
		root, _ := backUp(t, s, reader, disk, parent, todo)
		m, err := restorepoint.OpenMap(reader, root, int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		maps, disks = append(maps, m), append(disks, bytes.Clone(disk))
	}
	for i, a := range maps {
		for j, b := range maps {
			end, total := int64(0), int64(0)
			padded := func(k int) []byte { return append(bytes.Clone(disks[k]), make([]byte, 64<<20-len(disks[k]))...) }
			da, db := padded(i), padded(j)
			err := a.Changed(t.Context(), b, func(start, stop int64) error {
				if start < end || start == end && start > 0 || stop <= start {
					t.Fatalf("%d to %d: range %d to %d behind %d", j, i, start, stop, end)
				}
				if !bytes.Equal(da[end:start], db[end:start]) {
					t.Fatalf("%d to %d: bytes %d to %d differ and are not given", j, i, end, start)
				}
				total += stop - start
				end = stop
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(da[end:], db[end:]) {
				t.Errorf("%d to %d: bytes behind %d differ and are not given", j, i, end)
			}
			if i == j && total > 0 {
				t.Errorf("point %d differs from itself by %d bytes", i, total)
			}
			if i == j+1 && i != 3 && total > 25<<20 {
				t.Errorf("%d to %d: %d bytes are called changed", j, i, total)
			}
		}
		total := int64(0)
		if err := a.Changed(t.Context(), nil, func(start, stop int64) error { total += stop - start; return nil }); err != nil || total != int64(len(disks[i])) {
			t.Errorf("against nothing: %d bytes of %d, %v", total, len(disks[i]), err)
		}
	}
}

// What two maps share is not read.
func TestChangedSkipsSharedNodes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	s := openStore(t)
	reader := s.NewReader(4 << 20)
	disk := make([]byte, 256<<20)
	scribble(r, disk, 200)
	root, _ := backUp(t, s, reader, disk, nil, []extent{{0, int64(len(disk)), false}})
	m, err := restorepoint.OpenMap(reader, root, int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	disk[100<<20]++
	after, _ := backUp(t, s, reader, disk, m, []extent{{100 << 20, 65536, false}})
	src := &counted{Source: reader}
	var open [2]*restorepoint.Map
	for i, root := range []restorepoint.MapRoot{root, after} {
		if open[i], err = restorepoint.OpenMap(src, root, int64(len(disk))); err != nil {
			t.Fatal(err)
		}
	}
	var got [][2]int64
	if err := open[1].Changed(t.Context(), open[0], func(start, end int64) error { got = append(got, [2]int64{start, end}); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0] != [2]int64{100 << 20, 100<<20 + 4096} || src.records != 4 {
		t.Errorf("ranges %v, %d records read", got, src.records)
	}
}
