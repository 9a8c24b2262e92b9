package spread

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
)

// Replace puts a new, empty place into the slot of an old one: it decides the
// next generation of the list, copies what is decided, and last gives the new
// place its identity. The shards are Repair's to make. old may be away. A
// crash before the list is decided changes nothing; after it the new place
// does not count until Replace with both names equal, or again, ends it.
//
// The list needs the strict quorum. Where so many places are not left, old
// counts as one that agrees when it is away, for the caller says that it is
// lost; with lost all others that are away do, too.
func (l *Layout) Replace(ctx context.Context, s *Spread, old, spec string, fresh backend.Backend, lost bool) (*Layout, error) {
	if len(l.Places) == 1 {
		return nil, errors.New("a repository with one place has none to take its bytes from: copy the folder, it is complete in itself")
	}
	i, err := l.find(old)
	if err != nil {
		return nil, err
	}
	if err := l.mayBecome(ctx, fresh, spec, i); err != nil {
		return nil, err
	}
	next := &Layout{Repository: l.Repository, Generation: l.Generation + 1, Shards: l.Shards, Places: slices.Clone(l.Places)}
	p := l.successor(i, spec)
	next.Places[i] = p
	body, err := next.encode()
	if err != nil {
		return nil, err
	}
	if n, tried := l.tried(ctx, s, i, spec); n != nil {
		next, body, p = n, tried, n.Places[i] // as it was written: perhaps without a sum
	}
	if err := next.Check(); err != nil {
		return nil, err
	}
	need := s.agreeing(i, lost)
	err = s.patient(ctx, func() error { return s.putList(ctx, layoutName(next.Generation), body, need) })
	if errors.Is(err, backend.ErrExist) {
		return nil, ErrPlacesChanged
	}
	if err != nil && !lost {
		err = fmt.Errorf("%w\nif the others that are away are lost for good, too, add --others-lost", err)
	}
	if err != nil {
		return nil, fmt.Errorf("store the new list of places: %w", err)
	}
	// From here on no writer that does not know the list can commit: what is
	// decided now, and copied, is all there is from before.
	if err := s.copyControl(ctx, fresh); err != nil {
		return nil, fmt.Errorf("copy to %s: %w; the list of places is stored; run it again: cairn place replace %s %s", spec, err, spec, spec)
	}
	if err := next.Identify(ctx, fresh, p); err != nil {
		return nil, fmt.Errorf("make %s a place: %w", spec, err)
	}
	return next, nil
}

// putList stores the next list. Places that hold another one, which is not decided
// after a while either, have no vote, and are not helped. Should its writer live,
// and have slept for so long, perhaps neither list is decided.
func (s *Spread) putList(ctx context.Context, name string, body []byte, need int) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if err := s.enough("storing "+name, need); err != nil {
		return err
	}
	shun := s.others(ctx, name, body)
	if s.opts.Settle > 0 && slices.ContainsFunc(shun, func(err error) bool { return err != nil }) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.opts.Settle):
		}
		shun = s.others(ctx, name, body)
	}
	err := s.voteWithout(ctx, name, body, shun).result(s, need)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// others has an error for each place that holds a list which is not body and was
// never decided.
func (s *Spread) others(ctx context.Context, name string, body []byte) []error {
	errs := make([]error, len(s.members))
	v := s.compare(ctx, name)
	if !s.neverDecided(v.absent()) {
		return errs
	}
	for i, c := range v.copies {
		if c.err == nil && !bytes.Equal(c.body, body) {
			errs[i] = &placeError{s.members[i].Spec, errNeverDecided}
		}
	}
	return errs
}

// successor gives the place that replaces place i in the next generation. Its
// ID is the same for each try: where two tries died that did not see each other,
// lists that differ could split the places that are left, so that no list is
// ever decided. Only one list of a generation is, so it names no other place.
func (l *Layout) successor(i int, spec string) Place {
	slot := l.Places[i].slot()
	h := blake3.Sum256(fmt.Appendf(nil, "cairn place\x00%s\x00%d\x00%s\x00%s", l.Repository, l.Generation+1, slot, spec))
	return Place{ID: hex.EncodeToString(h[:16]), Slot: slot, Spec: spec}
}

// tried gives the next list as an earlier try to put spec where place i is left
// it on some place; nil: none. Where that was decided by fewer places than
// Open asks for, since others were lost, another list would never be.
func (l *Layout) tried(ctx context.Context, s *Spread, i int, spec string) (*Layout, []byte) {
	name := layoutName(l.Generation + 1)
	v := s.compare(ctx, name)
	if len(v.on) == 0 || !v.best.whole {
		return nil, nil
	}
	n, err := l.parse(name, v.best.body)
	if err != nil || n.Places[i].Spec != spec || n.Places[i].slot() != l.Places[i].slot() || n.Places[i].ID == l.Places[i].ID {
		return nil, nil
	}
	for j, p := range n.Places {
		if j != i && p != l.Places[j] {
			return nil, nil // a place made it up
		}
	}
	return n, v.best.body
}

// mayBecome makes sure that a folder may become a place: it is empty, or what
// an earlier try left.
func (l *Layout) mayBecome(ctx context.Context, b backend.Backend, spec string, slot int) error {
	if _, id, err := PlaceID(ctx, b); err == nil {
		return fmt.Errorf("%s is a place already (%.8s): name an empty folder", spec, id)
	} else if !errors.Is(err, backend.ErrNotExist) {
		return err
	}
	for i, p := range l.Places {
		if p.Spec == spec && i != slot {
			return fmt.Errorf("%s is another place of this repository: name an empty folder", spec)
		}
	}
	body, err := backend.Get(ctx, b, configName, maxLayout)
	if err == nil {
		var c struct{ ID string }
		if json.Unmarshal(body, &c) == nil && c.ID == l.Repository {
			return nil
		}
		return fmt.Errorf("%s holds another repository: name an empty folder", spec)
	}
	if !errors.Is(err, backend.ErrNotExist) {
		return err
	}
	stop := errors.New("not empty")
	if err := b.List(ctx, "", func(backend.Object) error { return stop }); errors.Is(err, stop) {
		return fmt.Errorf("%s is not empty: name an empty folder", spec)
	} else if err != nil {
		return err
	}
	return nil
}

// agreeing is how many places must take a new list that replaces member i.
func (s *Spread) agreeing(i int, lost bool) int {
	alive, away := 0, 0
	for j, m := range s.members {
		if !m.away() {
			alive++
		} else if j == i || lost {
			away++
		}
	}
	if need := s.strictQuorum(); alive < need {
		return max(1, need-away)
	}
	return s.strictQuorum()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// copyControl copies every control object that any place holds to a new one.
// What is decided is on one of those that survey demands, whether the place
// that leaves is among them or not.
func (s *Spread) copyControl(ctx context.Context, to backend.Backend) error {
	seen, err := s.surveyUnguarded(ctx, "")
	if err != nil {
		return err
	}
	all := seen.list()
	// The config is first: by it a later try knows what an earlier one left.
	slices.SortStableFunc(all, func(a, b *object) int { return cmp.Compare(btoi(b.name == configName), btoi(a.name == configName)) })
	for _, o := range all {
		if isPack(o.name) {
			continue
		}
		v := s.compare(ctx, o.name)
		if len(v.on) == 0 {
			for i, c := range v.copies {
				if o.on>>i&1 > 0 && c.err != nil && !c.absent() {
					return fmt.Errorf("read %s: %w", o.name, c.err)
				}
			}
			continue // deleted since
		}
		if strings.HasPrefix(o.name, placesPrefix) && s.neverDecided(v.absent()) {
			continue
		}
		body, err := s.body(ctx, o.name, v)
		if err != nil {
			return err
		}
		if err := to.Put(ctx, o.name, body); err != nil && !errors.Is(err, backend.ErrExist) {
			return err
		}
	}
	return ctx.Err()
}

// find gives the number of the place that spec or an id's beginning names.
func (l *Layout) find(spec string) (int, error) {
	found := -1
	for i, p := range l.Places {
		if p.Spec == spec {
			return i, nil
		}
		if len(spec) >= 8 && strings.HasPrefix(p.ID, spec) {
			found = i
		}
	}
	if found >= 0 {
		return found, nil
	}
	var specs []string
	for _, p := range l.Places {
		specs = append(specs, p.Spec)
	}
	return -1, fmt.Errorf("%s is no place of this repository; its places are: %s", spec, strings.Join(specs, ", "))
}
