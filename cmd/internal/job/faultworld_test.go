package job

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/faulty"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/backend/spread"
	"cairn/index/restorepoint"
)

// faultWorld is a small repository in one place, or in six with parity, as it is
// before something is done.
type faultWorld struct {
	places []*mem.Place
	config *chunkstore.Config
	points []*restorepoint.Manifest // the first one was forgotten
	images [][]byte
	next   []byte     // what is backed up next
	index  string     // folder of the host's index; "": it has none
	days   int        // that have passed
	mirror *mem.Place // with one place: good copies
}

func newFaultWorld(t *testing.T, places int) *faultWorld {
	t.Helper()
	w := &faultWorld{}
	for range places {
		w.places = append(w.places, mem.New())
	}
	b := w.backend(t, nil)
	var err error
	if w.config, err = chunkstore.Init(t.Context(), b, chunkstore.InitOptions{Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	r := w.open(t, nil)
	img := chunks(1, 64)
	for i := range 3 {
		var parent *restorepoint.Manifest
		if i > 0 {
			parent = w.points[i-1]
		}
		copy(img[i*16<<12:], chunks(uint64(40+i), 16))
		w.images = append(w.images, bytes.Clone(img))
		w.points = append(w.points, r.point(t, 12+i, img, parent))
	}
	copy(img[40<<12:], chunks(50, 12))
	w.next = img
	id, err := chunkstore.ParseSessionID(w.points[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Drop(t.Context(), id, chunkstore.Note{}); err != nil {
		t.Fatal(err)
	}
	return w
}

// backend gives the places as one, in which a plan's call goes wrong.
func (w *faultWorld) backend(t testing.TB, p *faulty.Plan) backend.Backend {
	t.Helper()
	wrap := func(m *mem.Place) backend.Backend {
		if p == nil {
			return m
		}
		return p.Wrap(m)
	}
	if len(w.places) == 1 {
		return wrap(w.places[0])
	}
	var members []spread.Member
	for i, m := range w.places {
		members = append(members, spread.Member{ID: fmt.Sprintf("%032d", i), Spec: fmt.Sprintf("/p%d", i), Place: wrap(m)})
	}
	s, err := spread.New(members, spread.Shards{K: 4, M: 2}, spread.Options{Strict: chunkstore.IsAbort, Verify: chunkstore.VerifyControl})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open is a new process's view.
func (w *faultWorld) open(t testing.TB, p *faulty.Plan) *memRepository {
	t.Helper()
	good := w.backend(t, nil)
	keys, err := chunkstore.Unlock(context.Background(), good, w.config, "")
	if err != nil {
		t.Fatal(err)
	}
	if p != nil {
		good = w.backend(t, p)
	}
	s := chunkstore.NewStore(good, w.config, keys)
	if p, ok := good.(*spread.Spread); ok {
		p.VerifyWith(s.VerifyControl)
	}
	return &memRepository{store: s, reader: s.NewReader(4 << 20)}
}

// again gives a world of its own that is the same.
func (w *faultWorld) again(t testing.TB) *faultWorld {
	t.Helper()
	c := *w
	c.places = nil
	for _, p := range w.places {
		c.places = append(c.places, copyPlace(t, p))
	}
	return &c
}

// dayPasses turns the places' clocks.
func (w *faultWorld) dayPasses() {
	w.days += 2
	days := w.days
	for _, p := range w.places {
		p.Now = func() time.Time { return time.Now().AddDate(0, 0, days) }
	}
}
