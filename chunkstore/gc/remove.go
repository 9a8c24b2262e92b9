package gc

import (
	"context"
	"errors"
	"fmt"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
)

// remove removes what was decided.
func (c *collector) remove(ctx context.Context, n int, list *chunkstore.Condemned, final *chunkstore.Final, v *chunkstore.Inventory) error {
	// An engine that forgot one of these would let others think that nothing
	// was decided: look once more before the first removal.
	for _, part := range []struct {
		name string
		kind chunkstore.RecordKind
	}{{"condemned", chunkstore.RecordCondemned}, {"final", chunkstore.RecordFinal}} {
		if _, err := c.store.GetRecord(ctx, chunkstore.GenerationName(n, part.name), part.kind); err != nil {
			return fmt.Errorf("run %d of gc, read back: %w", n, err)
		}
	}
	if err := c.store.SyncDrops(ctx); err != nil {
		return err
	}
	packs, forwards, err := parseFinal(final)
	if err != nil {
		return err
	}
	add, end := c.opts.Progress("removing what nobody needs", int64(len(packs)))
	defer end()
	copied := map[string]bool{}
	for _, s := range list.Rewritten {
		copied[s] = true
	}
	removed := map[chunk.PackRef]bool{}
	for i, ref := range packs {
		if err := c.store.RemovePack(ctx, ref); err != nil {
			return fmt.Errorf("remove %s: %w", ref, err)
		}
		removed[ref] = true
		if size, there := v.Packs.Size(ref); there {
			c.result.PacksRemoved++
			c.result.BytesRemoved += size
			if copied[final.Packs[i]] {
				c.result.PacksCopied++
			}
		} else if v.Partial.Has(ref) {
			c.result.RestsRemoved++
		}
		add(1)
	}
	for _, ref := range forwards {
		for _, by := range v.Forwards[ref] {
			if err := c.store.RemoveForward(ctx, ref, by); err != nil {
				return fmt.Errorf("remove the forward of %s: %w", ref, err)
			}
		}
	}
	for _, ref := range forwards {
		for _, by := range v.Refills[ref] {
			if err := c.store.RemoveRefill(ctx, ref, by); err != nil {
				return fmt.Errorf("remove the forward of %s: %w", ref, err)
			}
		}
	}
	// Forwards of packs that stay: of collectors that lost, or of packs that
	// were rescued. No other generation can be begun before this one is done.
	for _, ref := range sortedRefs(v.Forwards) {
		if !v.Packs.Has(ref) || removed[ref] {
			continue
		}
		for _, by := range v.Forwards[ref] {
			if err := c.store.RemoveForward(ctx, ref, by); err != nil {
				return fmt.Errorf("remove the forward of %s: %w", ref, err)
			}
		}
	}
	return nil
}

// tidy removes what needs no generation: forgotten points' manifests and
// catalogues, intents of sessions of which nothing is kept, signs of life, what
// the place noted of packs that are gone.
func (c *collector) tidy(ctx context.Context, v *chunkstore.Inventory, m *marks) error {
	// What is removed here is not looked for again, since its drop is there: that
	// must be durable.
	if len(m.rubbish) > 0 {
		if err := c.store.SyncDrops(ctx); err != nil {
			return err
		}
	}
	// Intents first: one that is left alone would look like a session that
	// nobody has decided, and whose commit is lost.
	for _, id := range sortedIDs(v.Intents) {
		if !v.Undecided(id) && !m.kept[id] {
			if err := c.store.RemoveIntent(ctx, id); err != nil {
				return err
			}
		}
	}
	for _, id := range m.rubbish {
		if err := c.store.RemoveCommit(ctx, id); err != nil {
			return err
		}
		c.result.PointsRemoved++
	}
	for _, name := range v.Beats {
		if err := c.store.RemoveBeat(ctx, v, name); err != nil {
			return err
		}
	}
	if err := c.store.RemoveCopies(ctx); err != nil {
		return err
	}
	return c.store.Tidy(ctx, v)
}

// fold gives packs that are gone, and whose chunks moved more than once, a
// forward of one step. The older ones stay while anybody may need the pack: a
// session that runs may want more of it than the points of now.
func (c *collector) fold(ctx context.Context, v *chunkstore.Inventory, m *marks) error {
	for _, ref := range sortedRefs(m.far) {
		ways := m.ways[ref]
		f := &chunkstore.Forward{Kind: ways[0].Kind, Count: ways[0].Count}
		var err error
		m.need.unlisted[ref].each(func(first, count int) bool {
			for count > 0 && err == nil {
				var w way
				w, err = c.way(ctx, v, m, ref, first, count, 0)
				for err == nil && w.gone {
					w, err = c.way(ctx, v, m, w.to, w.at, w.n, 0)
				}
				f.Runs = append(f.Runs, chunkstore.ForwardRun{First: first, Count: w.n, To: w.to, At: w.at})
				first, count = first+w.n, count-w.n
			}
			return err == nil
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			continue // it can be read by more steps
		}
		if err := c.store.PutForward(ctx, ref, c.id, f); err != nil && !errors.Is(err, backend.ErrExist) {
			return err
		}
	}
	return nil
}
