package gc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
)

// quiet is how long a session gave no sign of life, by the place's clock.
func (c *collector) quiet(v *chunkstore.Inventory, id chunk.SessionID) time.Duration {
	if c.now.IsZero() {
		return 0
	}
	return c.now.Add(time.Since(c.began)).Sub(v.Intents[id])
}

// end decides against a session that gave no sign of life.
func (c *collector) end(ctx context.Context, id chunk.SessionID) error {
	dropped, err := c.store.IsDropped(ctx, id)
	if err != nil {
		return err
	}
	if dropped { // its commit was removed, and then the collector died
		return c.store.RemoveIntent(ctx, id)
	}
	if c.opts.Committed != nil && c.opts.Committed(id) {
		return fmt.Errorf("%w: points/%s: nothing is removed: bring it back with cairn check --repair --from MIRROR", ErrLost, id)
	}
	if err := c.store.Abort(ctx, id, "no sign of life; decided by "+c.opts.About); err != nil {
		return err
	}
	c.result.Fenced++
	return nil
}

func (c *collector) isDead(v *chunkstore.Inventory, id chunk.SessionID) bool {
	if c.opts.dead != nil {
		return c.opts.dead(id, c.quiet(v, id))
	}
	return c.quiet(v, id) > c.opts.FenceAfter
}

// fenceDead decides against sessions that died, and removes what dead
// collectors left.
func (c *collector) fenceDead(ctx context.Context, v *chunkstore.Inventory) (any bool, err error) {
	for _, id := range undecided(v) {
		if c.isDead(v, id) {
			if err := c.end(ctx, id); err != nil {
				return any, err
			}
			any = true
		}
	}
	for _, id := range sortedIDs(v.Collectors) {
		if id != c.id && !c.now.IsZero() && c.now.Sub(v.Collectors[id]) > c.opts.FenceAfter {
			if err := c.store.RemoveCollector(ctx, id); err != nil {
				return any, err
			}
			any = true
		}
	}
	return any, nil
}

func undecided(v *chunkstore.Inventory) []chunk.SessionID {
	return slices.DeleteFunc(sortedIDs(v.Intents), func(id chunk.SessionID) bool { return !v.Undecided(id) })
}

// sortedIDs gives the keys of a map in their order: which call comes next must
// not hang on chance, or a schedule of the simulation does not replay.
func sortedIDs[V any](set map[chunk.SessionID]V) []chunk.SessionID {
	return slices.SortedFunc(maps.Keys(set), func(a, b chunk.SessionID) int { return slices.Compare(a[:], b[:]) })
}

// await waits until the sessions that were undecided when it is called are
// decided. Those that begin later saw what is condemned.
func (c *collector) await(ctx context.Context) error {
	var waiting map[chunk.SessionID]bool
	// Mostly nobody is. Then the packs, as signs of life, need not be listed.
	if any, err := c.store.AnyUndecided(ctx); err != nil || !any {
		return err
	}
	for told, start := false, time.Now(); ; told = true {
		v, err := c.list(ctx)
		if err != nil {
			return err
		}
		if waiting == nil {
			waiting = map[chunk.SessionID]bool{}
			for _, id := range undecided(v) {
				waiting[id] = true
			}
		}
		left := 0
		for _, id := range undecided(v) {
			if !waiting[id] {
				continue
			}
			if !c.isDead(v, id) {
				left++
				continue
			}
			if err := c.end(ctx, id); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if !told && c.opts.Waiting != nil {
			c.opts.Waiting(left)
		}
		if !c.wait(ctx, start) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: %d, after waiting for %v: what was begun goes on with the next run", ErrRunning, left, c.opts.Wait)
		}
	}
}

func (c *collector) wait(ctx context.Context, start time.Time) bool {
	if c.opts.sleep != nil {
		return c.opts.sleep(ctx)
	}
	if time.Since(start) > c.opts.Wait {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(poll):
		return true
	}
}
