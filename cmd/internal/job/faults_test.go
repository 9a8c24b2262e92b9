package job

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/faulty"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/gc"
	"cairn/index"
	"cairn/index/restorepoint"
)

// A deed is what is done while a call goes wrong.
type deed struct {
	name string
	// prepare changes the world before; nil: not.
	prepare func(t *testing.T, w *faultWorld)
	// do does it. What it gives is a point that it says there is.
	do func(t *testing.T, w *faultWorld, r *memRepository, b backend.Backend) (*restorepoint.Manifest, error)
}

func deeds() []deed {
	return []deed{
		{"backup", nil, func(t *testing.T, w *faultWorld, r *memRepository, _ backend.Backend) (*restorepoint.Manifest, error) {
			parent := w.points[2]
			if len(w.places) > 1 || w.index == "" {
				return r.backUp(t.Context(), noPacks{}, 20, w.next, parent)
			}
			x, err := index.Open(t.Context(), w.index, r.store, index.Options{})
			if err != nil {
				return nil, err
			}
			defer x.Close()
			m, err := r.backUp(t.Context(), x, 20, w.next, parent)
			if err == nil { // an index that fails is no failed backup
				_ = x.PutPoint(t.Context(), m.Summary())
			}
			return m, err
		}},
		{"gc", nil, func(t *testing.T, w *faultWorld, r *memRepository, _ backend.Backend) (*restorepoint.Manifest, error) {
			_, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95}, func(string) {})
			return nil, err
		}},
		{"repair", damageWithinReach, func(t *testing.T, w *faultWorld, r *memRepository, b backend.Backend) (*restorepoint.Manifest, error) {
			o := CheckOptions{ReadData: true, Repair: true}
			for _, m := range w.points[1:] {
				o.Known = append(o.Known, m.Summary())
			}
			if s, ok := b.(*spread.Spread); ok {
				rep, err := s.Repair(t.Context(), spread.RepairOptions{ReadAll: true, Condemned: r.store.Removed})
				if err == nil && !rep.Whole() {
					err = fmt.Errorf("%+v", rep)
				}
				if err != nil {
					return nil, err
				}
			} else {
				o.From = &Mirror{Place: w.mirror, Name: "the mirror", Repository: w.config.ID}
			}
			report, err := Check(t.Context(), r.store, r, o)
			if err == nil {
				err = report.Err()
			}
			return nil, err
		}},
	}
}

// damageWithinReach does harm that can be mended: with one place a mirror has
// everything, of six places two are bad.
func damageWithinReach(t *testing.T, w *faultWorld) {
	t.Helper()
	if len(w.places) == 1 {
		w.mirror = copyPlace(t, w.places[0])
	}
	for i, p := range w.places[:max(1, len(w.places)/3)] {
		n := 0
		for _, name := range slices.Sorted(maps.Keys(objectsOf(t, p))) {
			if name == "config" || strings.HasPrefix(name, "keys/") {
				continue
			}
			switch n++; {
			case n%3 == 0 && !strings.HasPrefix(name, "sessions/"): // with its commit gone, too, a session is as if it had never been
				_ = p.Delete(t.Context(), name)
			case n%3 == 1:
				p.Damage(name, func(b []byte) []byte { b[len(b)/2] ^= byte(1 + i); return b })
			}
		}
	}
}

// Goal: whichever call to a place goes wrong, in each of seven ways, during a
// backup, gc or a repair: what was confirmed stays, what is said to be done is
// done, what a place has stored wrongly is found, and the same again ends well.
// Method: call 0, 1, 2, … goes wrong until a run makes fewer calls. With CAIRN_LONG
// each in all ways; else in two of them in turn, and with several places, where
// a run makes 700 calls, each thirteenth in one.
func TestEveryFault(t *testing.T) {
	for _, places := range []int{1, 6} {
		base := newFaultWorld(t, places)
		for _, d := range deeds() {
			t.Run(fmt.Sprintf("%s in %d", d.name, places), func(t *testing.T) {
				start := base.again(t)
				if d.prepare != nil {
					d.prepare(t, start)
				}
				runs, told := 0, 0
				step := 1
				if places > 1 && !long() {
					step = 13
				}
				for n, more := 0, true; more; n += step {
					more = false
					for kind := range faulty.Kinds {
						if !long() && !inTurn(places, n, kind) {
							continue
						}
						p := faulty.At(n, kind)
						w := start.again(t)
						if long() || n%4 == 0 {
							w.index = t.TempDir()
						}
						failed := w.suffers(t, d, p)
						if t.Failed() {
							t.FailNow()
						}
						if p.Reached() {
							more = true
							if runs++; failed {
								told++
							}
						} else if failed {
							t.Fatal("without a fault it fails")
						}
					}
				}
				t.Logf("%d runs with a fault, %d said so", runs, told)
			})
		}
	}
}

// inTurn says which of the ways a call has to suffer in a short run.
func inTurn(places, n int, kind faulty.Kind) bool {
	turn := (int(kind) + n) % int(faulty.Kinds)
	return turn == 0 || places == 1 && turn == 3
}

// suffers does a deed with one fault, and looks at what is left.
func (w *faultWorld) suffers(t *testing.T, d deed, p *faulty.Plan) (failed bool) {
	t.Helper()
	before := w.readable(t)
	b := w.backend(t, p)
	r := w.open(t, nil)
	r.store = chunkstore.NewStore(b, w.config, r.store.Keys())
	made, err := d.do(t, w, r, b)
	failed = err != nil
	if !failed && made != nil {
		w.holds(t, p, w.open(t, nil), "what is said to be done", made, w.next, nil)
	}
	if !(d.prepare != nil && p.Dies()) { // a repair that dies may leave missing what was bad
		w.keeps(t, p, "behind the fault", before)
	}
	// The same once more, by another process.
	b = w.backend(t, nil)
	r = w.open(t, nil)
	r.store = chunkstore.NewStore(b, w.config, r.store.Keys())
	again, err := d.do(t, w, r, b)
	p.Deliver()
	w.keeps(t, p, "behind the next run", before)
	if len(w.places) == 1 && w.bad(t, p) {
		// What a place has stored wrongly, and said that all is well, is found.
		name, _ := p.Spoiled()
		_, copied := w.places[0].Size(t.Context(), "mended/"+name) // then a good one lies beside it, and check read that
		if report := w.open(t, nil).check(t, CheckOptions{}); !told(report, name) && copied != nil {
			t.Errorf("%s: check does not say that %s is bad: %+v", p, name, report)
		}
		return failed
	}
	if err != nil {
		t.Errorf("%s: the next run: %v", p, err)
		return failed
	}
	if again != nil {
		w.holds(t, p, w.open(t, nil), "the next run's", again, w.next, nil)
	}
	w.keeps(t, p, "behind the next run", nil)
	w.whole(t, p)
	if long() || p.N()%8 == 0 {
		w.quiet(t, p)
	}
	return failed
}

// bad says whether an object that a place stored wrongly is still there.
func (w *faultWorld) bad(t *testing.T, p *faulty.Plan) bool {
	t.Helper()
	name, good := p.Spoiled()
	if name == "" {
		return false
	}
	return slices.ContainsFunc(w.places, func(m *mem.Place) bool {
		b, err := backend.Get(t.Context(), m, name, 1<<30)
		return err == nil && !bytes.Equal(b, good)
	})
}

// readable gives what of the points can be read.
func (w *faultWorld) readable(t *testing.T) (list [][]bool) {
	t.Helper()
	r := w.open(t, nil)
	for i, m := range w.points[1:] {
		good, _ := r.readable(t, m, w.images[i+1])
		list = append(list, good)
	}
	return list
}

// holds checks that of a point all can be read that could be before, nil: all.
func (w *faultWorld) holds(t *testing.T, p *faulty.Plan, r *memRepository, what string, m *restorepoint.Manifest, want []byte, before []bool) {
	t.Helper()
	good, wrong := r.readable(t, m, want)
	if wrong > 0 {
		t.Errorf("%s: %s: %d chunks are read wrong", p, what, wrong)
	}
	lost := 0
	for i, ok := range good {
		if !ok && (before == nil || before[i]) {
			lost++
		}
	}
	// Of what was new a place that lies can spoil something.
	if lost > 0 && (before != nil || len(w.places) > 1 || !w.bad(t, p)) {
		t.Errorf("%s: %s: %d of %d chunks cannot be read", p, what, lost, len(good))
	}
}

// keeps checks that every point that was confirmed before is there.
func (w *faultWorld) keeps(t *testing.T, p *faulty.Plan, when string, before [][]bool) {
	t.Helper()
	r := w.open(t, nil)
	for i, m := range w.points[1:] {
		var b []bool
		if before != nil {
			b = before[i]
		}
		w.holds(t, p, r, when, m, w.images[i+1], b)
	}
}

// whole brings places up to date, and lets check find nothing.
func (w *faultWorld) whole(t *testing.T, p *faulty.Plan) {
	t.Helper()
	if s, ok := w.backend(t, nil).(*spread.Spread); ok {
		if w.bad(t, p) {
			name, _ := p.Spoiled()
			if found, err := s.Audit(t.Context(), true, spread.Part{}, nil); err != nil || !slices.ContainsFunc(found, func(f spread.Finding) bool { return f.Object == name }) {
				t.Errorf("%s: the places' audit does not say that %s is bad: %v, %v", p, name, found, err)
			}
		}
		r, err := s.Repair(t.Context(), spread.RepairOptions{ReadAll: true, Condemned: w.open(t, nil).store.Removed})
		if err != nil || !r.Whole() {
			t.Errorf("%s: repair of the places: %+v, %v", p, r, err)
		}
		if found, err := s.Audit(t.Context(), true, spread.Part{}, nil); err != nil || len(found) > 0 {
			t.Errorf("%s: behind the repair of the places: %v, %v", p, found, err)
		}
	}
	if report := w.open(t, nil).check(t, CheckOptions{}); report.Err() != nil {
		t.Errorf("%s: check: %+v", p, report.Findings)
	}
}

// quiet lets gc run with nobody else there, a day later: two runs leave nothing
// that no point needs.
func (w *faultWorld) quiet(t *testing.T, p *faulty.Plan) {
	t.Helper()
	var r *memRepository
	for range 2 {
		w.dayPasses()
		r = w.open(t, nil)
		if _, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95}, func(string) {}); err != nil {
			t.Errorf("%s: a quiet gc: %v", p, err)
			return
		}
	}
	w.keeps(t, p, "behind quiet runs of gc", nil)
	dry, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 0.95, DryRun: true}, func(string) {})
	v, lerr := r.store.List(t.Context())
	if err != nil || lerr != nil {
		t.Errorf("%s: %v, %v", p, err, lerr)
		return
	}
	undecided := 0
	for id := range v.Intents {
		if v.Undecided(id) {
			undecided++
		}
	}
	if dry.PacksRemoved+undecided+len(v.Collectors)+len(v.Beats)+v.Partial.Len() > 0 {
		t.Errorf("%s: left: %d packs, %d sessions, %d collectors, %d beats, parts of %d packs", p, dry.PacksRemoved, undecided, len(v.Collectors), len(v.Beats), v.Partial.Len())
	}
}
