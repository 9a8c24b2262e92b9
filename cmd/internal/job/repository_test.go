package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// memRepository is a repository in memory.
type memRepository struct {
	place *mem.Place
	store *chunkstore.Store
	// reader is what all maps read with; nil: each has its own.
	reader *chunkstore.Reader
}

func newMemRepository(t testing.TB) *memRepository {
	t.Helper()
	ctx := context.Background()
	r := &memRepository{place: mem.New()}
	c, err := chunkstore.Init(ctx, r.place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	r.open(t, c)
	return r
}

func (r *memRepository) open(t testing.TB, c *chunkstore.Config) {
	t.Helper()
	keys, err := chunkstore.Unlock(context.Background(), r.place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	r.store = chunkstore.NewStore(r.place, c, keys)
}

// copyOf gives the same objects in another place.
func (r *memRepository) copyOf(t testing.TB) *memRepository {
	t.Helper()
	out := &memRepository{place: copyPlace(t, r.place)}
	out.open(t, r.store.Config)
	return out
}

func copyPlace(t testing.TB, from *mem.Place) *mem.Place {
	t.Helper()
	to := mem.New()
	for name, body := range objectsOf(t, from) {
		if err := to.Put(context.Background(), name, body); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// noPacks is an index that knows nothing.
type noPacks struct{}

func (noPacks) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (noPacks) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// point stores an image as the disk vda of a new point, on its parent's maps.
func (r *memRepository) point(t testing.TB, at int, img []byte, parent *restorepoint.Manifest) *restorepoint.Manifest {
	t.Helper()
	m, err := r.backUp(context.Background(), noPacks{}, at, img, parent)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// backUp is point where it may fail, and with an index.
func (r *memRepository) backUp(ctx context.Context, ix chunkstore.Index, at int, img []byte, parent *restorepoint.Manifest) (*restorepoint.Manifest, error) {
	var before *restorepoint.Map
	m := &restorepoint.Manifest{Version: 1, VM: restorepoint.VM{Name: "web01"}, Time: time.Date(2026, 10, at, 2, 0, 0, 0, time.UTC), Read: "full", Reason: "a test",
		Consistency: restorepoint.Consistency{Level: "crash", Reason: "a test"}}
	if parent != nil {
		var err error
		if before, err = r.Map(parent, "vda"); err != nil {
			return nil, err
		}
		m.Parent = parent.ID
	}
	s, err := r.store.Begin(ctx, ix, []byte(`{"vm":"web01"}`))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	b, err := restorepoint.NewBuilder(ctx, s, before, int64(len(img)))
	if err != nil {
		return nil, err
	}
	for off := 0; off < len(img); off += chunkstore.BatchSize {
		buf, err := s.Buffer(ctx)
		if err != nil {
			return nil, err
		}
		n := copy(buf, img[off:])
		buf = buf[:roundUp(int64(n))]
		clear(buf[n:])
		if err := appendPiece(ctx, s, b, piece{off: int64(off), n: int64(len(buf)), data: buf}, before != nil); err != nil {
			return nil, err
		}
	}
	if err := s.Flush(ctx); err != nil {
		return nil, err
	}
	if err := b.Finish(); err != nil {
		return nil, err
	}
	if err := s.FlushRecords(ctx); err != nil {
		return nil, err
	}
	m.ID = s.ID().String()
	m.Disks = []restorepoint.Disk{{Name: "vda", Size: int64(len(img)), MapRoot: b.Root()}}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return m, s.Commit(ctx, body)
}

// image reads a point's disk.
func (r *memRepository) image(t testing.TB, m *restorepoint.Manifest) []byte {
	t.Helper()
	d, err := r.Map(m, "vda")
	if err != nil {
		t.Fatal(err)
	}
	i := restorepoint.NewImage(d, nil)
	out := make([]byte, i.Size())
	if n, err := i.ReadAt(out, 0); n < len(out) {
		t.Fatalf("read %d of %d bytes: %v", n, len(out), err)
	}
	return out
}

// Points implements Catalogue.
func (r *memRepository) Points(ctx context.Context) ([]restorepoint.Summary, error) {
	var out []restorepoint.Summary
	err := r.store.Committed(ctx, func(id chunk.SessionID) error {
		m, err := r.Manifest(ctx, id.String())
		if err == nil {
			out = append(out, m.Summary())
		}
		return nil
	})
	slices.SortFunc(out, func(a, b restorepoint.Summary) int { return a.Time.Compare(b.Time) })
	return out, err
}

// Damaged implements Catalogue.
func (r *memRepository) Damaged() map[string]error { return nil }

// Manifest implements Catalogue.
func (r *memRepository) Manifest(ctx context.Context, id string) (*restorepoint.Manifest, error) {
	sid, err := chunkstore.ParseSessionID(id)
	if err != nil {
		return nil, err
	}
	body, err := r.store.ReadCommit(ctx, sid)
	if err != nil {
		return nil, err
	}
	m := new(restorepoint.Manifest)
	return m, json.Unmarshal(body, m)
}

// Map implements Catalogue.
func (r *memRepository) Map(m *restorepoint.Manifest, disk string) (*restorepoint.Map, error) {
	for _, d := range m.Disks {
		if d.Name == disk {
			reader := r.reader
			if reader == nil {
				reader = r.store.NewReader(4 << 20)
			}
			return restorepoint.OpenMap(reader, d.MapRoot, d.Size)
		}
	}
	return nil, fmt.Errorf("no disk %s", disk)
}

// check checks all, and reads every byte.
func (r *memRepository) check(t testing.TB, o CheckOptions) *Report {
	t.Helper()
	o.ReadData = true
	report, err := Check(context.Background(), r.store, r, o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// told says whether a report names an object, as damage or in a note.
func told(r *Report, object string) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Object == object }) ||
		slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, object) })
}

// suffering gives the names of the points that a report says lose bytes or are
// lost.
func suffering(r *Report) []string {
	var out []string
	for _, f := range r.Findings {
		if f.Kind == KindPoint && !slices.Contains(out, f.Name) {
			out = append(out, f.Name)
		}
	}
	slices.Sort(out)
	return out
}

// errCrash is the test's fault of a place.
var errCrash = errors.New("the place fails")

// parityPlace can repair packs by itself.
type parityPlace struct {
	*mem.Place
	good     map[string][]byte
	repaired int
}

// RepairPack implements chunkstore.Repairer.
func (p *parityPlace) RepairPack(_ context.Context, name string) error {
	p.repaired++
	p.Damage(name, func([]byte) []byte { return p.good[name] })
	return nil
}
