package spread

import (
	"fmt"
	"slices"
)

// trouble is what went wrong with one place while it was used.
type trouble struct {
	parity int // reads that its shard should have answered
	missed int // objects that it did not take
	hurt   int // other shards that could not be read
	object string
	err    error // the first
}

func (s *Spread) blame(m *member, object string, err error, add func(*trouble)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.trouble[m.ID]
	if t == nil {
		t = &trouble{object: object, err: err}
		s.trouble[m.ID] = t
	}
	add(t)
}

// served counts a read that parity answered.
func (s *Spread) served(m *member, object string, err error) {
	s.blame(m, object, err, func(t *trouble) { t.parity++ })
}

// hurt counts a shard that could not be used, and gives err back.
func (s *Spread) hurt(m *member, object string, err error) error {
	s.blame(m, object, err, func(t *trouble) { t.hurt++ })
	return err
}

// missed counts an object that the members with an error did not take.
func (s *Spread) missed(object string, errs []error) {
	for i, err := range errs {
		if err != nil {
			s.blame(s.members[i], object, err, func(t *trouble) { t.missed++ })
		}
	}
}

// Degraded says whether something was stored on fewer places than it should
// be.
func (s *Spread) Degraded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.trouble {
		if t.missed > 0 {
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
		n += t.parity
	}
	return n
}

// Warnings says what a person should know: which places are away, and what
// went wrong since the places were opened.
func (s *Spread) Warnings() []string {
	var out []string
	for _, m := range s.members {
		if m.Place == nil {
			out = append(out, fmt.Sprintf("place %s is away (%v): up to %d may be; mount it, and run: cairn repair places; if it is lost: cairn place replace %s NEW", m.Spec, m.Why, s.shards.M, m.Spec))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partial {
		out = append(out, "so many places are away that a restore point made without those that are left may not be shown")
	}
	for _, m := range s.members {
		t := s.trouble[m.ID]
		if t == nil || m.Place == nil && t.missed == 0 && t.parity == 0 {
			continue
		}
		what := fmt.Sprintf("%d shards could not be read", t.hurt)
		if t.parity > 0 {
			what = fmt.Sprintf("%d reads were served from parity", t.parity)
		}
		if t.missed > 0 {
			what = fmt.Sprintf("it missed %d objects, which are stored on fewer places than they should be", t.missed)
		}
		out = append(out, fmt.Sprintf("place %s: %s; the first: %s: %v; run: cairn repair places", m.Spec, what, t.object, root(t.err)))
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
