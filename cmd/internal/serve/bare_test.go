package serve

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
)

// catalogues gives the runs that made up for a catalogue, newest first.
func catalogues(b *runs.Book) []runs.Run {
	return b.Runs(100, func(r runs.Run) bool { return r.Kind == runs.Catalogue })
}

func (s *stage) touch(name string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// A point whose worker was killed behind its commit has no catalogue: it is made up
// for, also by a daemon that begins later, and once.
func TestCatalogueIsMadeUpFor(t *testing.T) {
	s := newStage(t, "killed")
	s.touch("bare")
	s.begin()
	s.until("a catalogue is made up for", func() bool { return len(catalogues(s.daemon.Book())) > 0 })
	r, points := catalogues(s.daemon.Book())[0], map[string]bool{}
	for _, b := range s.ends("killed") {
		if b.Point != nil {
			points[b.Point.ID] = b.Point.NoCatalogue
		}
	}
	if !r.Good() || !points[r.Of] || r.VM != "killed" || r.Repository != "main" {
		t.Errorf("%+v of points %v", r, points)
	}
	s.end()
	d := s.still() // what the book says is enough for the next
	seen := map[string]int{}
	for _, r := range catalogues(d.book) {
		if seen[r.Of]++; seen[r.Of] > 1 {
			t.Errorf("%s is made up for again", r.Of)
		}
	}
	for _, b := range d.bare {
		if seen[b.Point] > 0 {
			t.Errorf("%+v is made up for, and the next start does it again", b)
		}
	}
	at := s.now()
	r = runs.Run{ID: runs.NewID(), Kind: runs.Backup, Job: "hourly", VM: "killed", Repository: "main", Started: at, Ended: at, Outcome: runs.Warned, Exit: 3, Point: &runs.Point{ID: "bare one", NoCatalogue: true}}
	if err := d.book.End(r); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = s.still()
	if b := d.bare["bare one"]; b == nil || b.VM != "killed" || b.Repository != "main" {
		t.Errorf("the next start does not know it: %+v", d.bare)
	}
}

// One that cannot be made is tried thrice, with longer and longer waits.
func TestCatalogueThatCannotBeMade(t *testing.T) {
	s := newStage(t, "killed")
	s.touch("bare")
	s.touch("unreadable")
	s.begin()
	of := func() (n int) {
		list := catalogues(s.daemon.Book())
		for _, r := range list {
			if r.Of == list[len(list)-1].Of {
				n++
			}
		}
		return n
	}
	s.until("it is tried thrice", func() bool { return of() == maxTries })
	time.Sleep(300 * time.Millisecond) // some 20 minutes
	if n := of(); n != maxTries {
		t.Errorf("tried %d times", n)
	}
	var next time.Time // attempt of the same, which is the first that was found
	list := catalogues(s.daemon.Book())
	for _, r := range list { // newest first
		if r.Of != list[len(list)-1].Of {
			continue
		}
		if !next.IsZero() && next.Sub(r.Ended) < 40*time.Second {
			t.Errorf("tried again after %s", next.Sub(r.Ended))
		}
		next = r.Started
	}
}

// It waits until nothing else is done for its repository, but not for ever; one is
// made at a time; and what is away, or not configured any more, waits.
func TestWhenACatalogueIsMadeUpFor(t *testing.T) {
	w := newWorld(t, "29 12:00:00", 1)
	bare := func(point, repo string, since time.Time) Bare {
		return Bare{Point: point, VM: "a", Repository: repo, Since: since}
	}
	early, late := w.in.Now.Add(-2*time.Hour), w.in.Now.Add(-time.Hour)
	begun := func() (list string) {
		for _, s := range w.plan().Begin {
			if s.Run.Kind == runs.Catalogue {
				list += s.Run.Of + " "
			}
		}
		return list
	}
	for _, c := range []struct {
		what, want string
		in         func()
	}{
		{"none", "", func() { w.in.Bare = nil }},
		{"quiet", "first ", func() { w.in.Bare = []Bare{bare("first", "main", early), bare("second", "far", late)} }},
		{"a backup runs there", "second ", func() { w.in.Active = []Active{{Run: runs.Run{Kind: runs.Backup, VM: "b", Repository: "main"}}} }},
		{"a check, too", "", func() { w.in.Active = append(w.in.Active, Active{Run: runs.Run{Kind: runs.Check, Repository: "far"}}) }},
		{"another is made", "", func() { w.in.Active = []Active{{Run: runs.Run{Kind: runs.Catalogue, VM: "b", Repository: "other"}}} }},
		{"it is away", "second ", func() {
			w.in.Active, w.in.Away = nil, map[string]Away{"main": {Until: w.in.Now.Add(time.Minute)}}
		}},
		{"it failed just now", "", func() { w.in.Bare = w.in.Bare[1:]; w.in.Bare[0].Again = w.in.Now.Add(time.Minute) }},
		{"not configured", "", func() { w.in.Bare = []Bare{bare("x", "gone", early)} }},
		{"never quiet", "old ", func() {
			w.in.Away = nil
			w.in.Bare = []Bare{bare("old", "main", w.in.Now.Add(-25*time.Hour))}
			w.in.Active = []Active{{Run: runs.Run{Kind: runs.Backup, VM: "b", Repository: "main"}}}
		}},
	} {
		c.in()
		if got := begun(); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}
