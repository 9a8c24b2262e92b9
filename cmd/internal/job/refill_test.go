package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/gc"
	"cairn/index/restorepoint"
)

// exactIndex knows every chunk ID of every pack that was added.
type exactIndex struct {
	mu    sync.Mutex
	lists map[chunk.PackRef][]chunk.ID
	hooks map[chunk.ID]chunk.PackRef
}

func newExactIndex() *exactIndex {
	return &exactIndex{lists: map[chunk.PackRef][]chunk.ID{}, hooks: map[chunk.ID]chunk.PackRef{}}
}

func (x *exactIndex) Packs(_ context.Context, hooks []chunk.ID) (out []chunk.PackRef, _ error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, h := range hooks {
		if ref, ok := x.hooks[h]; ok {
			out = append(out, ref)
		}
	}
	return out, nil
}

func (x *exactIndex) Add(_ context.Context, ref chunk.PackRef, ids []chunk.ID) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lists[ref] = ids
	for _, id := range ids {
		x.hooks[id] = ref
	}
	return nil
}

func (x *exactIndex) ChunkIDs(_ context.Context, ref chunk.PackRef) ([]chunk.ID, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	ids, ok := x.lists[ref]
	return ids, ok
}

// imageSource is a fleece of an image in memory.
type imageSource []byte

func (s imageSource) Size() int64 { return int64(len(s)) }

func (s imageSource) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, s[off:]), nil
}

func (s imageSource) Extents(_ context.Context, fn func(off, length int64, zero bool) error) error {
	return fn(0, int64(len(s)), false)
}

// lossy is a repository whose place loses objects.
type lossy struct {
	store *chunkstore.Store
	place backend.Backend
	lose  func(t *testing.T, name string) // objects of packs/
}

func newLossy(t *testing.T, place backend.Backend, o chunkstore.InitOptions) *chunkstore.Store {
	t.Helper()
	o.Now = time.Now
	c, err := chunkstore.Init(t.Context(), place, o)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(t.Context(), place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	return chunkstore.NewStore(place, c, keys)
}

func inMemory(t *testing.T) lossy {
	place := mem.New()
	return lossy{store: newLossy(t, place, chunkstore.InitOptions{}), place: place, lose: func(t *testing.T, name string) {
		if err := place.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}}
}

// inShards loses one place more than the parity bears: of each pack something
// is left and listed.
func inShards(t *testing.T) lossy {
	shards := spread.Shards{K: 2, M: 1}
	l := &spread.Layout{Repository: chunkstore.NewID(), Shards: shards}
	var members []spread.Member
	var places []*mem.Place
	for i := range shards.Total() {
		m := mem.New()
		id := fmt.Appendf(nil, `{"place":"%d"}`, i)
		if err := m.Put(t.Context(), "place", id); err != nil {
			t.Fatal(err)
		}
		places = append(places, m)
		members = append(members, spread.Member{ID: fmt.Sprint(i), Spec: fmt.Sprintf("/%d", i), Place: m, Identity: id})
		l.Places = append(l.Places, spread.NewPlace(fmt.Sprintf("/%d", i)))
	}
	place, err := spread.New(members, shards, spread.Options{Strict: chunkstore.IsAbort})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = place.Close() })
	return lossy{store: newLossy(t, place, chunkstore.InitOptions{Layout: l}), place: place, lose: func(t *testing.T, name string) {
		gone := 0
		for _, m := range places {
			for i := range shards.Total() {
				shard := fmt.Sprintf("%s.%d", name, i)
				if _, err := m.Size(t.Context(), shard); err == nil && gone < 2 {
					gone++
					if err := m.Delete(t.Context(), shard); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if gone != 2 {
			t.Fatalf("%s has %d shards", name, gone)
		}
	}}
}

// store commits an image as a point and gives its session, open still.
func (l lossy) commit(t *testing.T, ix *exactIndex, img []byte, at int) (*chunkstore.Session, *restorepoint.Manifest) {
	t.Helper()
	ctx := t.Context()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := l.store.Begin(ctx, ix, nil)
	fatal(err)
	t.Cleanup(s.Close)
	b, err := restorepoint.NewBuilder(ctx, s, nil, int64(len(img)))
	fatal(err)
	_, err = readDisk(ctx, s, b, imageSource(img), false, newPace(time.Now), func(int64) {})
	fatal(err)
	fatal(s.Flush(ctx))
	fatal(b.Finish())
	fatal(s.FlushRecords(ctx))
	m := &restorepoint.Manifest{Version: 1, ID: s.ID().String(), VM: restorepoint.VM{Name: "web01"}, Time: time.Date(2026, 10, at, 2, 0, 0, 0, time.UTC), Read: "full",
		Disks: []restorepoint.Disk{{Name: "vda", Size: int64(len(img)), MapRoot: b.Root()}}}
	body, err := json.Marshal(m)
	fatal(err)
	fatal(s.Commit(ctx, body))
	return s, m
}

// read gives a point's disk, as another process reads it.
func (l lossy) read(t *testing.T, m *restorepoint.Manifest) ([]byte, error) {
	t.Helper()
	s := chunkstore.NewStore(l.place, l.store.Config, l.store.Keys())
	d, err := restorepoint.OpenMap(s.NewReader(4<<20), m.Disks[0].MapRoot, m.Disks[0].Size)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, m.Disks[0].Size)
	if n, err := restorepoint.NewImage(d, nil).ReadAt(out, 0); n < len(out) {
		return nil, err
	}
	return out, nil
}

// packs gives the packs that a session stored: of data, and of maps.
func (l lossy) packs(t *testing.T, s *chunkstore.Session) (data, maps []chunk.PackRef) {
	t.Helper()
	err := l.store.Packs(t.Context(), func(r chunk.PackRef, _ int64) error {
		if r.Session != s.ID() {
			return nil
		}
		if s.IsMap(r) {
			maps = append(maps, r)
		} else {
			data = append(data, r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return data, maps
}

// collect forgets a point and runs gc, twice: it has something to remove.
func (l lossy) collect(t *testing.T) {
	t.Helper()
	garbage, _ := l.commit(t, newExactIndex(), chunks(3, 100), 3)
	if err := l.store.Drop(t.Context(), garbage.ID(), chunkstore.Note{}); err != nil {
		t.Fatal(err)
	}
	s := chunkstore.NewStore(l.place, l.store.Config, l.store.Keys())
	for n := range 2 {
		r, err := GC(t.Context(), s, storeCatalogue{s}, nil, gc.Options{RewriteBelow: 0.5}, func(w string) { t.Error(w) })
		if err != nil || n == 0 && r.PacksRemoved == 0 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
}

// A place loses data packs, a map pack, all of it, or a pack that an earlier
// point has stored, between the store and the reading back: they are stored
// anew, and stay after gc.
func TestRefill(t *testing.T) {
	for where, open := range map[string]func(*testing.T) lossy{"one place": inMemory, "shards": inShards} {
		for what, choose := range map[string]func(data, maps, shared []chunk.PackRef) []chunk.PackRef{
			"data":    func(data, _, _ []chunk.PackRef) []chunk.PackRef { return data },
			"maps":    func(_, maps, _ []chunk.PackRef) []chunk.PackRef { return maps },
			"all":     func(data, maps, _ []chunk.PackRef) []chunk.PackRef { return append(data, maps...) },
			"earlier": func(_, _, shared []chunk.PackRef) []chunk.PackRef { return shared },
		} {
			t.Run(where+"/"+what, func(t *testing.T) {
				l, ix := open(t), newExactIndex()
				old, first := l.commit(t, ix, chunks(1, 300), 1)
				shared, _ := l.packs(t, old)
				img := append(chunks(1, 300), chunks(2, 100)...)
				s, m := l.commit(t, ix, img, 2)
				if st := s.Statistics(); st.ChunksKnown < 200 {
					t.Fatalf("nothing is shared: %+v", st)
				}
				if lost, err := s.ReadBack(t.Context()); err != nil || len(lost) > 0 {
					t.Fatalf("lost before: %v, %v", lost, err)
				}
				data, maps := l.packs(t, s)
				victims := choose(data, maps, shared)
				for _, r := range victims {
					l.lose(t, chunkstore.PackObject(r))
				}
				lost, err := s.ReadBack(t.Context())
				if err != nil || len(lost) != len(victims) || len(lost) == 0 {
					t.Fatalf("lost %v of %v, %v", lost, victims, err)
				}
				if _, err := l.read(t, m); err == nil {
					t.Fatal("it can be read without them")
				}
				r := refill{store: l.store, session: s, ids: ix.ChunkIDs, disks: []refillDisk{{src: imageSource(img), size: int64(len(img)), root: m.Disks[0].MapRoot}}}
				if err := r.run(t.Context(), lost); err != nil {
					t.Fatal(err)
				}
				for _, when := range []string{"at once", "after gc"} {
					got, err := l.read(t, m)
					if err != nil || !bytes.Equal(got, img) {
						t.Fatalf("%s: %v", when, err)
					}
					if _, err := l.read(t, first); err != nil {
						t.Errorf("%s, the earlier point: %v", when, err)
					}
					l.collect(t)
				}
				report, err := Check(t.Context(), l.store, storeCatalogueMap{storeCatalogue{l.store}, l.store}, CheckOptions{})
				if err != nil || report.Err() != nil {
					t.Errorf("check: %+v, %v", report, err)
				}
			})
		}
	}
}

// storeCatalogueMap opens maps, too.
type storeCatalogueMap struct {
	storeCatalogue
	s *chunkstore.Store
}

func (c storeCatalogueMap) Map(m *restorepoint.Manifest, disk string) (*restorepoint.Map, error) {
	return restorepoint.OpenMap(c.s.NewReader(4<<20), m.Disks[0].MapRoot, m.Disks[0].Size)
}

// A refill that cannot be is told as a loss, and leads nobody anywhere.
func TestRefillFails(t *testing.T) {
	img := chunks(1, 200)
	other := bytes.Clone(img)
	other[100*chunk.Size]++
	for what, c := range map[string]struct {
		src  source
		ids  bool
		full bool
	}{
		"not readable again": {nil, true, false}, "changed": {imageSource(other), true, false}, "no IDs": {imageSource(img), false, false},
		"the fleece broke": {brokenSource{int64(len(img))}, true, false}, "the place is full": {imageSource(img), true, true},
	} {
		t.Run(what, func(t *testing.T) {
			l, ix := inMemory(t), newExactIndex()
			s, m := l.commit(t, ix, img, 1)
			data, _ := l.packs(t, s)
			l.lose(t, chunkstore.PackObject(data[0]))
			if c.full {
				l.place.(*mem.Place).Fault = func(op, _ string) error {
					if op == "put" {
						return backend.ErrNoSpace
					}
					return nil
				}
			}
			r := refill{store: l.store, session: s, disks: []refillDisk{{src: c.src, size: int64(len(img)), root: m.Disks[0].MapRoot}},
				ids: func(ctx context.Context, ref chunk.PackRef) ([]chunk.ID, bool) {
					ids, ok := ix.ChunkIDs(ctx, ref)
					return ids, ok && c.ids
				}}
			err := r.run(t.Context(), data[:1])
			if !errors.Is(err, ErrLost) || !errors.Is(err, ErrDamage) || !strings.Contains(err.Error(), "--full-read") {
				t.Errorf("%v", err)
			}
			l.place.(*mem.Place).Fault = nil
			if all, err := l.store.Forwards(t.Context(), data[0]); err != nil || len(all) > 0 {
				t.Errorf("forwards: %v, %v", all, err)
			}
		})
	}
}

// Two sessions that share a pack with an earlier point, each another part of it,
// each store what they need of it anew when it is lost.
func TestRefillByTwo(t *testing.T) {
	l, ix := inMemory(t), newExactIndex()
	old, _ := l.commit(t, ix, chunks(1, 400), 1)
	shared, _ := l.packs(t, old)
	halves := [][]byte{chunks(1, 400)[:160*chunk.Size], chunks(1, 400)[200*chunk.Size:]}
	var sessions []*chunkstore.Session
	var points []*restorepoint.Manifest
	for i, img := range halves {
		s, m := l.commit(t, ix, img, 2+i)
		sessions, points = append(sessions, s), append(points, m)
	}
	for _, r := range shared {
		l.lose(t, chunkstore.PackObject(r))
	}
	for i, img := range halves {
		lost, err := sessions[i].ReadBack(t.Context())
		if err != nil || len(lost) != len(shared) {
			t.Fatalf("session %d: lost %v, %v", i, lost, err)
		}
		r := refill{store: l.store, session: sessions[i], ids: ix.ChunkIDs, disks: []refillDisk{{src: imageSource(img), size: int64(len(img)), root: points[i].Disks[0].MapRoot}}}
		if err := r.run(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
	}
	for i, img := range halves {
		if got, err := l.read(t, points[i]); err != nil || !bytes.Equal(got, img) {
			t.Errorf("point %d: %v", i, err)
		}
	}
	for _, s := range append(sessions, old) {
		if err := l.store.Drop(t.Context(), s.ID(), chunkstore.Note{}); err != nil {
			t.Fatal(err)
		}
	}
	l.collect(t)
	if v, err := l.store.List(t.Context()); err != nil || len(v.Refills)+v.Packs.Len() > 0 {
		t.Errorf("nobody needs anything, and there are: %v, %v, %v", v.Refills, v.Packs, err)
	}
}
