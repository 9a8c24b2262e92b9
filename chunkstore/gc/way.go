package gc

import (
	"context"
	"fmt"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
)

// way is where consecutive chunks of a pack that is gone lie: n of them from at
// on. If that pack is gone, too, a way leads on from there.
type way struct {
	to    chunk.PackRef
	at, n int
	gone  bool
}

type waypoint struct {
	ref chunk.PackRef
	n   int
}

// maxHops bounds how often something may have moved between two folds.
const maxHops = 64

// way finds where chunk first of a pack that is gone lies, and how many of count
// lie behind it. As readers do it tries every forward: best is a pack that is
// there, then one whose forwards stay, and only then one whose forwards the
// generation that is not done removes.
func (c *collector) way(ctx context.Context, v *chunkstore.Inventory, m *marks, ref chunk.PackRef, first, count, hops int) (way, error) {
	missing := fmt.Errorf("%s, chunk %d: %w: a restore point needs it: nothing is removed; see cairn check", ref, first, backend.ErrNotExist)
	if m.ends[waypoint{ref, first}] {
		return way{}, missing
	}
	if hops > maxHops {
		return way{}, fmt.Errorf("%s: forwards lead around in a circle", ref)
	}
	ways, err := c.forwards(ctx, v, m, ref)
	if err != nil {
		return way{}, err
	}
	for _, goes := range []bool{false, true} {
		var gone []way
		for _, f := range ways {
			to, at, n, ok := f.Find(first, count)
			switch {
			case !ok || c.goes[to] != goes:
			case v.Packs.Has(to):
				return way{to, at, n, false}, nil
			default:
				gone = append(gone, way{to, at, n, true})
			}
		}
		m.ends[waypoint{ref, first}] = true // for those that lead back to it
		for _, w := range gone {
			on, err := c.way(ctx, v, m, w.to, w.at, w.n, hops+1)
			if ctx.Err() != nil {
				return way{}, ctx.Err()
			}
			if err == nil {
				delete(m.ends, waypoint{ref, first})
				w.n = on.n
				return w, nil
			}
		}
		delete(m.ends, waypoint{ref, first})
	}
	m.ends[waypoint{ref, first}] = true
	return way{}, missing
}

// forwards gives those of a pack that is gone. From then on it is known which of
// the packs that they lead to are there.
func (c *collector) forwards(ctx context.Context, v *chunkstore.Inventory, m *marks, ref chunk.PackRef) ([]*chunkstore.Forward, error) {
	ways, ok := m.ways[ref]
	if ok {
		return ways, nil
	}
	ways, err := c.store.Forwards(ctx, ref)
	if err != nil {
		return nil, err
	}
	for _, f := range ways {
		for _, r := range f.Runs {
			if _, err := c.there(ctx, v, m, r.To); err != nil {
				return nil, err
			}
		}
	}
	m.ways[ref] = ways
	return ways, nil
}
