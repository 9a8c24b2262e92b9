package spread

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// invented gives what a place that lies may hold as the next list.
func invented(t *testing.T, s *site, l *Layout) map[string][]byte {
	t.Helper()
	list := func(spec string) []byte {
		n := *l
		n.Generation++
		n.Places = nil
		for i, p := range l.Places {
			if i == 3 {
				p = Place{ID: NewPlace(spec).ID, Slot: p.slot(), Spec: spec}
				if f := s.folders[spec]; f != nil {
					if err := n.Identify(t.Context(), f, p); err != nil {
						t.Fatal(err)
					}
				}
			}
			n.Places = append(n.Places, p)
		}
		body, err := n.encode()
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	s.folders["/its-own"] = mem.New()
	return map[string][]byte{"nobody's": list("/nowhere"), "its own": list("/its-own"), "rubbish": []byte("no list")}
}

// TestInventedList: what up to m places hold as the next list of places, and a
// strict quorum does not, was never decided, and counts for nobody: a place that
// makes it up, or a replacement that died early, stops no backup. It is told, no
// repair spreads it, and the place can be replaced.
func TestInventedList(t *testing.T) {
	for _, c := range []struct {
		name  string
		liars []int
		away  string
	}{{"one", []int{1}, ""}, {"one, one away", []int{4}, "/p5"}, {"two", []int{0, 5}, ""}, {"two others", []int{2, 3}, ""}} {
		for kind := range invented(t, newSite(t), &newSite(t).zero) {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				ctx := t.Context()
				s := newSite(t)
				all := s.fill(t, 3)
				body := invented(t, s, &s.zero)[kind]
				for _, i := range c.liars {
					if err := s.folders[fmt.Sprint("/p", i)].Put(ctx, "places/1", body); err != nil {
						t.Fatal(err)
					}
				}
				away := s.folders[c.away]
				delete(s.folders, c.away)
				sp, l := s.open(t)
				if l.Generation != 0 {
					t.Fatalf("generation %d", l.Generation)
				}
				readAll(t, sp, all, "beside the liars")
				if err := sp.Put(ctx, "points/more", []byte("a commit")); err != nil {
					t.Fatalf("commit: %v", err)
				}
				all["points/more"] = []byte("a commit")
				if err := sp.PutStrict(ctx, "gc/1/condemned", []byte("a list")); err != nil {
					t.Fatalf("strict: %v", err)
				}
				all["gc/1/condemned"] = []byte("a list")
				n := 0
				if err := sp.List(ctx, "points/", func(backend.Object) error { n++; return nil }); err != nil || n != 4 {
					t.Errorf("list: %d, %v", n, err)
				}
				if _, err := sp.Size(ctx, "points/none"); !errors.Is(err, backend.ErrNotExist) {
					t.Errorf("size: %v", err)
				}
				said := strings.Join(sp.Warnings(), "\n")
				for _, i := range c.liars {
					if words := fmt.Sprintf("place /p%d holds places/1", i); !strings.Contains(said, words) {
						t.Errorf("the warnings do not say %q: %s", words, said)
					}
				}
				if c.away != "" {
					s.folders[c.away] = away
					sp, _ = s.open(t)
					if r, err := sp.Repair(ctx, RepairOptions{}); err != nil || r.Copied == 0 {
						t.Fatalf("the one that was away: %+v, %v", r, err)
					}
				}
				found, err := sp.Audit(ctx, true, Part{}, nil)
				if err != nil || len(found) != len(c.liars) {
					t.Errorf("audit: %v, %v", found, err)
				}
				for _, f := range found {
					if f.Object != "places/1" || f.Error != errNeverDecided.Error() || !strings.Contains(fmt.Sprint(c.liars), f.Place[2:]) {
						t.Errorf("audit: %v", f)
					}
				}
				states, err := sp.States(ctx, l)
				if err != nil || slices.ContainsFunc(states, func(p PlaceState) bool { return p.State != "ok" || p.Missing > 0 }) {
					t.Errorf("states: %v, %v", states, err)
				}
				r, err := sp.Repair(ctx, RepairOptions{ReadAll: true})
				if err != nil || len(r.Failed) != len(c.liars) || r.Failed[0].Object != "places/1" || len(r.Undecided) > 0 {
					t.Errorf("repair: %+v, %v", r, err)
				}
				for spec, f := range s.folders {
					if _, err := f.Size(ctx, "places/1"); err == nil && !strings.Contains(fmt.Sprint(c.liars), spec[2:]) {
						t.Errorf("the list was spread to %s", spec)
					}
				}
				for g, i := range c.liars {
					sp, l = s.open(t)
					if l.Generation != g {
						t.Fatalf("generation %d after %d replacements", l.Generation, g)
					}
					fresh := fmt.Sprint("/new", i)
					s.folders[fresh] = mem.New()
					if _, err := l.Replace(ctx, sp, fmt.Sprint("/p", i), fresh, s.folders[fresh], false); err != nil {
						t.Fatalf("replace the liar %d: %v", i, err)
					}
				}
				sp, l = s.open(t)
				if l.Generation != len(c.liars) {
					t.Fatalf("generation %d", l.Generation)
				}
				if r, err := sp.Repair(ctx, RepairOptions{ReadAll: true}); err != nil || !r.Whole() {
					t.Errorf("repair in the end: %+v, %v", r, err)
				}
				readAll(t, sp, all, "in the end")
				if found, err = sp.Audit(ctx, true, Part{}, nil); err != nil || len(found) > 0 {
					t.Errorf("in the end: %v, %v", found, err)
				}
				if said := sp.Warnings(); len(said) > 0 {
					t.Errorf("in the end: %q", said)
				}
			})
		}
	}
}

// TestInventedListBehind: a place that lies holds a list that comes after the next
// one: a place that is replaced does not hand it on.
func TestInventedListBehind(t *testing.T) {
	ctx := t.Context()
	s := newSite(t)
	all := s.fill(t, 2)
	far := s.zero
	far.Generation = 2
	body, err := far.encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.folders["/p0"].Put(ctx, "places/2", body); err != nil {
		t.Fatal(err)
	}
	sp, l := s.open(t)
	s.folders["/new"] = mem.New()
	if _, err := l.Replace(ctx, sp, "/p4", "/new", s.folders["/new"], false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.folders["/new"].Size(ctx, "places/2"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("it was handed on: %v", err)
	}
	sp, l = s.open(t)
	if l.Generation != 1 {
		t.Errorf("generation %d", l.Generation)
	}
	readAll(t, sp, all, "after")
}

// TestRubbishAsList: of 1+1 places nobody can tell whether a list that one of them
// holds was decided. What is none stops no reader; a writer is refused.
func TestRubbishAsList(t *testing.T) {
	ctx := t.Context()
	s := bareSite(t, Shards{1, 1}, "/p0", "/p1")
	all := s.fill(t, 2)
	if err := s.folders["/p0"].Put(ctx, "places/1", []byte("no list")); err != nil {
		t.Fatal(err)
	}
	sp, _ := s.open(t)
	readAll(t, sp, all, "beside rubbish")
	if said := strings.Join(sp.Warnings(), "\n"); !strings.Contains(said, "place /p0 holds places/1") {
		t.Errorf("warnings: %s", said)
	}
	if err := sp.Put(ctx, "points/more", []byte("a commit")); !errors.Is(err, ErrPlacesChanged) {
		t.Errorf("commit: %v", err)
	}
}

// slowLister is a place where the first list that is put is stored, and each other
// one when somebody has looked.
type slowLister struct {
	backend.Backend
	puts           *atomic.Int64
	stored, looked chan struct{}
}

func (p *slowLister) Put(ctx context.Context, name string, data []byte) error {
	if name == "places/1" {
		n := p.puts.Add(1)
		if n == 2 {
			close(p.stored)
		}
		if n > 1 {
			<-p.looked
		}
	}
	return p.Backend.Put(ctx, name, data)
}

// TestTwoReplaceAtOnce: the second waits for the first, who has stored his list on
// one place, and finds that it was decided.
func TestTwoReplaceAtOnce(t *testing.T) {
	ctx := t.Context()
	s := newSite(t)
	all := s.fill(t, 2)
	s.folders["/a"], s.folders["/b"] = mem.New(), mem.New()
	stored, looked := make(chan struct{}), make(chan struct{})
	var puts atomic.Int64
	one, l, err := Open(ctx, []Layout{s.zero}, func(_ context.Context, spec string) (backend.Backend, error) {
		return &slowLister{s.folders[spec], &puts, stored, looked}, nil
	}, Options{Settle: -1})
	if err != nil {
		t.Fatal(err)
	}
	var sizes atomic.Int64
	two, l2, err := Open(ctx, []Layout{s.zero}, s.find, Options{Settle: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.folders {
		f.Fault = func(op, name string) error {
			if op == "size" && name == "places/1" && puts.Load() > 1 && sizes.Add(1) == 12 { // twice of all places: for an earlier try, and for others
				close(looked)
			}
			return nil
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := l.Replace(ctx, one, "/p2", "/a", s.folders["/a"], false)
		ended <- err
	}()
	<-stored
	if _, err := l2.Replace(ctx, two, "/p4", "/b", s.folders["/b"], false); !errors.Is(err, ErrPlacesChanged) {
		t.Errorf("the second: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the first: %v", err)
	}
	now, l := s.open(t)
	if l.Generation != 1 || l.Places[2].Spec != "/a" || l.Places[4].Spec != "/p4" {
		t.Errorf("%+v", l)
	}
	readAll(t, now, all, "after")
}

// TestTriedWithOtherPlaces: a list that a place made up, which agrees with what
// Replace wants but for the other places, is not taken for an earlier try.
func TestTriedWithOtherPlaces(t *testing.T) {
	ctx := t.Context()
	for liar := range 6 {
		s := newSite(t)
		all := s.fill(t, 2)
		s.folders["/new"] = mem.New()
		sp, l := s.open(t)
		var lie Layout
		body, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(body, &lie); err != nil {
			t.Fatal(err)
		}
		lie.Generation = 1
		lie.Places[4] = l.successor(4, "/new")
		lie.Places[2].Spec = "/its-own"
		if body, err = lie.encode(); err != nil {
			t.Fatal(err)
		}
		if err := s.folders[fmt.Sprint("/p", liar)].Put(ctx, "places/1", body); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Replace(ctx, sp, "/p4", "/new", s.folders["/new"], false); err != nil {
			t.Fatalf("liar %d: %v", liar, err)
		}
		now, l := s.open(t)
		if l.Generation != 1 || l.Places[2].Spec != "/p2" || l.Places[4].Spec != "/new" {
			t.Errorf("liar %d: %+v", liar, l)
		}
		readAll(t, now, all, "after")
	}
}
