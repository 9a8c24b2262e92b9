package spread

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// site is folders in memory, by spec, and a layout over the first six.
type site struct {
	folders map[string]*mem.Place
	zero    Layout
}

// bareSite has places and no config.
func bareSite(t *testing.T, shards Shards, specs ...string) *site {
	t.Helper()
	s := &site{folders: map[string]*mem.Place{}, zero: Layout{Repository: "r0", Shards: shards}}
	for _, spec := range specs {
		p := NewPlace(spec)
		s.folders[spec] = mem.New()
		s.zero.Places = append(s.zero.Places, p)
		if err := s.zero.Identify(t.Context(), s.folders[spec], p); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := bareSite(t, Shards{4, 2}, "/p0", "/p1", "/p2", "/p3", "/p4", "/p5")
	sp, _ := s.open(t)
	body, err := json.Marshal(map[string]string{"id": "r0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := sp.Put(t.Context(), "config", body); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) find(_ context.Context, spec string) (backend.Backend, error) {
	if p := s.folders[spec]; p != nil {
		return p, nil
	}
	return nil, backend.ErrNotExist
}

// open opens the repository by a door that knows generation 0 alone.
func (s *site) open(t *testing.T) (*Spread, *Layout) {
	t.Helper()
	sp, l, err := Open(t.Context(), []Layout{s.zero}, s.find, Options{Settle: -1})
	if err != nil {
		t.Fatal(err)
	}
	return sp, l
}

func (s *site) fill(t *testing.T, n int) map[string][]byte {
	t.Helper()
	sp, _ := s.open(t)
	all := map[string][]byte{}
	for i := range n {
		data := random(uint64(i), 40_000+i)
		all[hashName(data)] = data
		all[fmt.Sprintf("points/%d", i)] = data[:200]
	}
	for name, b := range all {
		if err := sp.Put(t.Context(), name, b); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func readAll(t *testing.T, sp *Spread, all map[string][]byte, what string) {
	t.Helper()
	for name, want := range all {
		if got, err := backend.Get(t.Context(), sp, name, 1<<30); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: %s: %v", what, name, err)
		}
	}
}

// Every place is replaced, one after the other, dead or alive; whoever opens
// the repository by what it was at first, or by any place, finds the newest
// list as long as he reaches one place that is in it.
func TestReplaceEveryPlace(t *testing.T) {
	ctx := t.Context()
	s := newSite(t)
	all := s.fill(t, 5)
	for i := range 6 {
		sp, l := s.open(t)
		if i > 3 { // the door of one of the newest places
			door := s.folders[fmt.Sprintf("/new%d", i-1)]
			known, err := Known(ctx, door, s.zero)
			if err != nil {
				t.Fatal(err)
			}
			if sp, l, err = Open(ctx, known, s.find, Options{}); err != nil {
				t.Fatal(err)
			}
		}
		if l.Generation != i {
			t.Fatalf("generation %d after %d replacements", l.Generation, i)
		}
		old, fresh := l.Places[i], fmt.Sprintf("/new%d", i)
		if i%2 == 0 {
			delete(s.folders, old.Spec)
		}
		s.folders[fresh] = mem.New()
		next, err := l.Replace(ctx, sp, old.Spec, fresh, s.folders[fresh], false)
		if err != nil {
			t.Fatalf("replace %d: %v", i, err)
		}
		now, _, err := Open(ctx, []Layout{*next}, s.find, Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := now.Repair(ctx, RepairOptions{})
		if err != nil || !r.Whole() || r.Rebuilt != 5 {
			t.Fatalf("repair %d: %+v, %v", i, r, err)
		}
		readAll(t, now, all, fmt.Sprint("after ", i+1))
		if found, err := now.Audit(ctx, true, Part{}, nil); err != nil || len(found) > 0 {
			t.Fatalf("after %d: %v, %v", i+1, found, err)
		}
	}
}

// Whoever opened the repository before a place was replaced can neither
// commit nor list as if nothing had happened.
func TestStaleWriter(t *testing.T) {
	ctx := t.Context()
	s := newSite(t)
	all := s.fill(t, 2)
	stale, _ := s.open(t)
	sp, l := s.open(t)
	s.folders["/new"] = mem.New()
	if _, err := l.Replace(ctx, sp, "/p2", "/new", s.folders["/new"], false); err != nil {
		t.Fatal(err)
	}
	if err := stale.Put(ctx, "points/late", []byte("a commit")); !errors.Is(err, ErrPlacesChanged) {
		t.Errorf("commit: %v", err)
	}
	if err := stale.PutStrict(ctx, "gc/1/condemned", []byte("a list")); !errors.Is(err, ErrPlacesChanged) {
		t.Errorf("strict: %v", err)
	}
	if err := stale.List(ctx, "points/", func(backend.Object) error { return nil }); !errors.Is(err, ErrPlacesChanged) {
		t.Errorf("list: %v", err)
	}
	if _, err := stale.Size(ctx, "points/none"); !errors.Is(err, ErrPlacesChanged) {
		t.Errorf("size: %v", err)
	}
	readAll(t, stale, all, "what is there")
	if _, err := l.Replace(ctx, stale, "/p3", "/newer", mem.New(), false); !errors.Is(err, ErrPlacesChanged) {
		t.Errorf("a second replacement of the same list: %v", err)
	}
}

// Replace stopped at each operation in turn: everything reads, commits go on
// or say why not, and the same command, or the one that the error names, ends
// it.
func TestReplaceCrash(t *testing.T) {
	for n := 1; ; n++ {
		s := newSite(t)
		all := s.fill(t, 2)
		delete(s.folders, "/p1")
		s.folders["/new"] = mem.New()
		sp, l := s.open(t)
		var ops atomic.Int64
		for _, p := range s.folders {
			p.Fault = func(string, string) error {
				if ops.Add(1) >= int64(n) {
					return errDown
				}
				return nil
			}
		}
		_, crashed := l.Replace(t.Context(), sp, "/p1", "/new", s.folders["/new"], false)
		for _, p := range s.folders {
			p.Fault = nil
		}
		now, l2 := s.open(t)
		readAll(t, now, all, fmt.Sprint("stopped at ", n))
		if err := now.Put(t.Context(), "points/between", []byte("a commit")); err != nil {
			t.Fatalf("stopped at %d: commit: %v", n, err)
		}
		all["points/between"] = []byte("a commit")
		if crashed != nil {
			old := "/p1"
			if l2.Generation == 1 {
				old = "/new"
			}
			if _, err := l2.Replace(t.Context(), now, old, "/new", s.folders["/new"], false); err != nil {
				t.Fatalf("stopped at %d (%v): again: %v", n, crashed, err)
			}
			now, _ = s.open(t)
		}
		if r, err := now.Repair(t.Context(), RepairOptions{}); err != nil || !r.Whole() {
			t.Fatalf("stopped at %d: repair: %+v, %v", n, r, err)
		}
		readAll(t, now, all, fmt.Sprint("stopped at ", n, ", ended"))
		if found, err := now.Audit(t.Context(), true, Part{}, nil); err != nil || len(found) > 0 {
			t.Fatalf("stopped at %d: %v, %v", n, found, err)
		}
		if crashed == nil {
			t.Logf("%d operations", n)
			return
		}
	}
}

// A replacement that died behind the list's decision and was ended by a second
// one leaves a list that the door does not know; with as many places away as
// may be, the door leads to the newest list all the same (found by the
// simulation of places, seed 1).
func TestDoorMissesAList(t *testing.T) {
	ctx := t.Context()
	s := newSite(t)
	all := s.fill(t, 2)
	delete(s.folders, "/p4")
	s.folders["/new"] = mem.New()
	s.folders["/new"].Fault = func(op, _ string) error {
		if op == "put" {
			return errDown
		}
		return nil
	}
	sp, l := s.open(t)
	if _, err := l.Replace(ctx, sp, "/p4", "/new", s.folders["/new"], false); !errors.Is(err, errDown) {
		t.Fatal(err)
	}
	s.folders["/new"].Fault = nil
	sp, l = s.open(t)
	next, err := l.Replace(ctx, sp, "/new", "/new", s.folders["/new"], false)
	if err != nil || next.Generation != 2 {
		t.Fatalf("%+v, %v", next, err)
	}
	now, _, err := Open(ctx, []Layout{*next}, s.find, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := now.Repair(ctx, RepairOptions{}); err != nil || !r.Whole() {
		t.Fatalf("%+v, %v", r, err)
	}
	delete(s.folders, "/p0")
	delete(s.folders, "/p1")
	now, l, err = Open(ctx, []Layout{s.zero, *next}, s.find, Options{})
	if err != nil || l.Generation != 2 {
		t.Fatalf("%+v, %v", l, err)
	}
	readAll(t, now, all, "with two places away")
}

// The new half of a mirror dies, too: what its door notes was decided, though
// one copy of the list alone cannot tell, and the dead half can be replaced
// (found by the simulation of places, seed 5).
func TestMirrorReplacedTwice(t *testing.T) {
	ctx := t.Context()
	s := bareSite(t, Shards{1, 1}, "/a", "/b")
	all := s.fill(t, 2)
	door := mem.New()
	old := "/a"
	for _, fresh := range []string{"/c", "/d"} {
		delete(s.folders, old)
		known, err := Known(ctx, door, s.zero)
		if err != nil {
			t.Fatal(err)
		}
		sp, l, err := Open(ctx, known, s.find, Options{})
		if err != nil {
			t.Fatal(err)
		}
		s.folders[fresh] = mem.New()
		next, err := l.Replace(ctx, sp, old, fresh, s.folders[fresh], false)
		if err != nil {
			t.Fatalf("%s by %s: %v", old, fresh, err)
		}
		if err := next.Save(ctx, door); err != nil {
			t.Fatal(err)
		}
		now, _, err := Open(ctx, []Layout{*next}, s.find, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := now.Repair(ctx, RepairOptions{}); err != nil || !r.Whole() {
			t.Fatalf("%+v, %v", r, err)
		}
		readAll(t, now, all, "with "+fresh)
		old = fresh
	}
}

// Replacing the lost half of a mirror dies behind the list: the same again ends
// it, though one copy of the list decides nothing (found by the simulation of
// places, seed 64).
func TestMirrorReplaceAgain(t *testing.T) {
	ctx := t.Context()
	s := bareSite(t, Shards{1, 1}, "/a", "/b")
	all := s.fill(t, 2)
	delete(s.folders, "/a")
	s.folders["/c"] = mem.New()
	s.folders["/c"].Fault = func(op, _ string) error {
		if op == "put" {
			return errDown
		}
		return nil
	}
	sp, l := s.open(t)
	if _, err := l.Replace(ctx, sp, "/a", "/c", s.folders["/c"], false); !errors.Is(err, errDown) {
		t.Fatal(err)
	}
	s.folders["/c"].Fault = nil
	sp, l = s.open(t)
	next, err := l.Replace(ctx, sp, "/a", "/c", s.folders["/c"], false)
	if err != nil {
		t.Fatal(err)
	}
	now, _, err := Open(ctx, []Layout{*next}, s.find, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := now.Repair(ctx, RepairOptions{}); err != nil || !r.Whole() {
		t.Fatalf("%+v, %v", r, err)
	}
	readAll(t, now, all, "replaced")
}

// What a place lists and cannot give now is not left out of what a new one gets,
// and nothing lies in the new one's folder by which a later try does not know it
// again (found by the simulation of places, seed 30076).
func TestReplaceLeavesNothingOut(t *testing.T) {
	for _, missed := range []string{configName, "keys/a"} {
		ctx := t.Context()
		s := bareSite(t, Shards{1, 1}, "/a", "/b")
		sp, _ := s.open(t)
		for name, body := range map[string]string{configName: `{"id":"r0"}`, "keys/a": "a key", "keys/b": "another"} {
			if err := sp.Put(ctx, name, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		delete(s.folders, "/a")
		s.folders["/c"] = mem.New()
		s.folders["/b"].Fault = func(op, name string) error {
			if name == missed && op != "list" {
				return errDown
			}
			return nil
		}
		sp, l := s.open(t)
		if _, err := l.Replace(ctx, sp, "/a", "/c", s.folders["/c"], true); !errors.Is(err, errDown) {
			t.Fatalf("%s: %v", missed, err)
		}
		s.folders["/b"].Fault = nil
		sp, l = s.open(t)
		if _, err := l.Replace(ctx, sp, l.Places[0].Spec, "/c", s.folders["/c"], true); err != nil {
			t.Fatalf("%s: %v", missed, err)
		}
		for _, name := range []string{configName, "keys/a", "keys/b"} {
			if _, err := s.folders["/c"].Size(ctx, name); err != nil {
				t.Errorf("%s could not be read at first: %v", missed, err)
			}
		}
	}
}

// A pack that cannot be read now, with one shard missing and others that fail,
// is not said to be gone (found by the simulation of places, seed 80).
func TestUnreadableIsNotGone(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	data := random(1, 1000)
	name := hashName(data)
	if err := c.Put(ctx, name, data); err != nil {
		t.Fatal(err)
	}
	order := c.order(name)
	if err := c.places[order[0]].Delete(ctx, shardName(name, 0)); err != nil {
		t.Fatal(err)
	}
	for _, i := range order[1:3] {
		c.places[i].Fault = func(op, name string) error {
			if op == "read" {
				return errDown
			}
			return nil
		}
	}
	if _, err := backend.Get(ctx, c, name, 1<<20); err == nil || errors.Is(err, backend.ErrNotExist) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.assemble(ctx, name, order); err == nil || errors.Is(err, backend.ErrNotExist) {
		t.Errorf("assemble: %v", err)
	}
}

// Two tries to replace a lost place that each reached another one of the two
// that are left: a third ends it (found by the simulation of places, seed 10057).
func TestReplaceTriesThatDidNotMeet(t *testing.T) {
	ctx := t.Context()
	s := bareSite(t, Shards{2, 1}, "/a", "/b", "/c")
	all := s.fill(t, 2)
	delete(s.folders, "/c")
	s.folders["/new"] = mem.New()
	for i, broken := range []string{"/a", "/b", ""} {
		sp, l := s.open(t)
		for _, spec := range []string{"/a", "/b"} {
			s.folders[spec].Fault = func(_, name string) error {
				if spec == broken && name == layoutName(1) {
					return errDown
				}
				return nil
			}
		}
		next, err := l.Replace(ctx, sp, "/c", "/new", s.folders["/new"], false)
		if i < 2 {
			if err == nil {
				t.Fatal("a list was decided by one place")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		now, _, err := Open(ctx, []Layout{*next}, s.find, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := now.Repair(ctx, RepairOptions{}); err != nil || !r.Whole() {
			t.Fatalf("%+v, %v", r, err)
		}
		readAll(t, now, all, "replaced")
	}
}

// One half of a mirror's pack is cut: the other is read, whichever it is (found
// by the simulation of places, seed 48).
func TestMirrorCutShard(t *testing.T) {
	for i := range 2 {
		c := newCluster(t, 2, Shards{1, 1})
		data := random(1, 1000)
		name := hashName(data)
		if err := c.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
		c.places[c.order(name)[i]].Damage(shardName(name, i), func(b []byte) []byte { return b[:46] })
		if got, err := backend.Get(t.Context(), c.open(t, Shards{1, 1}), name, 1<<20); err != nil || !bytes.Equal(got, data) {
			t.Errorf("shard %d cut: %v", i, err)
		}
	}
}

// A folder that is not the place it should be is away, and named.
func TestWrongPlaces(t *testing.T) {
	s := newSite(t)
	s.fill(t, 1)
	s.folders["/p0"], s.folders["/p1"] = s.folders["/p1"], s.folders["/p0"]
	sp, _ := s.open(t)
	for i := range 2 {
		if m := sp.members[i]; m.Place != nil || m.Why == nil {
			t.Errorf("a swapped place is used: %v", m.Why)
		}
	}
	s.folders["/p0"], s.folders["/p1"] = s.folders["/p1"], mem.New()
	other := newSite(t)
	s.folders["/p2"] = other.folders["/p2"]
	sp, _ = s.open(t)
	for i, want := range []bool{true, false, false, true, true, true} {
		if m := sp.members[i]; (m.Place != nil) != want {
			t.Errorf("place %d: %v", i, m.Why)
		}
	}
}

// A mirror with one half gone: everything goes on but what is strict, and the
// dead half is replaced; so is each of three copies' two.
func TestMirror(t *testing.T) {
	for _, shards := range []Shards{{1, 1}, {1, 2}, {2, 2}} {
		t.Run(shards.String(), func(t *testing.T) {
			ctx := t.Context()
			s := &site{folders: map[string]*mem.Place{}, zero: Layout{Repository: "r0", Shards: shards}}
			for i := range shards.Total() {
				p := NewPlace(fmt.Sprintf("/p%d", i))
				s.folders[p.Spec] = mem.New()
				s.zero.Places = append(s.zero.Places, p)
				if err := s.zero.Identify(ctx, s.folders[p.Spec], p); err != nil {
					t.Fatal(err)
				}
			}
			all := s.fill(t, 3)
			for i := range shards.M {
				delete(s.folders, fmt.Sprintf("/p%d", i))
			}
			sp, l := s.open(t)
			readAll(t, sp, all, "degraded")
			more := random(77, 30_000)
			all[hashName(more)], all["points/more"] = more, more[:100]
			for _, name := range []string{hashName(more), "points/more"} {
				if err := sp.Put(ctx, name, all[name]); err != nil {
					t.Fatal(err)
				}
			}
			points := 0
			if err := sp.List(ctx, "points/", func(backend.Object) error { points++; return nil }); err != nil || points != 4 {
				t.Fatalf("%d points, %v", points, err)
			}
			if _, err := sp.Size(ctx, "points/none"); !errors.Is(err, backend.ErrNotExist) {
				t.Error(err)
			}
			if err := sp.PutStrict(ctx, "gc/1/condemned", []byte("a list")); !errors.Is(err, ErrAway) {
				t.Errorf("gc decides with m places gone: %v", err)
			}
			for i := range shards.M {
				fresh := fmt.Sprintf("/new%d", i)
				s.folders[fresh] = mem.New()
				next, err := l.Replace(ctx, sp, fmt.Sprintf("/p%d", i), fresh, s.folders[fresh], i == 0 && shards.M > 1)
				if err != nil {
					t.Fatal(err)
				}
				if sp, l, err = Open(ctx, []Layout{*next}, s.find, Options{}); err != nil {
					t.Fatal(err)
				}
			}
			if r, err := sp.Repair(ctx, RepairOptions{}); err != nil || !r.Whole() {
				t.Fatalf("repair: %+v, %v", r, err)
			}
			sp, l = s.open(t)
			if l.Generation != shards.M {
				t.Errorf("the first list leads to generation %d", l.Generation)
			}
			readAll(t, sp, all, "replaced")
			if found, err := sp.Audit(ctx, true, Part{}, nil); err != nil || len(found) > 0 {
				t.Errorf("audit: %v, %v", found, err)
			}
			if err := sp.PutStrict(ctx, "gc/1/condemned", []byte("a list")); err != nil {
				t.Errorf("strict: %v", err)
			}
		})
	}
}

// Whoever listed while a restore point may have been out of sight decides
// nothing by that list.
func TestPartialViewDecidesNothing(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 2, Shards{1, 1})
	c.down.Store(0b10)
	if err := c.Put(ctx, "points/a", []byte("a commit")); err != nil {
		t.Fatal(err)
	}
	c.down.Store(0b01)
	gc := c.open(t, Shards{1, 1})
	n := 0
	if err := gc.List(ctx, "points/", func(backend.Object) error { n++; return nil }); err != nil || n != 0 {
		t.Fatalf("%d points, %v", n, err)
	}
	c.down.Store(0)
	if err := gc.PutStrict(ctx, "gc/1/final", []byte("delete all")); !errors.Is(err, ErrAway) {
		t.Errorf("a list that misses a point was decided: %v", err)
	}
	if len(gc.Warnings()) == 0 {
		t.Error("not told")
	}
	if err := c.open(t, Shards{1, 1}).PutStrict(ctx, "gc/1/final", []byte("a good list")); err != nil {
		t.Error(err)
	}
}

// Place ls tells read-only, away and behind apart.
func TestStates(t *testing.T) {
	s := newSite(t)
	s.fill(t, 2)
	delete(s.folders, "/p1")
	s.folders["/p2"].Fault = func(op, _ string) error {
		if op == "put" || op == "delete" {
			return errDown
		}
		return nil
	}
	sp, _ := s.open(t)
	if err := sp.Put(t.Context(), "points/late", []byte("a commit")); err != nil {
		t.Fatal(err)
	}
	sp, l := s.open(t)
	states, err := sp.States(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ok", "away", "read-only", "ok", "ok", "ok"} {
		if states[i].State != want || (want == "ok") != (states[i].Why == "") {
			t.Errorf("place %d: %+v, want %s", i, states[i], want)
		}
	}
	s.folders["/p2"].Fault = nil
	if states, err = sp.States(t.Context(), l); err != nil || states[2].State != "behind" || states[2].Missing != 1 {
		t.Errorf("behind: %+v, %v", states[2], err)
	}
}

// Two hosts that do not see the same places may split a name so that neither
// content is on enough of them. Then nobody is told that one is: who committed
// would take the copy that it reads back for the proof.
func TestSplitNameIsNotTaken(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	c.opts.Strict = func(_ string, body []byte) bool { return bytes.HasPrefix(body, []byte("abort")) }
	for n, on := range []int{3, 4} { // aborts: undecided, and decided
		name := fmt.Sprintf("points/%d", n)
		for i, place := range c.places {
			body := []byte("commit")
			if i >= 6-on {
				body = []byte("abort")
			}
			if err := place.Put(ctx, name, body); err != nil {
				t.Fatal(err)
			}
		}
		want := []error{ErrUndecided, backend.ErrExist}[n]
		if err := c.Put(ctx, name, []byte("commit")); !errors.Is(err, want) || errors.Is(err, backend.ErrExist) != (want == backend.ErrExist) {
			t.Errorf("%d of 6 places hold an abort: %v", on, err)
		}
	}
}
