package spread

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/chunkstore/backend"
)

// PlaceState is one line of `cairn place ls`.
type PlaceState struct {
	Place
	State   string `json:"state"` // "ok", "away", "read-only", "behind"
	Why     string `json:"why,omitempty"`
	Missing int    `json:"objects_missing"` // that it should hold
	Held    int    `json:"objects"`
}

// States gives the state of each place, by listing all of them.
func (s *Spread) States(ctx context.Context, l *Layout) ([]PlaceState, error) {
	out := make([]PlaceState, len(s.members))
	errs := make([]error, len(s.members))
	s.each(func(i int, m *member) {
		if errs[i] = m.there(ctx); errs[i] == nil {
			errs[i] = m.tryWrite(ctx)
		}
	})
	seen, err := s.surveyUnguarded(ctx, "")
	if err != nil && !errors.Is(err, ErrAway) {
		return nil, err
	}
	all := slices.DeleteFunc(seen.list(), func(o *object) bool { // what nobody misses
		if !strings.HasPrefix(o.name, placesPrefix) {
			return false
		}
		absent := 0
		for i, err := range errs {
			if o.on>>i&1 == 0 && (err == nil || errors.Is(err, errReadOnly)) {
				absent++
			}
		}
		return s.neverDecided(absent)
	})
	ended := endedSessions(all)
	for i, m := range s.members {
		out[i] = PlaceState{Place: l.Places[i], State: "ok"}
		for _, o := range all {
			if o.pack && !ended[sessionOf(o.name)] {
				continue // of a run that goes on, or that died
			}
			held, missing := s.holds(o, i)
			out[i].Held += held
			out[i].Missing += missing
		}
		switch {
		case errors.Is(errs[i], errReadOnly):
			out[i].State, out[i].Why = "read-only", root(errs[i]).Error()
		case errs[i] != nil:
			out[i].State, out[i].Why = "away", root(errs[i]).Error()
		case out[i].Missing > 0:
			out[i].State = "behind"
		}
		if m.Place == nil {
			out[i].Why = m.Why.Error()
		}
	}
	return out, ctx.Err()
}

// holds counts what member i holds and misses of an object.
func (s *Spread) holds(o *object, i int) (held, missing int) {
	if strings.HasPrefix(o.name, notesPrefix) {
		return 0, 0
	}
	if !o.pack {
		if o.on&(1<<i) != 0 {
			return 1, 0
		}
		return 0, 1
	}
	order := s.order(o.name)
	for n := range s.shards.Total() {
		if order[n%len(order)] != i {
			continue
		}
		if o.on&(1<<n) != 0 {
			held++
		} else {
			missing++
		}
	}
	return held, missing
}

var errReadOnly = errors.New("it takes no writes")

// probeName is put and deleted to see whether a place takes writes.
const probeName = "repair/probe"

func (m *member) tryWrite(ctx context.Context) error {
	err := m.put(ctx, probeName, []byte("cairn looks whether this place takes writes"))
	if err == nil || errors.Is(err, backend.ErrExist) {
		err = m.remove(ctx, probeName)
	}
	if err != nil && !errors.Is(err, errGone) {
		return &placeError{m.Spec, fmt.Errorf("%w: %w", errReadOnly, root(err))}
	}
	return err
}
