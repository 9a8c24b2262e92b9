package gc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
)

// rot damages or loses a pack, or damages a manifest or a record of gc's.
func (s *sim) rot(ctx context.Context) {
	prefix := []string{"packs/", "packs/", "points/", "gc/"}[s.rnd.IntN(4)]
	var names []string
	_ = s.place.List(ctx, prefix, func(o backend.Object) error { names = append(names, o.Name); return nil })
	if len(names) == 0 {
		return
	}
	name := names[s.rnd.IntN(len(names))]
	what := "lost"
	if prefix == "packs/" && s.rnd.IntN(2) == 0 {
		_ = s.place.Delete(ctx, name)
	} else {
		what = "damaged"
		at := s.rnd.IntN(1 << 20)
		s.place.Damage(name, func(b []byte) []byte { b[at%len(b)] ^= 4; return b })
	}
	s.hurt[name] = true
	s.counts["objects "+what]++
	if s.log != nil {
		s.log(fmt.Sprintf("%4d the place %s %s", s.steps, what, name))
	}
}

// wanted collects the packs that points need.
type wanted map[string]bool

func (n wanted) Enter(chunk.PackRef, int) bool      { return true }
func (n wanted) Record(ref chunk.PackRef, _ int)    { n[chunkstore.PackObject(ref)] = true }
func (n wanted) Chunks(ref chunk.PackRef, _, _ int) { n[chunkstore.PackObject(ref)] = true }
func (n wanted) trace(ctx context.Context, store *chunkstore.Store, r *chunkstore.Reader) error {
	v, err := store.List(ctx)
	if err != nil {
		return err
	}
	_, err = store.Commits(ctx, v, nil, func(p chunkstore.Commit) error {
		if err := simTrace(r)(ctx, p, n); errors.Is(err, errLost) || errors.Is(err, errCrashed) {
			return err
		}
		return nil // as far as it goes
	})
	if err != nil {
		return err
	}
	for next := slices.Sorted(maps.Keys(n)); len(next) > 0; next = next[1:] { // where they were moved
		ref, err := chunkstore.ParsePackText(strings.TrimPrefix(next[0], "packs/"))
		if err != nil {
			return err
		}
		ways, err := store.Forwards(ctx, ref)
		if err != nil {
			return err
		}
		for _, f := range ways {
			for _, run := range f.Runs {
				if to := chunkstore.PackObject(run.To); !n[to] {
					n[to] = true
					next = append(next, to)
				}
			}
		}
	}
	return nil
}

// mend looks for what is at fault and mends it from the mirror, as a check with
// --repair does.
func mend(ctx context.Context, a *actor) error {
	if len(a.s.hurt) == 0 || a.s.rnd.IntN(8) > 0 {
		return a.turn()
	}
	return a.s.mendFrom(ctx, a.place, a.store, a.reader)
}

func (s *sim) mendFrom(ctx context.Context, place backend.Backend, store *chunkstore.Store, r *chunkstore.Reader) error {
	needed := wanted{}
	if err := needed.trace(ctx, store, r); err != nil && !s.expected(err) {
		return err
	}
	type finding struct {
		name    string
		missing bool
	}
	var all []finding
	for _, name := range slices.Sorted(maps.Keys(s.hurt)) {
		var err error
		if text, ok := strings.CutPrefix(name, "packs/"); ok {
			ref, perr := chunkstore.ParsePackText(text)
			if perr != nil {
				return perr
			}
			_, err = chunkstore.VerifyPack(ctx, place, ref)
		} else {
			err = store.VerifyRecord(ctx, name)
		}
		var f *chunkstore.Fault
		switch {
		case err == nil:
			delete(s.hurt, name)
		case !errors.As(err, &f):
			return err
		case f.Kind == chunkstore.FaultMissing && !needed[name]:
		case f.Kind.Proven():
			all = append(all, finding{name, f.Kind == chunkstore.FaultMissing})
		}
	}
	if len(all) == 0 {
		return nil
	}
	m, err := store.Mend(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close(ctx) }()
	for _, f := range all {
		good, err := store.ReadGood(ctx, s.mirror, f.name)
		if err != nil {
			return err
		}
		if err = m.Replace(ctx, f.name, good, f.missing); err == nil {
			delete(s.hurt, f.name)
			s.counts["mended"]++
		} else if !s.expected(err) {
			return err
		}
	}
	return nil
}

// mendAll mends all that the place did, with nobody else there, until a repair
// finds nothing more: what one record names is known when that can be read.
func (s *sim) mendAll(ctx context.Context) error {
	for range 5 {
		if len(s.hurt) == 0 {
			return nil
		}
		from := s.reading()
		if err := s.mendFrom(ctx, s.place, from.store, from.reader); err != nil {
			return fmt.Errorf("the last repair: %w", err)
		}
	}
	return nil
}
