package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/pack"
)

// ErrNotProven: an object is not known to be bad, so nothing is put in its
// place.
var ErrNotProven = errors.New("the object is not known to be damaged")

// A Mending puts good objects where bad ones are, or none. It is a session as
// far as gc sees: with its intent stored first, what gc decided to remove is
// read, and is not made again; a gc that begins later waits.
type Mending struct {
	store *Store
	id    SessionID
	gone  map[string]bool // packs that gc decided to remove, by object name
}

// Mend begins one. Close ends it.
func (s *Store) Mend(ctx context.Context, about []byte) (*Mending, error) {
	m := &Mending{store: s, id: randomSession()}
	if err := s.PutRecord(ctx, IntentObject(m.id), recordIntent, about); err != nil {
		return nil, fmt.Errorf("store the repair's intent: %w", err)
	}
	return m, nil
}

// removed says whether gc decided to remove a pack. It is asked for packs alone:
// what gc decided may itself have to be mended first.
func (m *Mending) removed(ctx context.Context, name string) (bool, error) {
	if m.gone == nil && strings.HasPrefix(name, packsPrefix) {
		if err := m.store.callOff(ctx); err != nil {
			return false, err
		}
		gone, err := m.store.Removed(ctx)
		if err != nil {
			return false, err
		}
		m.gone = gone
	}
	return m.gone[name], nil
}

// Close removes the intent, so that gc need not wait. A repair that died is
// ended by gc as any session is.
func (m *Mending) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return m.store.RemoveIntent(ctx, m.id)
}

// callOff ends what a run of gc has condemned and not yet decided, by a decision
// to remove nothing: it may be needed after all, and gc could not find that out
// while a map is damaged.
func (s *Store) callOff(ctx context.Context) error {
	all, err := s.Generations(ctx)
	if err != nil {
		return err
	}
	for _, g := range all {
		if !g.Condemned || g.Final {
			continue
		}
		if err := s.removeNothing(ctx, g.N); err != nil {
			return err
		}
	}
	return nil
}

// CallOff decides that a run of gc whose list cannot be read removes nothing,
// if nothing was decided before, and gives what was.
func (s *Store) CallOff(ctx context.Context, n int) (*Final, error) {
	if err := s.removeNothing(ctx, n); err != nil {
		return nil, err
	}
	return s.ReadFinal(ctx, n)
}

func (s *Store) removeNothing(ctx context.Context, n int) error {
	err := s.PutRecord(ctx, GenerationName(n, "final"), RecordFinal, []byte(`{"packs":[]}`))
	if err != nil && !errors.Is(err, backend.ErrExist) {
		return fmt.Errorf("call off run %d of gc: %w", n, err)
	}
	return nil
}

// Removed gives the packs that runs of gc decided to remove, by object name:
// nobody makes one of these anew.
func (s *Store) Removed(ctx context.Context) (map[string]bool, error) {
	all, err := s.Generations(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, g := range all {
		if !g.Final {
			continue
		}
		f, err := s.ReadFinal(ctx, g.N)
		if err != nil {
			return nil, fmt.Errorf("read what run %d of gc removed: %w", g.N, err)
		}
		for _, text := range f.Packs {
			out[packsPrefix+text] = true
		}
	}
	return out, nil
}

// good says whether bytes are those of an object, as far as these keys and
// its name prove it; without keys only a pack's are ever good.
func (s *Store) good(name string, b []byte) bool {
	if ref, err := parsePackName(name); err == nil {
		return pack.Verify(b, ref.Hash) == nil
	}
	if isRecord(name) {
		return s.verifyRecord(name, b) == nil
	}
	return name == configName && verifyConfig(b) == nil
}

func isRecord(name string) bool {
	return slices.ContainsFunc(recordPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// sizeLimit bounds the objects of a name, in bytes.
func sizeLimit(name string) int64 {
	if strings.HasPrefix(name, packsPrefix) {
		return pack.MaxSize
	}
	return maxRecord
}

// Replace puts good bytes in the place of an object that is missing, or whose
// stored bytes are bad: it looks at both itself. What was not missing when it
// was found to be bad and is gone now was collected: it is not made again, as
// is nothing that gc removes.
//
// A bad record or configuration stays, and its good copy lies beside it: in the moment in which
// a point's manifest is not there another one could decide against the session.
// Of a bad pack the object is deleted before the good one has its name, as no name is
// ever written over: a crash in between leaves it missing, never wrong, and when the
// new one cannot be stored the old bytes are put back, of which a part may be readable.
// In a folder the good one is stored first and then takes the name in one: what is deleted
// there may free no room (a snapshot holds it), and both would be lost.
func (m *Mending) Replace(ctx context.Context, name string, good []byte, missing bool) error {
	s := m.store
	if !s.good(name, good) {
		return fmt.Errorf("%s: %w: what was to be put in its place is not it", name, pack.ErrCorrupt)
	}
	if gone, err := m.removed(ctx, name); err != nil {
		return err
	} else if gone {
		return fmt.Errorf("%s: %w: a run of gc decided to remove it, and what is needed of it lies elsewhere: let cairn gc finish", name, ErrNotProven)
	}
	old, err := backend.Get(ctx, s.place, name, sizeLimit(name))
	switch {
	case errors.Is(err, backend.ErrNotExist) && !missing:
		return fmt.Errorf("%s: %w: it is gone since it was read; check again", name, ErrNotProven)
	case errors.Is(err, backend.ErrNotExist):
		if err := s.place.Put(ctx, name, good); err != nil && !errors.Is(err, backend.ErrExist) {
			return err
		}
		return s.stored(ctx, name, name)
	case err == nil && s.good(name, old):
		return fmt.Errorf("%s: %w: read again, it is whole; look at the disk's and the memory's health", name, ErrNotProven)
	case isRecord(name), name == configName:
		return m.copy(ctx, name, good)
	case err != nil:
		return fmt.Errorf("%s: %w: %w", name, ErrNotProven, err)
	}
	return s.overwrite(ctx, name, name, old, good)
}

// copy puts a good copy beside a bad record.
func (m *Mending) copy(ctx context.Context, name string, good []byte) error {
	s, at := m.store, mendedPrefix+name
	err := s.place.Put(ctx, at, good)
	if !errors.Is(err, backend.ErrExist) {
		if err != nil {
			return err
		}
		return s.stored(ctx, name, at)
	}
	old, err := backend.Get(ctx, s.place, at, maxRecord)
	if err != nil || s.good(name, old) {
		return err
	}
	return s.overwrite(ctx, name, at, old, good)
}

// overwrite puts an object's good bytes where its old ones lie.
func (s *Store) overwrite(ctx context.Context, name, at string, old, good []byte) error {
	// From here on an end of the caller's patience would leave it missing.
	ctx = context.WithoutCancel(ctx)
	if ok, err := backend.Replace(ctx, s.place, at, good); ok {
		if err == nil {
			err = s.stored(ctx, name, at)
		}
		return err
	}
	if err := s.place.Delete(ctx, at); err != nil {
		if _, there := s.place.Size(ctx, at); !errors.Is(there, backend.ErrNotExist) {
			return err
		} // else only the answer was lost
	}
	if err := s.place.Put(ctx, at, good); err != nil {
		return errors.Join(err, s.place.Put(ctx, at, old))
	}
	return s.stored(ctx, name, at)
}

// stored reads back what was put.
func (s *Store) stored(ctx context.Context, name, at string) error {
	b, err := backend.Get(ctx, s.place, at, sizeLimit(name))
	if err == nil && !s.good(name, b) {
		err = fmt.Errorf("%s: %w again when it was read back: the place cannot be trusted", at, pack.ErrCorrupt)
	}
	return err
}

// ReadGood gives an object of another place that these keys, or its name,
// prove to be the one of that name.
func (s *Store) ReadGood(ctx context.Context, from backend.Backend, name string) ([]byte, error) {
	b, err := backend.Get(ctx, from, name, sizeLimit(name))
	if err == nil && !s.good(name, b) {
		err = fmt.Errorf("%s: %w there, too", name, pack.ErrCorrupt)
	}
	return b, err
}

// Repairer is a place that can make a pack good again by itself, from parity
// or from another of its copies.
type Repairer interface {
	RepairPack(ctx context.Context, name string) error
}

// RepairPack lets the place make a pack good from its own redundancy; done is
// false when it has none.
func (m *Mending) RepairPack(ctx context.Context, ref PackRef) (done bool, err error) {
	r, ok := m.store.place.(Repairer)
	if !ok {
		return false, nil
	}
	if gone, err := m.removed(ctx, packName(ref)); gone || err != nil {
		return false, err
	}
	if err := r.RepairPack(ctx, packName(ref)); err != nil {
		return false, err
	}
	_, err = VerifyPack(ctx, m.store.place, ref)
	return err == nil, err
}
