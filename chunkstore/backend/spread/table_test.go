package spread

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// shelf is a place that lists shards which nobody stored: those of packs made
// up from their numbers. It fails behind the stop-th, if that is not 0.
type shelf struct {
	backend.Backend
	s     *Spread
	i     int
	packs int
	stop  int
}

var errShelf = errors.New("the shelf broke")

func (p *shelf) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	if prefix != packsPrefix {
		return p.Backend.List(ctx, prefix, fn)
	}
	for n := range p.packs {
		if n+1 == p.stop {
			return errShelf
		}
		name := madeUp(n)
		for shard, at := range p.s.order(name) {
			if at != p.i {
				continue
			}
			if err := fn(backend.Object{Name: shardName(name, shard), Size: 4 << 20, Modified: time.Unix(1e9, 0)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// madeUp names a pack, 650 a session, in the order of names.
func madeUp(n int) string {
	var content [sumSize]byte
	binary.BigEndian.PutUint64(content[:], uint64(n))
	return fmt.Sprintf("%s%032x/%s", packsPrefix, n/650, hex.EncodeToString(content[:]))
}

func shelves(t *testing.T, packs int) (*Spread, []*shelf) {
	t.Helper()
	var members []Member
	var list []*shelf
	for i := range 6 {
		p := &shelf{Backend: mem.New(), i: i, packs: packs}
		members = append(members, Member{ID: fmt.Sprintf("%032x", i+1), Spec: fmt.Sprint(i), Place: p})
		list = append(list, p)
	}
	s, err := New(members, Shards{K: 4, M: 2}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for _, p := range list {
		p.s = s
	}
	return s, list
}

// TestListingIsSmall: what a listing takes for each pack is told, and bounded.
// CAIRN_LIST_PACKS lists more; 6,600,000 are 100 TiB.
func TestListingIsSmall(t *testing.T) {
	packs := 50_000
	if n, err := strconv.Atoi(os.Getenv("CAIRN_LIST_PACKS")); err == nil {
		packs = n
	}
	s, _ := shelves(t, packs)
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, n := inUse(), 0
	var first uint64
	err := s.List(t.Context(), packsPrefix, func(o backend.Object) error {
		if n == 0 {
			first = inUse()
		}
		if n%1000 == 0 && (o.Name != madeUp(n) || o.Size < 15<<20 || o.Partial || o.Unsure || !o.Modified.Equal(time.Unix(1e9, 0))) {
			t.Errorf("object %d is %+v", n, o)
		}
		n++
		return nil
	})
	if err != nil || n != packs {
		t.Fatalf("%d of %d packs, %v", n, packs, err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	each := float64(first-before) / float64(packs)
	t.Logf("%d packs: %.0f bytes each while they are told, %d MiB from the system in all", packs, each, m.Sys>>20)
	if each > 100 {
		t.Errorf("a listing takes %.0f bytes for each pack", each)
	}
}

// TestListingOfPlacesThatFail: what a place listed before it failed counts for
// nothing, and nobody misses it.
func TestListingOfPlacesThatFail(t *testing.T) {
	const packs = 40
	s, list := shelves(t, packs)
	list[1].stop, list[4].stop = 1, packs/2
	names := func() (names []string) {
		if err := s.List(t.Context(), packsPrefix, func(o backend.Object) error {
			names = append(names, o.Name)
			if o.Partial || o.Unsure {
				t.Errorf("%+v: only places that failed do not show a shard", o)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return names
	}
	if got := names(); len(got) != packs || !slices.IsSorted(got) {
		t.Errorf("%d packs of %d", len(got), packs)
	}
	list[2].stop, list[3].stop = packs, packs
	err := s.List(t.Context(), packsPrefix, func(backend.Object) error { return nil })
	if !errors.Is(err, ErrAway) {
		t.Errorf("four of six places failed: %v", err)
	}
}

// TestListingOfEqualSlots: packs whose names begin alike are several.
func TestListingOfEqualSlots(t *testing.T) {
	s, _ := shelves(t, 0)
	table := s.newTable()
	var want []string
	for n := range 300 {
		var content [sumSize]byte
		content[sumSize-1], content[sumSize-2] = byte(n), byte(n/256)
		name := packsPrefix + "a/" + hex.EncodeToString(content[:])
		want = append(want, name)
		for shard, at := range s.order(name) {
			table.show(at, backend.Object{Name: shardName(name, shard), Size: 1})
		}
	}
	var got []string
	for o := range table.all() {
		got = append(got, o.name)
		if !s.complete(o) || o.lacks {
			t.Errorf("%+v is not whole", o)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d packs of %d", len(got), len(want))
	}
}
