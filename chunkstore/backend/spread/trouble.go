package spread

import (
	"errors"
	"fmt"
	"slices"

	"cairn/chunkstore/backend"
)

// trouble is what went wrong with one place while it was used.
type trouble struct {
	parity trial // reads that its shard should have answered
	missed trial // objects that it did not take
	hurt   trial // other shards that could not be read, and damaged copies
	stray  trial // lists of places that were never decided
}

// trial is what failed in one way: how often, and first of all.
type trial struct {
	n      int
	object string
	err    error
}

// blame counts what failed with a place, in the trial that of gives.
func (s *Spread) blame(m *member, object string, err error, of func(*trouble) *trial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.trouble[m.ID]
	if t == nil {
		t = &trouble{}
		s.trouble[m.ID] = t
	}
	one := of(t)
	if one.n++; one.n == 1 {
		one.object, one.err = object, err
	}
}

// served counts a read that parity answered.
func (s *Spread) served(m *member, object string, err error) {
	s.blame(m, object, err, func(t *trouble) *trial { return &t.parity })
}

// hurt counts a shard that could not be used, and gives err back.
func (s *Spread) hurt(m *member, object string, err error) error {
	s.blame(m, object, err, func(t *trouble) *trial { return &t.hurt })
	return err
}

// spoilt counts the copies of a control object that are damaged, by member.
func (s *Spread) spoilt(object string, bad []error) {
	for i, err := range bad {
		if err != nil {
			s.blame(s.members[i], object, err, func(t *trouble) *trial { return &t.hurt })
		}
	}
}

// missed counts an object that the members with an error did not take.
func (s *Spread) missed(object string, errs []error) {
	for i, err := range errs {
		if err != nil {
			s.blame(s.members[i], object, err, func(t *trouble) *trial { return &t.missed })
		}
	}
}

// Degraded says whether something was stored on fewer places than it should
// be.
func (s *Spread) Degraded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.trouble {
		if t.missed.n > 0 {
			return true
		}
	}
	return false
}

// ParityReads gives how many reads were served from parity.
func (s *Spread) ParityReads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, t := range s.trouble {
		n += t.parity.n
	}
	return n
}

// Away gives the places that were away when the repository was opened, or that
// stopped answering since. It asks nobody.
func (s *Spread) Away() (specs []string) {
	for _, m := range s.members {
		if m.Place == nil || m.away() {
			specs = append(specs, m.Spec)
		}
	}
	return specs
}

// Warnings says what a person should know: which places are away, and what
// went wrong since the places were opened.
func (s *Spread) Warnings() []string {
	var out []string
	for _, m := range s.members {
		if m.Place == nil {
			out = append(out, fmt.Sprintf("place %s is away (%v): up to %d may be; bring it back, and run: cairn repair places; if it is lost: cairn place replace %s NEW", m.Spec, m.Why, s.shards.M, m.Spec))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partial {
		out = append(out, "so many places are away that a restore point made without those that are left may not be shown")
	}
	for _, m := range s.members {
		t := s.trouble[m.ID]
		if t == nil || m.Place == nil && t.missed.n == 0 && t.parity.n == 0 {
			continue
		}
		if t.stray.n > 0 {
			out = append(out, fmt.Sprintf("place %s holds %s, %v; end that replacement, or, if there is none: cairn place replace %s NEW", m.Spec, t.stray.object, t.stray.err, m.Spec))
		}
		if t.hurt.n+t.missed.n+t.parity.n == 0 {
			continue
		}
		first, what := t.hurt, fmt.Sprintf("%d shards or copies could not be read", t.hurt.n)
		switch {
		case t.missed.n > 0:
			first, what = t.missed, fmt.Sprintf("it missed %d objects, which are stored on fewer places than they should be", t.missed.n)
		case t.parity.n > 0:
			first, what = t.parity, fmt.Sprintf("%d reads were served from parity", t.parity.n)
		}
		mend := "cairn repair places"
		if t.missed.n == 0 && !errors.Is(first.err, backend.ErrNotExist) {
			mend += " --read-data" // what is there, but wrong, only shows when it is read
		}
		out = append(out, fmt.Sprintf("place %s: %s; the first: %s: %v; run: %s", m.Spec, what, first.object, root(first.err), mend))
	}
	return slices.Compact(out)
}

// A placeError is what went wrong at one place.
type placeError struct {
	spec string
	err  error
}

func (e *placeError) Error() string { return "place " + e.spec + ": " + e.err.Error() }
func (e *placeError) Unwrap() error { return e.err }

// root leaves the place's name out, where a warning has said it.
func root(err error) error {
	if p, ok := err.(*placeError); ok {
		return p.err
	}
	return err
}
