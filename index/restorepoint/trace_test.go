package restorepoint_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

type record struct {
	ref chunk.PackRef
	n   int
}

// told is a Tracer that keeps all that it is told.
type told struct {
	entered, records, chunks map[record]bool
}

func newTold() *told {
	return &told{map[record]bool{}, map[record]bool{}, map[record]bool{}}
}

func (t *told) Enter(ref chunk.PackRef, n int) bool {
	r := record{ref, n}
	fresh := !t.entered[r]
	t.entered[r] = true
	return fresh
}

func (t *told) Record(ref chunk.PackRef, n int) { t.records[record{ref, n}] = true }

func (t *told) Chunks(ref chunk.PackRef, first, count int) {
	for i := first; i < first+count; i++ {
		t.chunks[record{ref, i}] = true
	}
}

// noted is a Source that keeps what is read of it.
type noted struct {
	restorepoint.Source
	records map[record]bool
	reads   int
}

func (c *noted) ReadRecord(ctx context.Context, ref chunk.PackRef, n int) ([]byte, error) {
	c.records[record{ref, n}] = true
	c.reads++
	return c.Source.ReadRecord(ctx, ref, n)
}

// Goal: what a point needs is what Trace tells of: gc removes the rest. Method:
// a history of points; all records that reading a point's map takes, and all
// chunks that its extents name, are exactly what was told. What two points
// share is read once.
func TestTrace(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 7))
	s := openStore(t)
	ctx := context.Background()
	reader := s.NewReader(4 << 20)
	disk := make([]byte, 40<<20+1000)
	all := newTold()
	var parent *restorepoint.Map
	for point := range 5 {
		todo := scribble(r, disk, 3)
		if point == 0 {
			todo = []extent{{0, int64(len(disk)), false}}
		}
		root, _ := backUp(t, s, reader, disk, parent, todo)
		d := restorepoint.Disk{Name: "vda", Size: int64(len(disk)), MapRoot: root}
		one, src := newTold(), &noted{Source: reader, records: map[record]bool{}}
		m, err := restorepoint.OpenMap(src, root, d.Size)
		if err != nil {
			t.Fatal(err)
		}
		chunks := 0
		if err := restorepoint.Trace(ctx, reader, d, one); err != nil {
			t.Fatal(err)
		}
		if err := m.Extents(ctx, func(e restorepoint.Extent) error {
			for i := range e.Chunks {
				if !one.chunks[record{e.Pack, e.First + i}] {
					t.Fatalf("point %d: chunk %d of %s was not told of", point, e.First+i, e.Pack)
				}
			}
			chunks += e.Chunks
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(one.chunks) > chunks || len(one.chunks) == 0 {
			t.Errorf("point %d: told of %d chunks of %d", point, len(one.chunks), chunks)
		}
		if len(one.records) != len(src.records) {
			t.Errorf("point %d: told of %d records, %d are read", point, len(one.records), len(src.records))
		}
		for x := range src.records {
			if !one.records[x] {
				t.Errorf("point %d: record %d of %s was not told of", point, x.n, x.ref)
			}
		}
		before := len(all.records)
		shared := &noted{Source: reader, records: map[record]bool{}}
		if err := restorepoint.Trace(ctx, shared, d, all); err != nil {
			t.Fatal(err)
		}
		if fresh := len(all.records) - before; shared.reads != fresh {
			t.Errorf("point %d: %d records are new, and %d were read", point, fresh, shared.reads)
		}
		if parent, err = restorepoint.OpenMap(reader, root, d.Size); err != nil {
			t.Fatal(err)
		}
	}
}
