package restorepoint_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// noIndex knows nothing.
type noIndex struct{}

func (noIndex) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (noIndex) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

func openStore(t testing.TB) *chunkstore.Store {
	t.Helper()
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
	return chunkstore.NewStore(place, c, keys)
}

// extent is a range to be read from the disk, or known to be zero.
type extent struct {
	off, n int64
	zero   bool
}

// backUp stores the extents of disk over the parent's map.
func backUp(t testing.TB, s *chunkstore.Store, src restorepoint.Source, disk []byte, parent *restorepoint.Map, todo []extent) (restorepoint.MapRoot, chunkstore.Statistics) {
	t.Helper()
	ctx := context.Background()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := s.Begin(ctx, noIndex{}, nil)
	fatal(err)
	defer w.Close()
	b, err := restorepoint.NewBuilder(ctx, w, parent, int64(len(disk)))
	fatal(err)
	for _, e := range todo {
		if e.zero {
			first, n := e.off/chunk.Size, (e.n+chunk.Size-1)/chunk.Size
			fatal(w.Append(ctx, &chunkstore.Batch{Placed: func([]chunk.Loc) error { return b.Hole(first, n) }}))
			continue
		}
		for off := e.off; off < e.off+e.n; off += chunkstore.BatchSize {
			n := min(chunkstore.BatchSize, e.off+e.n-off)
			buf, err := w.Buffer(ctx)
			fatal(err)
			buf = buf[:(n+chunk.Size-1)/chunk.Size*chunk.Size]
			clear(buf)
			copy(buf, disk[off:off+n])
			first := off / chunk.Size
			batch := &chunkstore.Batch{Data: buf, Parent: make([]chunk.Loc, len(buf)/chunk.Size)}
			fatal(b.ParentLocs(first, batch.Parent))
			batch.Placed = func(l []chunk.Loc) error { return b.Set(first, l) }
			fatal(w.Append(ctx, batch))
		}
	}
	fatal(w.Flush(ctx))
	fatal(b.Finish())
	fatal(w.FlushRecords(ctx))
	root := b.Root()
	fatal(w.Commit(ctx, []byte("x")))
	return root, w.Statistics()
}

// scribble changes the disk at random and gives what a bitmap would mark, in
// order: clusters of 64 KiB.
func scribble(r *rand.Rand, disk []byte, times int) []extent {
	const cluster = 64 << 10
	dirty := map[int]bool{}
	for range times {
		off := r.IntN(len(disk))
		n := min(1+r.IntN(200<<10), len(disk)-off)
		switch r.IntN(3) {
		case 0:
			clear(disk[off : off+n])
		case 1:
			copy(disk[off:off+n], bytes.Repeat([]byte{byte(r.Uint32())}, n))
		default:
			for i := off; i < off+n; i++ {
				disk[i] = byte(r.Uint32() & 15)
			}
		}
		for c := off / cluster; c <= (off+n-1)/cluster; c++ {
			dirty[c] = true
		}
	}
	var out []extent
	for c := 0; c*cluster < len(disk); c++ {
		if !dirty[c] {
			continue
		}
		n := min(cluster, len(disk)-c*cluster)
		zero := chunkIsZero(disk[c*cluster : c*cluster+n])
		out = append(out, extent{int64(c * cluster), int64(n), zero && r.IntN(2) == 0})
	}
	return out
}

func chunkIsZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func checkImage(t *testing.T, img restorepoint.Image, disk []byte, r *rand.Rand) {
	t.Helper()
	if img.Size() != int64(len(disk)) {
		t.Fatalf("size %d, want %d", img.Size(), len(disk))
	}
	got := make([]byte, len(disk))
	for off := 0; off < len(disk); {
		n := min(1+r.IntN(3<<20), len(disk)-off)
		if k, err := img.ReadAt(got[off:off+n], int64(off)); k != n || err != nil && err != io.EOF {
			t.Fatalf("read %d at %d: %d, %v", n, off, k, err)
		}
		off += n
	}
	if i := firstDiff(got, disk); i >= 0 {
		t.Fatalf("differs at %d", i)
	}
	if _, err := img.ReadAt(make([]byte, 2), int64(len(disk)-1)); err != io.EOF {
		t.Errorf("read over the end: %v", err)
	}
	// What NextData calls a hole is zero.
	end := int64(0)
	for {
		start, stop, err := img.NextData(end)
		if err == io.EOF {
			start = int64(len(disk))
		} else if err != nil || start < end || stop <= start || stop > int64(len(disk)) {
			t.Fatalf("NextData(%d): %d, %d, %v", end, start, stop, err)
		}
		if !chunkIsZero(disk[end:start]) {
			t.Fatalf("a hole at %d..%d holds data", end, start)
		}
		if err == io.EOF {
			break
		}
		end = stop
	}
}

func firstDiff(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// Goal: any history of full and incremental points gives, for every point,
// exactly the disk of its instant. Method: random writes, zeros and changes
// of size over a disk that ends inside a chunk; all points are read at the
// end, when later ones share their nodes.
func TestHistory(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			s := openStore(t)
			reader := s.NewReader(4 << 20)
			ahead := restorepoint.NewReadAhead(context.Background(), reader)
			defer ahead.Close()
			disk := make([]byte, 40<<20+1000)
			var disks [][]byte
			var maps []*restorepoint.Map
			for point := range 8 {
				var parent *restorepoint.Map
				todo := scribble(r, disk, 1+r.IntN(20))
				if point > 0 {
					parent = maps[point-1]
				}
				full := point == 0 || r.IntN(4) == 0
				if r.IntN(4) == 0 { // grown or shrunk: QEMU.md asks for a full read
					disk = append(bytes.Clone(disk[:len(disk)-r.IntN(9<<20)]), make([]byte, r.IntN(20<<20))...)
					full = true
				}
				if full {
					todo = []extent{{0, int64(len(disk)), false}}
				}
				root, _ := backUp(t, s, reader, disk, parent, todo)
				m, err := restorepoint.OpenMap(reader, root, int64(len(disk)))
				if err != nil {
					t.Fatal(err)
				}
				maps, disks = append(maps, m), append(disks, bytes.Clone(disk))
			}
			for i, m := range maps {
				checkImage(t, restorepoint.NewImage(m, ahead), disks[i], r)
			}
		})
	}
}

// A full read of an unchanged disk stores no node and no chunk.
func TestFullReadOfSameDiskStoresNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	s := openStore(t)
	reader := s.NewReader(4 << 20)
	disk := make([]byte, 50<<20)
	scribble(r, disk, 40)
	all := []extent{{0, int64(len(disk)), false}}
	root, _ := backUp(t, s, reader, disk, nil, all)
	m, err := restorepoint.OpenMap(reader, root, int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	again, st := backUp(t, s, reader, disk, m, all)
	if st.ChunksNew != 0 || st.Packs != 0 || fmt.Sprint(again) != fmt.Sprint(root) {
		t.Errorf("stored %+v; roots %v and %v", st, root, again)
	}
}

// A disk of 1 TiB with nothing in it, and with one chunk at its end, costs
// next to nothing.
func TestHugeSparseDisk(t *testing.T) {
	ctx := context.Background()
	const size = 1 << 40
	s := openStore(t)
	w, err := s.Begin(ctx, noIndex{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b, err := restorepoint.NewBuilder(ctx, w, nil, size)
	if err != nil {
		t.Fatal(err)
	}
	buf, err := w.Buffer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	copy(buf, "the end")
	last := int64(size/chunk.Size - 1)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.Append(ctx, &chunkstore.Batch{Placed: func([]chunk.Loc) error { return b.Hole(0, last) }}))
	must(w.Append(ctx, &chunkstore.Batch{Data: buf[:chunk.Size], Placed: func(l []chunk.Loc) error { return b.Set(last, l) }}))
	must(w.Flush(ctx))
	must(b.Finish())
	must(w.FlushRecords(ctx))
	reader := s.NewReader(1 << 20)
	m, err := restorepoint.OpenMap(reader, b.Root(), size)
	must(err)
	img := restorepoint.NewImage(m, nil)
	start, end, err := img.NextData(0)
	if start != size-chunk.Size || end != size || err != nil {
		t.Errorf("data at %d..%d, %v", start, end, err)
	}
	got := make([]byte, 7)
	if _, err := img.ReadAt(got, size-chunk.Size); err != nil || string(got) != "the end" {
		t.Errorf("read %q, %v", got, err)
	}
}

// The IDs that a map gives are those of the chunks' content; holes have none.
func TestChunkIDs(t *testing.T) {
	s := openStore(t)
	disk := make([]byte, 40<<20+512) // over two borders of leaves
	r := rand.New(rand.NewPCG(5, 5))
	scribble(r, disk, 60)
	root, _ := backUp(t, s, s.NewReader(1<<20), disk, nil, []extent{{0, int64(len(disk)), false}})
	m, err := restorepoint.OpenMap(s.NewReader(1<<20), root, int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	h, ids := chunk.NewHasher(s.ChunkKey()), s.NewIDReader()
	padded := append(bytes.Clone(disk), make([]byte, 4*chunk.Size)...)
	total := int64(len(disk))/chunk.Size + 3
	for _, n := range []int64{1, 7, 512, total} {
		for first := int64(0); first+n <= total; first += n {
			got := make([]chunk.ID, n)
			if err := m.ChunkIDs(t.Context(), ids, first, got); err != nil {
				t.Fatal(err)
			}
			for i, id := range got {
				c := padded[(first+int64(i))*chunk.Size:][:chunk.Size]
				var want chunk.ID
				if !chunk.IsZero(c) {
					want = h.Sum(c)
				}
				if id != want {
					t.Fatalf("chunk %d (asked for %d from %d): %v, want %v", first+int64(i), n, first, id, want)
				}
			}
		}
	}
}
