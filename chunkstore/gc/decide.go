package gc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// finish does what is left of a generation that was condemned, by this or by
// another collector. m are the marks by which this one condemned; nil: it did
// not.
func (c *collector) finish(ctx context.Context, n int, m *marks) error {
	list, err := c.store.ReadCondemned(ctx, n)
	if pack.IsDamage(err) {
		final, cerr := c.store.CallOff(ctx, n)
		if cerr == nil && len(final.Packs)+len(final.Forwards) == 0 {
			return c.done(ctx, n)
		}
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return fmt.Errorf("run %d of gc: %w", n, err)
	}
	if err := c.await(ctx); err != nil {
		return err
	}
	v, err := c.list(ctx)
	if err != nil {
		return err
	}
	// Only while it is not done is the inventory free of what collectors of the
	// next generation store: another one may have finished this one meanwhile.
	if done, err := c.isDone(ctx, n); done || err != nil {
		return err
	}
	by, err := chunkstore.ParseSessionID(list.Collector)
	if err != nil {
		return fmt.Errorf("run %d of gc: %w: %v", n, pack.ErrCorrupt, err)
	}
	final, err := c.store.ReadFinal(ctx, n)
	own := errors.Is(err, backend.ErrNotExist)
	if own {
		final, own, err = c.decide(ctx, n, list, by, v, m)
	}
	if err == nil && !own {
		err = c.agree(ctx, list, final, by)
		if errors.Is(err, ErrForeign) {
			// Once it is done the next generation moves what this one copied.
			if done, derr := c.isDone(ctx, n); done || derr != nil {
				return derr
			}
		}
	}
	if err != nil {
		return fmt.Errorf("run %d of gc: %w", n, err)
	}
	if err := c.remove(ctx, n, list, final, v); err != nil {
		return err
	}
	return c.done(ctx, n)
}

// isDone says whether a generation was finished, by whomever.
func (c *collector) isDone(ctx context.Context, n int) (bool, error) {
	gens, err := c.store.Generations(ctx)
	i := slices.IndexFunc(gens, func(g chunkstore.Generation) bool { return g.N == n })
	return i >= 0 && gens[i].Done, err
}

func (c *collector) done(ctx context.Context, n int) error {
	err := c.store.PutRecord(ctx, chunkstore.GenerationName(n, "done"), chunkstore.RecordDone, nil)
	if errors.Is(err, backend.ErrExist) {
		err = nil
	}
	return err
}

// ErrForeign: a list of what to remove names what a point needs. No cairn makes
// such a list: an engine forgot something, or somebody forged it.
var ErrForeign = errors.New("a list of gc names what a restore point needs")

// agree holds what another one decided against what this collector marks now,
// behind that: by the protocol nothing of it can be needed any more.
func (c *collector) agree(ctx context.Context, list *chunkstore.Condemned, final *chunkstore.Final, by chunk.SessionID) error {
	v, err := c.list(ctx)
	if err != nil {
		return err
	}
	rewritten, err := parse(list.Rewritten)
	if err != nil {
		return err
	}
	packs, forwards, err := parseFinal(final)
	if err != nil {
		return err
	}
	c.goes = map[chunk.PackRef]bool{}
	for _, ref := range forwards {
		c.goes[ref] = true
	}
	m, err := c.mark(ctx, v, rewritten...)
	c.goes = nil
	if err != nil {
		return err
	}
	for _, ref := range packs {
		if !m.need.any(ref) {
			continue
		}
		ok := slices.Contains(rewritten, ref)
		if ok {
			if ok, err = c.covered(ctx, ref, by, m); err != nil {
				return err
			}
		}
		if !ok {
			return fmt.Errorf("%w: %s: nothing more is removed, and no gc runs until somebody has looked", ErrForeign, ref)
		}
	}
	for _, ref := range forwards {
		if m.need.any(ref) {
			return fmt.Errorf("%w: the forwards of %s: nothing more is removed, and no gc runs until somebody has looked", ErrForeign, ref)
		}
	}
	return nil
}

// decide marks again, behind the wait, and publishes what is removed. What was
// marked before it condemned is not traced a second time. own is false when
// another one was faster: then it is that one's.
func (c *collector) decide(ctx context.Context, n int, list *chunkstore.Condemned, by chunk.SessionID, v *chunkstore.Inventory, m *marks) (_ *chunkstore.Final, own bool, _ error) {
	rewritten, err := parse(list.Rewritten)
	if err != nil {
		return nil, false, err
	}
	if m == nil {
		m, err = c.mark(ctx, v, rewritten...)
	} else {
		// Packs are numbered as they were. One of them that is gone was removed
		// by another collector, which published what it decided: this one cannot.
		now := *v
		now.Packs = m.need.packs
		m.need.keepExact(rewritten)
		err = c.extend(ctx, &now, m)
	}
	if err != nil {
		return nil, false, err
	}
	var final chunkstore.Final
	dead, err := parse(list.Packs)
	if err != nil {
		return nil, false, err
	}
	for _, ref := range dead {
		if !m.need.any(ref) {
			final.Packs = append(final.Packs, chunkstore.PackText(ref))
		} else {
			c.result.Rescued++
		}
	}
	for _, ref := range rewritten {
		ok, err := c.covered(ctx, ref, by, m)
		if err != nil {
			return nil, false, err
		}
		if ok {
			final.Packs = append(final.Packs, chunkstore.PackText(ref))
		} else {
			c.result.Rescued++
		}
	}
	gone, err := parse(list.Forwards)
	if err != nil {
		return nil, false, err
	}
	for _, ref := range gone {
		if !m.need.any(ref) {
			final.Forwards = append(final.Forwards, chunkstore.PackText(ref))
		}
	}
	body, err := json.Marshal(final)
	if err != nil {
		return nil, false, err
	}
	err = c.store.PutRecord(ctx, chunkstore.GenerationName(n, "final"), chunkstore.RecordFinal, body)
	if err != nil && !errors.Is(err, backend.ErrExist) {
		return nil, false, err
	}
	own = err == nil
	winner, err := c.store.ReadFinal(ctx, n)
	return winner, own, err
}

// covered says whether all that is needed of a rewritten pack was copied.
func (c *collector) covered(ctx context.Context, ref chunk.PackRef, by chunk.SessionID, m *marks) (bool, error) {
	live, known := m.need.of(ref)
	if !known {
		return false, nil
	}
	ways, err := c.store.Forwards(ctx, ref)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(ways, func(f *chunkstore.Forward) bool { return f.By == by })
	if i < 0 {
		return false, nil
	}
	if live == nil {
		return true, nil
	}
	there := map[chunk.PackRef]bool{}
	ok := true
	live.each(func(first, count int) bool {
		for count > 0 && ok {
			to, _, k, found := ways[i].Find(first, count)
			if ok = found; !ok {
				return false
			}
			if _, known := there[to]; !known {
				there[to], err = c.store.HasPack(ctx, to)
			}
			if ok = there[to] && err == nil; !ok {
				return false
			}
			first, count = first+k, count-k
		}
		return true
	})
	return ok, err
}
