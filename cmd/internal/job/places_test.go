package job

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/faulty"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/gc"
	"cairn/index"
)

// A pack whose rest moved, and that was removed while a place was away, seems to
// be there again when the place is back: gc must not take a few of its shards for
// it, and remove where its chunks are now.
func TestPlaceComesBackWithRemovedPacks(t *testing.T) {
	w := newFaultWorld(t, 6)
	collect := func() *gc.Result {
		t.Helper()
		r := w.open(t, nil)
		res, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95}, func(string) {})
		if err != nil && !errors.Is(err, spread.ErrAway) { // a point cannot be removed then
			t.Fatal(err)
		}
		return res
	}
	holds := func(when string) {
		t.Helper()
		r := w.open(t, nil)
		for i, m := range w.points[1:] {
			if good, _ := r.readable(t, m, w.images[i+1]); len(good) == 0 || !all(good) {
				t.Fatalf("%s: a point lost chunks: %v", when, good)
			}
		}
	}
	w.places[2].Fault = func(string, string) error { return errCrash }
	if r := collect(); r.PacksCopied == 0 {
		t.Fatalf("nothing moved: %+v", r)
	}
	w.places[2].Fault = nil
	holds("a place is back")
	// Something to collect again.
	r := w.open(t, nil)
	m, err := r.backUp(t.Context(), noPacks{}, 20, w.next, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := chunkstore.ParseSessionID(m.ID)
	if err == nil {
		err = r.store.Drop(context.Background(), id, chunkstore.Note{})
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		collect()
		w.dayPasses()
		holds("behind gc")
	}
}

// A run that died while it stored a pack leaves some of the pack's shards, perhaps
// enough to read it. Who finds it later must not rest on it: his point would be
// told to be stored, and be lost with fewer places than may be.
func TestHalfStoredPackIsNotUsed(t *testing.T) {
	base := newFaultWorld(t, 6)
	died := 0
	for n := 0; ; n++ {
		w := base.again(t)
		p := faulty.At(n, faulty.Stop)
		r := w.open(t, p)
		_, err := r.backUp(t.Context(), noPacks{}, 20, w.next, nil)
		if err == nil {
			break
		}
		if !strings.Contains(p.String(), "(put packs/") {
			continue
		}
		died++
		r = w.open(t, nil)
		x, err := index.Open(t.Context(), t.TempDir(), r.store, index.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.backUp(t.Context(), x, 21, w.next, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		for i := range w.places {
			for j := range i {
				for _, gone := range []int{i, j} {
					w.places[gone].Fault = func(string, string) error { return errCrash }
				}
				if good, _ := w.open(t, nil).readable(t, m, w.next); !all(good) {
					t.Fatalf("%s: without places %d and %d the next point cannot be read: %v", p, i, j, good)
				}
				w.places[i].Fault, w.places[j].Fault = nil, nil
			}
		}
	}
	if died < 12 { // two packs of six shards
		t.Errorf("%d runs died while they stored a pack", died)
	}
}

func all(list []bool) bool {
	for _, ok := range list {
		if !ok {
			return false
		}
	}
	return true
}

// remains counts shards of a session's packs, and notes of them, in all places.
func (w *faultWorld) remains(t *testing.T, session string) (shards, notes int) {
	t.Helper()
	for _, p := range w.places {
		for name := range objectsOf(t, p) {
			switch {
			case strings.HasPrefix(name, "packs/"+session+"/"):
				shards++
			case strings.HasPrefix(name, "repair/") && strings.Contains(name, session):
				notes++
			}
		}
	}
	return shards, notes
}

// lose takes from the first places their shards of packs, until left are there,
// and gives them.
func (w *faultWorld) lose(t *testing.T, session string, left int) (lost []map[string][]byte) {
	t.Helper()
	there := map[string]int{}
	for _, p := range w.places {
		for name := range objectsOf(t, p) {
			if strings.HasPrefix(name, "packs/"+session+"/") {
				there[name[:strings.LastIndexByte(name, '.')]]++
			}
		}
	}
	for _, p := range w.places {
		gone := map[string][]byte{}
		for name, body := range objectsOf(t, p) {
			cut := strings.LastIndexByte(name, '.')
			if !strings.HasPrefix(name, "packs/"+session+"/") || there[name[:cut]] <= left {
				continue
			}
			there[name[:cut]]--
			gone[name] = body
			if err := p.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		lost = append(lost, gone)
	}
	return lost
}

// deadWriter is a backup that stores its packs while two places are away, and
// dies before it commits. It gives its session.
func (w *faultWorld) deadWriter(t *testing.T) string {
	t.Helper()
	session := ""
	for i, p := range w.places {
		p.Fault = func(op, name string) error {
			if i < 2 || op == "put" && strings.HasPrefix(name, "points/") {
				return errCrash
			}
			if id, ok := strings.CutPrefix(name, "sessions/"); ok && op == "put" && i == 2 {
				session = id
			}
			return nil
		}
	}
	if _, err := w.open(t, nil).backUp(t.Context(), noPacks{}, 20, w.next, nil); err == nil {
		t.Fatal("it committed")
	}
	for _, p := range w.places {
		p.Fault = nil
	}
	if shards, notes := w.remains(t, session); shards == 0 || shards%4 != 0 || notes == 0 {
		t.Fatalf("session %q left %d shards and %d notes", session, shards, notes)
	}
	return session
}

// Of a writer's packs too few shards are left: no reader finds them, and gc
// removes what is left, and what was noted of them, whether the session was
// decided against or all that told of it is gone. While a place is away nothing
// of them goes: what it holds is not seen.
func TestRestOfAPackIsCollected(t *testing.T) {
	for _, left := range []int{1, 3, 0} {
		for _, forgotten := range []bool{false, true} {
			w := newFaultWorld(t, 6)
			session := w.deadWriter(t)
			w.lose(t, session, left)
			for _, p := range w.places {
				for name := range objectsOf(t, p) {
					if forgotten && (name == "sessions/"+session || name == "points/"+session) {
						if err := p.Delete(t.Context(), name); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			shards, notes := w.remains(t, session)
			collect := func(may error, dry bool) int {
				t.Helper()
				w.dayPasses()
				r := w.open(t, nil)
				res, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95, DryRun: dry}, func(string) {})
				if err != nil && (may == nil || !errors.Is(err, may)) {
					t.Fatal(err)
				}
				return res.RestsRemoved
			}
			if !forgotten { // it may still commit
				r := w.open(t, nil)
				if _, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95}, func(string) {}); !errors.Is(err, gc.ErrRunning) {
					t.Fatal(err)
				}
				if s, n := w.remains(t, session); s != shards || n != notes {
					t.Errorf("%d shards left: while its session runs gc left %d of %d shards and %d of %d notes", left, s, shards, n, notes)
				}
			}
			w.places[5].Fault = func(string, string) error { return errCrash }
			for range 2 {
				collect(spread.ErrAway, false)
			}
			w.places[5].Fault = nil
			if s, n := w.remains(t, session); s != shards || n != notes {
				t.Errorf("%d shards left, forgotten %v: with a place away gc left %d of %d shards and %d of %d notes", left, forgotten, s, shards, n, notes)
			}
			packs := 2*min(left, 1) + 1 // one was removed while the place was away
			if dry, removed, more := collect(nil, true), collect(nil, false), collect(nil, false); dry != packs || removed != packs || more != 0 {
				t.Errorf("%d shards left, forgotten %v: gc would remove %d rests, and removed %d and %d, not %d", left, forgotten, dry, removed, more, packs)
			}
			if s, n := w.remains(t, session); s+n > 0 {
				t.Errorf("%d shards left, forgotten %v: behind two runs of gc %d shards and %d notes are there", left, forgotten, s, n)
			}
			w.keeps(t, nil, "behind gc", nil)
		}
	}
}

// A check says of what a dead writer left of packs that it is no damage, and who
// removes it; without a key it cannot know the former.
func TestCheckOfTheRestOfAPack(t *testing.T) {
	w := newFaultWorld(t, 6)
	w.lose(t, w.deadWriter(t), 3)
	for _, readData := range []bool{false, true} {
		report := w.open(t, nil).check(t, CheckOptions{ReadData: readData})
		if report.Err() != nil || len(report.Notes) != 2 || !strings.HasPrefix(report.Notes[1], "2 packs have too few shards") || strings.Contains(report.Notes[0], "used again") {
			t.Errorf("read %v: %v, notes %q", readData, report.Err(), report.Notes)
		}
	}
	report, err := CheckKeyless(t.Context(), w.backend(t, nil), CheckOptions{})
	if err != nil || len(report.Findings) != 2 {
		t.Fatalf("without a key: %+v, %v", report, err)
	}
	for _, f := range report.Findings {
		if f.Fault != string(chunkstore.FaultMissing) || !strings.Contains(f.Error, "3 of 4+2 shards") || !strings.Contains(f.Next, "cairn gc") {
			t.Errorf("without a key: %+v", f)
		}
	}
}

// What is left of a pack that a point needs stays, whatever gc is called for, and
// check names it. With the others it is the pack again.
func TestRestOfANeededPackStays(t *testing.T) {
	w := newFaultWorld(t, 6)
	session := w.points[1].ID
	w.deadWriter(t) // something to collect
	lost := w.lose(t, session, 3)
	shards, _ := w.remains(t, session)
	for _, away := range []bool{true, false} {
		if away {
			w.places[5].Fault = func(string, string) error { return errCrash }
		}
		for range 3 {
			w.dayPasses()
			r := w.open(t, nil)
			if _, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95}, func(string) {}); err == nil {
				t.Error("gc removes things while a point lacks a pack")
			}
		}
		w.places[5].Fault = nil
		if s, _ := w.remains(t, session); s != shards || s == 0 {
			t.Fatalf("away %v: gc left %d of %d shards", away, s, shards)
		}
	}
	report := w.open(t, nil).check(t, CheckOptions{})
	if !slices.ContainsFunc(report.Findings, func(f Finding) bool {
		return f.Kind == KindPack && f.Fault == string(chunkstore.FaultMissing) && strings.HasPrefix(f.Object, "packs/"+session+"/") && len(f.Points) > 0
	}) {
		t.Errorf("check: %+v", report)
	}
	for i, objects := range lost {
		for name, body := range objects {
			if err := w.places[i].Put(t.Context(), name, body); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := w.backend(t, nil).(*spread.Spread)
	if r, err := s.Repair(t.Context(), spread.RepairOptions{Condemned: w.open(t, nil).store.Removed}); err != nil || !r.Whole() {
		t.Errorf("repair: %+v, %v", r, err)
	}
	w.quiet(t, nil)
}
