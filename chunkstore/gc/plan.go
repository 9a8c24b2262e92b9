package gc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// plan is what a generation means to remove.
type plan struct {
	marks     *marks
	dead      []chunk.PackRef // nobody needs anything of them
	sparse    map[pack.Kind][]chunk.PackRef
	rewritten []chunk.PackRef
	forwards  []chunk.PackRef // packs that are gone, whose forwards nobody needs
	cut       bool            // there is more
}

func (p *plan) empty() bool {
	return len(p.dead)+len(p.forwards)+len(p.sparse[pack.KindData])+len(p.sparse[pack.KindMap]) == 0
}

// choose marks, and says what can go.
func (c *collector) choose(ctx context.Context, v *chunkstore.Inventory) (*plan, error) {
	m, err := c.mark(ctx, v)
	if err != nil {
		return nil, err
	}
	p := &plan{marks: m, sparse: map[pack.Kind][]chunk.PackRef{}}
	c.result.Points, c.result.Packs, c.result.BytesStored = m.points, v.Packs.Len(), 0
	c.result.PacksKept, c.result.BytesKept = 0, 0
	failed := map[chunk.SessionID]bool{}
	for i, pk := range v.Packs.All() {
		c.result.BytesStored += pk.Size
		switch {
		case c.inUse(v, pk.Ref.Session), m.need.anyOf(i):
		case len(p.dead) >= maxPerGeneration:
			p.cut = true
		default:
			kept, known := failed[pk.Ref.Session]
			if !known {
				if kept, err = c.keepsFailed(ctx, v, pk.Ref.Session); err != nil {
					return nil, err
				}
				failed[pk.Ref.Session] = kept
			}
			if kept {
				c.result.PacksKept++
				c.result.BytesKept += pk.Size
				continue
			}
			p.dead = append(p.dead, pk.Ref)
			if c.opts.DryRun {
				c.result.PacksRemoved++
				c.result.BytesRemoved += pk.Size
			}
		}
	}
	// What is left of a pack that a point needs is no business of gc's: its chunks
	// moved before it was removed, or else marking has failed.
	for _, pk := range v.Partial.All() {
		switch {
		case c.inUse(v, pk.Ref.Session), m.need.any(pk.Ref):
		case len(p.dead) >= maxPerGeneration:
			p.cut = true
		default:
			p.dead = append(p.dead, pk.Ref)
			if c.opts.DryRun {
				c.result.RestsRemoved++
			}
		}
	}
	ways := maps.Clone(v.Forwards)
	maps.Copy(ways, v.Refills)
	for _, ref := range sortedRefs(ways) {
		if !v.Packs.Has(ref) && !m.need.any(ref) && len(p.forwards) < maxPerGeneration {
			p.forwards = append(p.forwards, ref)
		}
	}
	if c.opts.RewriteBelow > 0 {
		err = c.findSparse(ctx, v, m, p)
	}
	return p, err
}

// keepsFailed says whether a session failed so short a time ago that what it
// stored waits for the next one.
func (c *collector) keepsFailed(ctx context.Context, v *chunkstore.Inventory, id chunk.SessionID) (bool, error) {
	at, decided := v.Decided[id]
	if c.opts.KeepFailed <= 0 || !decided || c.now.IsZero() || c.now.Add(time.Since(c.began)).Sub(at) > c.opts.KeepFailed {
		return false, nil
	}
	return c.store.IsAborted(ctx, id)
}

// inUse says that a session's packs are left alone: it may still commit, or is
// another collector's.
func (c *collector) inUse(v *chunkstore.Inventory, id chunk.SessionID) bool {
	_, collecting := v.Collectors[id]
	return collecting || v.Undecided(id)
}

// findSparse looks which packs are nearly empty. Those of a session whose commit
// is kept are not looked at: it stored nothing that its own maps do not name.
// So only what lost its own point costs a read of its footer.
func (c *collector) findSparse(ctx context.Context, v *chunkstore.Inventory, m *marks, p *plan) error {
	look := func(i int, id chunk.SessionID) bool {
		return m.need.anyOf(i) && !m.kept[id] && !c.inUse(v, id)
	}
	total := int64(0)
	for i, pk := range v.Packs.All() {
		if look(i, pk.Ref.Session) {
			total++
		}
	}
	add, end := c.opts.Progress("looking for packs that are nearly empty", total)
	defer end()
	for i, pk := range v.Packs.All() {
		ref := pk.Ref
		if !look(i, ref.Session) {
			continue
		}
		add(1)
		live, known := m.need.of(ref)
		if !known {
			continue
		}
		f, err := c.store.ReadFooter(ctx, ref)
		if errors.Is(err, backend.ErrNotExist) || pack.IsDamage(err) {
			continue // gone meanwhile; or check's to name
		}
		if err != nil {
			return err
		}
		if live.len() >= f.Count || !c.sparse(f, live, pk.Size) {
			continue
		}
		if f.Kind == pack.KindData && !c.store.Keys().CanRead() {
			c.result.Sparse++
			continue
		}
		if len(p.sparse[f.Kind]) < maxPerGeneration {
			p.sparse[f.Kind] = append(p.sparse[f.Kind], ref)
		}
		if c.opts.DryRun {
			c.result.PacksRemoved++
			c.result.PacksCopied++
			c.result.BytesRemoved += pk.Size
		}
	}
	return nil
}

// sparse says whether so little of a pack is live that it is worth copying.
func (c *collector) sparse(f *pack.Footer, live *set, size int64) bool {
	var bytes float64
	for _, fr := range f.Frames {
		n := 0
		for i := range int(fr.Count) {
			if live.has(int(fr.First) + i) {
				n++
			}
		}
		bytes += float64(fr.Stored) * float64(n) / float64(fr.Count)
	}
	return bytes < c.opts.RewriteBelow*float64(size)
}

// copySparse copies what is left of nearly empty packs.
func (c *collector) copySparse(ctx context.Context, p *plan) ([]chunk.PackRef, error) {
	var all []chunk.PackRef
	for _, kind := range []pack.Kind{pack.KindData, pack.KindMap} {
		if len(p.sparse[kind]) == 0 {
			continue
		}
		done, err := c.rewrite(ctx, kind, p.sparse[kind], p.marks)
		if err != nil {
			return nil, err
		}
		all = append(all, done...)
	}
	return all, nil
}

func texts(refs []chunk.PackRef) []string {
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = chunkstore.PackText(r)
	}
	return out
}

// parseFinal gives the packs and the forwards that a generation removes.
func parseFinal(f *chunkstore.Final) (packs, forwards []chunk.PackRef, err error) {
	if packs, err = parse(f.Packs); err == nil {
		forwards, err = parse(f.Forwards)
	}
	return packs, forwards, err
}

func parse(texts []string) ([]chunk.PackRef, error) {
	out := make([]chunk.PackRef, len(texts))
	for i, s := range texts {
		var err error
		if out[i], err = chunkstore.ParsePackText(s); err != nil {
			return nil, fmt.Errorf("%w: a list of gc: %v", pack.ErrCorrupt, err)
		}
	}
	return out, nil
}
