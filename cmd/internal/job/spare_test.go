package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// partsSource is a disk in memory that tells of its zeros.
type partsSource struct {
	qmp.Source
	disk  []byte
	reads atomic.Int64 // several go on at once
	whole bool
}

func (s *partsSource) Size() int64 { return int64(len(s.disk)) }

func (s *partsSource) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	s.reads.Add(1)
	return copy(p, s.disk[off:]), nil
}

func (s *partsSource) Extents(_ context.Context, fn func(off, length int64, zero bool) error) error {
	const piece = 96 << 10 // no cluster's border
	for off := int64(0); off < s.Size(); off += piece {
		n := min(piece, s.Size()-off)
		if err := fn(off, n, len(bytes.Trim(s.disk[off:off+n], "\x00")) == 0); err != nil {
			return err
		}
	}
	return nil
}

func TestClusters(t *testing.T) {
	const c = spareCluster
	got := clusters([]Spare{
		{"vda", 3 * c, 5 * c, false}, {"vdb", 0, c, false}, {"vda", 1, 2*c + 5, false}, {"vda", 4 * c, 6*c - 1, false}, {"vda", 9 * c, 9*c + 100, false},
		{"vda", 7*c + 1, 8*c - 1, false}, {"vda", 20 * c, 30 * c, false}, {"vda", -5, c, false},
	}, "vda", 9*c+100)
	want := []Spare{{"vda", c, 2 * c, false}, {"vda", 3 * c, 5 * c, false}, {"vda", 9 * c, 9*c + 100, false}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := clusters([]Spare{{"vda", 0, 4 * c, false}, {"vda", 3 * c, 5 * c, true}}, "vda", 9*c); got != nil {
		t.Errorf("free space that is swap is left out: %v", got)
	}
}

// TestLeaveOut reads disks with random free ranges: the point has zeros there
// and the disk's bytes everywhere else, and what is counted is what it lacks.
func TestLeaveOut(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		disk := make([]byte, 3<<20+rng.IntN(5)*1000)
		for off := 0; off < len(disk); off += 32 << 10 {
			if rng.IntN(3) > 0 {
				for i := off; i < min(off+32<<10, len(disk)); i++ {
					disk[i] = byte(rng.Uint32())
				}
			}
		}
		want := bytes.Clone(disk)
		var found []Spare
		for range 10 {
			start := rng.Int64N(int64(len(disk)))
			found = append(found, Spare{"vda", start, min(start+rng.Int64N(400<<10), int64(len(disk))), false})
		}
		src := &partsSource{disk: disk}
		list := clusters(found, "vda", src.Size())
		for _, s := range list {
			clear(want[s.Start:s.End])
		}
		var spared int64
		got := readBack(t, &sparing{Source: src, list: list, told: func(n int64, _ bool) { spared += n }}, src.Size())
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the point is not the disk without its free ranges", seed)
		}
		lacks := int64(0)
		for off := 0; off < len(disk); off += 4096 {
			end := min(off+4096, len(disk))
			if !bytes.Equal(disk[off:end], want[off:end]) {
				lacks += int64(end - off)
			}
		}
		if spared < lacks || lacks > 0 && spared > 4*lacks+128<<10 {
			t.Errorf("seed %d: %d bytes are counted as left out, %d are", seed, spared, lacks)
		}
	}
}

// partsSource is read incrementally until it is read whole.
func (s *partsSource) Whole() qmp.Source { return &partsSource{disk: s.disk, whole: true} }
func (s *partsSource) Anywhere() bool    { return true }

// TestHibernatingGuest: the memory image of a guest that is off may need what
// an earlier full read has left out, of swap above all: the disks that lack
// something are read whole. A guest that just is off is read incrementally.
func TestHibernatingGuest(t *testing.T) {
	for _, c := range []struct {
		name   string
		spared int64
		err    error
		whole  bool
	}{
		{"hibernates", 1 << 20, fmt.Errorf("%w (vda2-swap)", ErrHibernates), true},
		{"hibernates, and nothing is lacking", 0, fmt.Errorf("%w (vda2-swap)", ErrHibernates), false},
		{"is off", 1 << 20, nil, false},
		{"cannot be looked at", 1 << 20, errors.New("no root"), false},
	} {
		b := &Backup{Step: t.Logf, host: images{}, plans: []diskPlan{{spared: c.spared, decision: qmp.Decision{Incremental: true}}},
			Spare: func(_ context.Context, _ *restorepoint.Manifest, off bool, _ func(string) (restorepoint.Image, error)) ([]Spare, []string, error) {
				if !off {
					t.Error("the Sparer is not told that the guest is off")
				}
				return nil, nil, c.err
			}}
		got, err := b.leaveOut(t.Context(), []qmp.Source{&partsSource{disk: make([]byte, 1<<20)}})
		if err != nil {
			t.Fatal(err)
		}
		whole := got[0].(*partsSource).whole
		if whole != c.whole || b.plans[0].decision.Incremental == c.whole || (b.plans[0].spared == 0) != (c.whole || c.spared == 0) {
			t.Errorf("%s: read whole %t, %+v", c.name, whole, b.plans[0])
		}
	}
}

// readBack stores a source and gives the image of it.
func readBack(t *testing.T, src source, size int64) []byte {
	t.Helper()
	ctx := t.Context()
	place := mem.New()
	c, err := chunkstore.Init(ctx, place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(ctx, place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	store := chunkstore.NewStore(place, c, keys)
	s, err := store.Begin(ctx, noIndex{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := restorepoint.NewBuilder(ctx, s, nil, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readDisk(ctx, s, b, src, false, newPace(time.Now), func(int64) {}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []error{s.Flush(ctx), b.Finish(), s.FlushRecords(ctx)} {
		if step != nil {
			t.Fatal(step)
		}
	}
	reader := store.NewReader(8 << 20)
	m, err := restorepoint.OpenMap(reader, b.Root(), size)
	if err != nil {
		t.Fatal(err)
	}
	ahead := restorepoint.NewReadAhead(ctx, reader)
	defer ahead.Close()
	got := make([]byte, size)
	if _, err := restorepoint.NewImage(m, ahead).ReadAt(got, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return got
}

// TestFleeceImage reads a fleece as an image at odd places.
func TestFleeceImage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	disk := make([]byte, 200_001)
	for i := range disk {
		disk[i] = byte(rng.Uint32())
	}
	src := &partsSource{disk: disk}
	f := &fleeceImage{ctx: t.Context(), source: src, blocks: map[int64][]byte{}}
	for range 200 {
		off := rng.Int64N(int64(len(disk)) + 10)
		p := make([]byte, rng.IntN(70_000))
		n, err := f.ReadAt(p, off)
		want := disk[min(off, int64(len(disk))):]
		want = want[:min(len(want), len(p))]
		if !bytes.Equal(p[:n], want) || n < len(p) && err != io.EOF || n == len(p) && err != nil {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
	if src.reads.Load() > 7 {
		t.Errorf("%d reads of 7 blocks", src.reads.Load())
	}
}
