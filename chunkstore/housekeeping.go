package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// Inventory is what a repository holds, by name alone. Each part is listed
// behind the one before it: a pack that is listed had its session's intent
// before that, and an intent that is listed without a decision was undecided.
type Inventory struct {
	Packs *PackList
	// Partial are packs of which too little is there to be read, in a place that
	// is several, all of which were listed: of runs that died, and of packs that
	// were removed while a place was away, which is back. They are not in Packs.
	Partial    *PackList
	Forwards   map[PackRef][]SessionID
	Refills    map[PackRef][]SessionID // forwards of lost packs
	Collectors map[SessionID]time.Time
	// Intents are of sessions, with the time of the last sign of life of each,
	// by the place's clock.
	Intents map[SessionID]time.Time
	Beats   []string // names of objects
	// Points are sessions that were decided: points, aborts, and catalogues.
	Points  map[SessionID]bool
	Decided map[SessionID]time.Time // when each of Points was, by the place's clock
	Drops   map[SessionID]bool      // of Points
}

// Undecided says whether a session may still commit.
func (v *Inventory) Undecided(id SessionID) bool {
	_, ok := v.Intents[id]
	return ok && !v.Points[id]
}

// List takes the inventory.
func (s *Store) List(ctx context.Context) (*Inventory, error) {
	v := &Inventory{Packs: new(PackList), Partial: new(PackList), Forwards: map[PackRef][]SessionID{}, Refills: map[PackRef][]SessionID{}, Collectors: map[SessionID]time.Time{},
		Intents: map[SessionID]time.Time{}, Points: map[SessionID]bool{}, Decided: map[SessionID]time.Time{}, Drops: map[SessionID]bool{}}
	life := map[SessionID]time.Time{}
	alive := func(id SessionID, t time.Time) {
		if t.After(life[id]) {
			life[id] = t
		}
	}
	session := func(prefix string, fn func(SessionID, backend.Object)) error {
		return s.place.List(ctx, prefix, func(o backend.Object) error {
			name, _, _ := strings.Cut(strings.TrimPrefix(o.Name, prefix), "/")
			if id, err := ParseSessionID(name); err == nil { // else not ours; check names it
				fn(id, o)
			}
			return nil
		})
	}
	for _, step := range []func() error{
		func() error {
			return s.place.List(ctx, packsPrefix, func(o backend.Object) error {
				if r, err := parsePackName(o.Name); err == nil {
					switch {
					case o.Rest:
						v.Partial.Add(r, o.Size)
					case !o.Partial:
						v.Packs.Add(r, o.Size)
					}
					alive(r.Session, o.Modified)
				}
				return nil
			})
		},
		func() error {
			return session(beatsPrefix, func(id SessionID, o backend.Object) {
				v.Beats = append(v.Beats, o.Name)
				alive(id, o.Modified)
			})
		},
		func() error { return s.listForwards(ctx, forwardsPrefix, v.Forwards) },
		func() error { return s.listForwards(ctx, refillsPrefix, v.Refills) },
		func() error {
			return session(collectorsPrefix, func(id SessionID, o backend.Object) { v.Collectors[id] = o.Modified })
		},
		func() error {
			return session(intentsPrefix, func(id SessionID, o backend.Object) {
				alive(id, o.Modified)
				v.Intents[id] = life[id]
			})
		},
		func() error {
			return session(pointsPrefix, func(id SessionID, o backend.Object) {
				v.Points[id], v.Decided[id] = true, o.Modified
			})
		},
		func() error { return s.listDrops(ctx, v) },
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("list the repository: %w", err)
		}
	}
	return v, nil
}

// AnyUndecided says whether there is a session that may still commit. As in List,
// intents come first: a session whose intent comes later saw what is condemned.
func (s *Store) AnyUndecided(ctx context.Context) (bool, error) {
	intents := map[SessionID]bool{}
	for _, prefix := range []string{intentsPrefix, pointsPrefix} {
		err := s.place.List(ctx, prefix, func(o backend.Object) error {
			if id, err := ParseSessionID(strings.TrimPrefix(o.Name, prefix)); err == nil {
				if prefix == intentsPrefix {
					intents[id] = true
				} else {
					delete(intents, id)
				}
			}
			return nil
		})
		if err != nil {
			return false, fmt.Errorf("list the repository: %w", err)
		}
	}
	return len(intents) > 0, nil
}

// listForwards takes the names of forwards below a prefix, by pack.
func (s *Store) listForwards(ctx context.Context, prefix string, into map[PackRef][]SessionID) error {
	return s.place.List(ctx, prefix, func(o backend.Object) error {
		cut := strings.LastIndexByte(o.Name, '/')
		by, err := ParseSessionID(o.Name[cut+1:])
		if r, err2 := ParsePackText(strings.TrimPrefix(o.Name[:cut], prefix)); err == nil && err2 == nil {
			into[r] = append(into[r], by)
		}
		return nil
	})
}

// listDrops takes the drops into an inventory: those that open, of points that
// are still there. One after the other: there are few, as gc removes the points.
func (s *Store) listDrops(ctx context.Context, v *Inventory) error {
	var ids []SessionID
	err := s.place.List(ctx, dropsPrefix, func(o backend.Object) error {
		if id, err := ParseSessionID(strings.TrimPrefix(o.Name, dropsPrefix)); err == nil && v.Points[id] {
			ids = append(ids, id)
		}
		return nil
	})
	for _, id := range ids {
		var dropped bool
		if dropped, err = s.IsDropped(ctx, id); err != nil {
			return err
		}
		if dropped {
			v.Drops[id] = true
		}
	}
	return err
}

// IsAborted says whether a session was decided against.
func (s *Store) IsAborted(ctx context.Context, id SessionID) (bool, error) {
	_, err := s.ReadCommit(ctx, id)
	switch {
	case errors.Is(err, ErrAborted):
		return true, nil
	case err == nil, errors.Is(err, ErrNotPoint), errors.Is(err, backend.ErrNotExist), pack.IsDamage(err):
		return false, nil
	}
	return false, err
}

// Commit is what one session committed.
type Commit struct {
	Session   SessionID
	ID        SessionID // of the point; of a catalogue, of the point it belongs to
	Body      []byte
	Catalogue bool
}

// Commits calls fn for each point of an inventory that was not dropped, and for
// the newest catalogue of each. Sessions that fn did not get and that are no
// aborts are rubbish: dropped points, their catalogues, and catalogues of
// points that are gone. A point that cannot be read is an error. What seen has
// is passed over, unread.
func (s *Store) Commits(ctx context.Context, v *Inventory, seen map[SessionID]bool, fn func(Commit) error) (rubbish []SessionID, err error) {
	of := map[SessionID]bool{}   // catalogues
	news := map[SessionID]bool{} // points with catalogues that were not seen
	for id := range v.Points {
		for attempt := range MaxAttempts {
			c := CatalogueSession(id, attempt)
			if !v.Points[c] && !v.Drops[id] { // of a dropped point some may be removed already
				break
			}
			news[id] = news[id] || v.Points[c] && !seen[c]
			if of[c] = v.Points[c]; v.Drops[id] && v.Points[c] {
				rubbish = append(rubbish, c)
			}
		}
	}
	attached := map[SessionID]bool{} // catalogues of points that were made since the inventory
	for _, id := range sortedIDs(v.Points) {
		switch {
		case of[id]:
			continue
		case v.Drops[id]:
			rubbish = append(rubbish, id)
			continue
		case seen[id]:
			if news[id] {
				if err := s.lastCatalogue(ctx, id, fn); err != nil {
					return nil, err
				}
			}
			continue
		}
		body, err := s.ReadCommit(ctx, id)
		switch {
		case errors.Is(err, ErrAborted), errors.Is(err, backend.ErrNotExist): // or dropped and removed meanwhile
			continue
		case errors.Is(err, ErrNotPoint):
			// A listing is no instant: it may have passed the point's name
			// before that was made, and not yet the catalogue's.
			if len(attached) == 0 {
				d, err := s.listDecisions(ctx)
				if err != nil {
					return nil, err
				}
				for _, list := range d.attached {
					for _, a := range list {
						attached[a.Session] = true
					}
				}
			}
			if !attached[id] {
				rubbish = append(rubbish, id)
			}
			continue
		case err != nil:
			return nil, err
		}
		if err := fn(Commit{Session: id, ID: id, Body: body}); err != nil {
			return nil, err
		}
		if err := s.lastCatalogue(ctx, id, fn); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(rubbish, compareIDs)
	return slices.Compact(rubbish), nil
}

// lastCatalogue calls fn for a point's newest catalogue, if it has a good one.
func (s *Store) lastCatalogue(ctx context.Context, id SessionID, fn func(Commit) error) error {
	body, attempt, _, err := s.LastCatalogue(ctx, id)
	switch {
	case errors.Is(err, backend.ErrNotExist) || pack.IsDamage(err): // a point does not need it
		return nil
	case err != nil:
		return err
	}
	return fn(Commit{Session: CatalogueSession(id, attempt), ID: id, Body: body, Catalogue: true})
}

func compareIDs(a, b SessionID) int { return strings.Compare(string(a[:]), string(b[:])) }

func sortedIDs(set map[SessionID]bool) []SessionID {
	out := make([]SessionID, 0, len(set))
	for id := range set {
		out = append(out, id)
	}
	slices.SortFunc(out, compareIDs)
	return out
}

// Collect tells that a collector begins, so that what it stores is left alone
// by others; its time is the place's.
func (s *Store) Collect(ctx context.Context, id SessionID, about []byte) error {
	return s.PutRecord(ctx, collectorsPrefix+id.String(), RecordCollector, about)
}

// SyncDrops makes the drops that were seen durable. It comes before the first
// removal for their sake: a point whose drop is lost must still be whole.
func (s *Store) SyncDrops(ctx context.Context) error {
	return backend.Sync(ctx, s.place, dropsPrefix)
}

// PackSize gives a pack's stored size in bytes; backend.ErrNotExist.
func (s *Store) PackSize(ctx context.Context, r PackRef) (int64, error) {
	return s.place.Size(ctx, packName(r))
}

// RemovePack removes a pack.
func (s *Store) RemovePack(ctx context.Context, r PackRef) error {
	return s.place.Delete(ctx, packName(r))
}

// RemoveForward removes one forward of a pack.
func (s *Store) RemoveForward(ctx context.Context, r PackRef, by SessionID) error {
	return s.place.Delete(ctx, forwardsOf(r)+by.String())
}

// RemoveRefill removes one refill of a pack.
func (s *Store) RemoveRefill(ctx context.Context, r PackRef, by SessionID) error {
	return s.place.Delete(ctx, refillsOf(r)+by.String())
}

// RemoveCommit removes a dropped point's manifest, or its catalogue. The drop
// stays: a late answer to a commit could bring the manifest back.
func (s *Store) RemoveCommit(ctx context.Context, id SessionID) error {
	return s.place.Delete(ctx, pointsPrefix+id.String())
}

// RemoveCopies removes the good copies of bad objects that are gone.
func (s *Store) RemoveCopies(ctx context.Context) error {
	var names []string
	if err := s.place.List(ctx, mendedPrefix, func(o backend.Object) error { names = append(names, o.Name); return nil }); err != nil {
		return err
	}
	for _, name := range names {
		_, err := s.place.Size(ctx, strings.TrimPrefix(name, mendedPrefix))
		if errors.Is(err, backend.ErrNotExist) {
			err = s.place.Delete(ctx, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Tidy lets a place forget what it noted of packs that are gone.
func (s *Store) Tidy(ctx context.Context, v *Inventory) error {
	return backend.Tidy(ctx, s.place, func(name string) bool {
		r, err := parsePackName(name)
		return err == nil && (v.Packs.Has(r) || v.Partial.Has(r))
	})
}

// RemoveIntent removes the intent of a session that was decided.
func (s *Store) RemoveIntent(ctx context.Context, id SessionID) error {
	return s.place.Delete(ctx, intentsPrefix+id.String())
}

// RemoveCollector removes what Collect stored.
func (s *Store) RemoveCollector(ctx context.Context, id SessionID) error {
	return s.place.Delete(ctx, collectorsPrefix+id.String())
}

// RemoveBeat removes a sign of life, by its name in the inventory, if its
// session was decided or is unknown.
func (s *Store) RemoveBeat(ctx context.Context, v *Inventory, name string) error {
	id, err := ParseSessionID(strings.Split(strings.TrimPrefix(name, beatsPrefix), "/")[0])
	if err != nil || v.Undecided(id) {
		return nil
	}
	return s.place.Delete(ctx, name)
}

// Keys are the repository's, as far as they were opened.
func (s *Store) Keys() *seal.Keyring { return s.keys }

// PutPack stores a pack of a collector.
func (s *Store) PutPack(ctx context.Context, r PackRef, stored []byte) error {
	if err := s.place.Put(ctx, packName(r), stored); err != nil {
		return fmt.Errorf("store a pack: %w", err)
	}
	return nil
}

// NewSessionID gives a random one.
func NewSessionID() SessionID { return randomSession() }
