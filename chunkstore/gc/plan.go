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
	c.result.Points, c.result.Packs, c.result.BytesStored = m.points, len(v.Packs), 0
	c.result.PacksKept, c.result.BytesKept = 0, 0
	var look []chunk.PackRef
	failed := map[chunk.SessionID]bool{}
	for _, ref := range sortedRefs(v.Packs) {
		c.result.BytesStored += v.Packs[ref]
		_, collecting := v.Collectors[ref.Session]
		switch {
		case v.Undecided(ref.Session), collecting:
		case m.live[ref] != nil:
			look = append(look, ref)
		case len(p.dead) >= maxPerGeneration:
			p.cut = true
		default:
			kept, known := failed[ref.Session]
			if !known {
				if kept, err = c.keepsFailed(ctx, v, ref.Session); err != nil {
					return nil, err
				}
				failed[ref.Session] = kept
			}
			if kept {
				c.result.PacksKept++
				c.result.BytesKept += v.Packs[ref]
				continue
			}
			p.dead = append(p.dead, ref)
			if c.opts.DryRun {
				c.result.PacksRemoved++
				c.result.BytesRemoved += v.Packs[ref]
			}
		}
	}
	ways := maps.Clone(v.Forwards)
	maps.Copy(ways, v.Refills)
	for _, ref := range sortedRefs(ways) {
		if _, there := v.Packs[ref]; !there && m.live[ref] == nil && len(p.forwards) < maxPerGeneration {
			p.forwards = append(p.forwards, ref)
		}
	}
	if c.opts.RewriteBelow > 0 {
		err = c.findSparse(ctx, v, m, look, p)
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

// findSparse looks which packs are nearly empty.
func (c *collector) findSparse(ctx context.Context, v *chunkstore.Inventory, m *marks, refs []chunk.PackRef, p *plan) error {
	add, end := c.opts.Progress("looking for packs that are nearly empty", int64(len(refs)))
	defer end()
	for _, ref := range refs {
		add(1)
		f, err := c.store.ReadFooter(ctx, ref)
		if errors.Is(err, backend.ErrNotExist) || pack.IsDamage(err) {
			continue // gone meanwhile; or check's to name
		}
		if err != nil {
			return err
		}
		if n := m.live[ref].len(); n >= f.Count || !c.sparse(f, m.live[ref], v.Packs[ref]) {
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
			c.result.BytesRemoved += v.Packs[ref]
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
