package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
)

// marks is what all points need.
type marks struct {
	need    needs
	entered map[chunk.PackRef]*set
	// rubbish are decisions that nobody needs any more.
	rubbish []chunk.SessionID
	// ways are the forwards that lead to what is live, of packs that are gone.
	ways map[chunk.PackRef][]*chunkstore.Forward
	ends map[waypoint]bool // where no way leads on
	// far are packs that are gone and whose chunks moved more than once.
	far    map[chunk.PackRef]bool
	points int
	// kept are sessions whose commits are needed.
	kept map[chunk.SessionID]bool
}

// Enter implements chunk.Tracer.
func (m *marks) Enter(ref chunk.PackRef, record int) bool {
	s := m.entered[ref]
	if s == nil {
		s = &set{}
		m.entered[ref] = s
	}
	return s.add(record, 1)
}

// Record implements chunk.Tracer.
func (m *marks) Record(ref chunk.PackRef, n int) { m.need.add(ref, n, 1) }

// Chunks implements chunk.Tracer.
func (m *marks) Chunks(ref chunk.PackRef, first, count int) { m.need.add(ref, first, count) }

// mark traces all that points need. Of packs that are in exact it is known to
// the chunk, however much memory is short.
func (c *collector) mark(ctx context.Context, v *chunkstore.Inventory, exact ...chunk.PackRef) (*marks, error) {
	m := &marks{need: newNeeds(v.Packs, c.opts.sets, c.id, exact), entered: map[chunk.PackRef]*set{},
		ways: map[chunk.PackRef][]*chunkstore.Forward{}, ends: map[waypoint]bool{}, far: map[chunk.PackRef]bool{}, kept: map[chunk.SessionID]bool{}}
	return m, c.extend(ctx, v, m)
}

// extend traces what was committed since, too. A commit never changes, and what
// was dropped since stays marked, which keeps more and never less: so marks of
// before need only that to be marks of now.
func (c *collector) extend(ctx context.Context, v *chunkstore.Inventory, m *marks) error {
	add, end := c.opts.Progress("looking at what points need", int64(len(v.Points)))
	defer end()
	rubbish, err := c.store.Commits(ctx, v, m.kept, func(p chunkstore.Commit) error {
		m.kept[p.Session] = true
		if err := c.opts.Trace(ctx, p, m); err != nil {
			if ctx.Err() != nil {
				return err
			}
			if gone, derr := c.store.IsDropped(ctx, p.ID); gone || derr != nil {
				// Another collector was at it, or it is damaged. What was marked stays
				// marked; but a node that was entered, and not read to its end, must be
				// read for whoever needs it, too.
				m.entered = map[chunk.PackRef]*set{}
				return derr
			}
			return fmt.Errorf("restore point %s: %w: nothing is removed while a point cannot be read whole: see cairn check, and repair it or forget it", p.ID, err)
		}
		if !p.Catalogue {
			m.points++
			add(1)
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if m.rubbish == nil { // else that of the first listing, which the rest of tidy goes by
		m.rubbish = append([]chunk.SessionID{}, rubbish...)
	}
	return c.follow(ctx, v, m)
}

// follow marks where the live chunks of packs that are gone lie now.
func (c *collector) follow(ctx context.Context, v *chunkstore.Inventory, m *marks) error {
	type step struct {
		ref  chunk.PackRef
		hops int
	}
	var next []step
	for _, ref := range sortedRefs(m.need.unlisted) {
		there, err := c.there(ctx, v, m, ref)
		if err != nil {
			return err
		}
		if !there {
			next = append(next, step{ref, 0})
		}
	}
	for _, ref := range sortedRefs(v.Refills) {
		i, listed := v.Packs.Find(ref)
		if !listed || !m.need.anyOf(i) {
			continue
		}
		refills, err := c.refills(ctx, v, ref)
		if err != nil {
			return err
		}
		for _, r := range refills {
			m.need.add(r.To, r.At, r.Count)
			there, err := c.there(ctx, v, m, r.To)
			if err != nil {
				return err
			}
			if !there {
				next = append(next, step{r.To, 0})
			}
		}
	}
	for len(next) > 0 {
		at := next[0]
		next = next[1:]
		var err error
		m.need.unlisted[at.ref].each(func(first, count int) bool {
			for count > 0 && err == nil {
				var w way
				if w, err = c.way(ctx, v, m, at.ref, first, count, 0); err != nil {
					break
				}
				fresh := m.need.add(w.to, w.at, w.n)
				if w.gone {
					m.far[at.ref] = true
					if fresh {
						next = append(next, step{w.to, at.hops + 1})
					}
				}
				first, count = first+w.n, count-w.n
			}
			return err == nil
		})
		if err != nil {
			return err
		}
		if at.hops > maxHops {
			return fmt.Errorf("%s: forwards lead around in a circle", at.ref)
		}
	}
	return nil
}

// refills gives what a session stored in the place of a pack that was lost: of
// one that lies in shards too few may be left, and it is listed still.
func (c *collector) refills(ctx context.Context, v *chunkstore.Inventory, ref chunk.PackRef) (runs []chunkstore.ForwardRun, err error) {
	if len(v.Refills[ref]) == 0 {
		return nil, nil
	}
	ways, err := c.store.Forwards(ctx, ref)
	for _, f := range ways {
		if f.Lost {
			runs = append(runs, f.Runs...)
		}
	}
	return runs, err
}

// there says whether a pack is there. Packs are listed first of all, so that
// those of a point that was committed since are not in the inventory: they are
// added to it.
func (c *collector) there(ctx context.Context, v *chunkstore.Inventory, m *marks, ref chunk.PackRef) (bool, error) {
	if v.Packs.Has(ref) {
		return true, nil
	}
	size, err := c.store.PackSize(ctx, ref)
	if errors.Is(err, backend.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		v.Packs.Add(ref, size)
		m.need.listed(ref)
	}
	return err == nil, err
}

func compareRefs(a, b chunk.PackRef) int {
	if c := strings.Compare(string(a.Session[:]), string(b.Session[:])); c != 0 {
		return c
	}
	return strings.Compare(string(a.Hash[:]), string(b.Hash[:]))
}

func sortedRefs[V any](m map[chunk.PackRef]V) []chunk.PackRef {
	out := make([]chunk.PackRef, 0, len(m))
	for r := range m {
		out = append(out, r)
	}
	slices.SortFunc(out, compareRefs)
	return out
}
