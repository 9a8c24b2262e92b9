package restorepoint

import (
	"context"
	"fmt"

	"cairn/chunkstore/chunk"
)

// A Checker makes sure that all that points need is there. Nodes and packs
// that points share are looked at once. It is for one goroutine.
type Checker struct {
	src   Source
	count func(context.Context, chunk.PackRef) (int, error)

	packs  map[chunk.PackRef]packState
	leaves map[nodeRef]error
}

type packState struct {
	count int
	err   error
}

// NewChecker gives a Checker; count gives the number of chunks in a stored
// pack.
func NewChecker(src Source, count func(context.Context, chunk.PackRef) (int, error)) *Checker {
	return &Checker{src: src, count: count, packs: map[chunk.PackRef]packState{}, leaves: map[nodeRef]error{}}
}

// Damaged tells of a pack whose contents are known to be bad: whatever needs
// it is damaged.
func (c *Checker) Damaged(ref chunk.PackRef, err error) { c.packs[ref] = packState{err: err} }

// Disk checks one disk of a point: every node can be read, every pack is
// there and long enough. It gives what is wrong, at most limit errors.
func (c *Checker) Disk(ctx context.Context, d Disk, limit int) []error {
	m, err := OpenMap(c.src, d.MapRoot, d.Size)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for i := range m.nodes {
		n, err := m.middle(ctx, i)
		if err != nil {
			errs = append(errs, err)
		} else {
			for _, ref := range n.leaves {
				if err := c.leaf(ctx, ref); err != nil {
					errs = append(errs, err)
				}
			}
		}
		if len(errs) >= limit || ctx.Err() != nil {
			break
		}
	}
	return errs
}

func (c *Checker) leaf(ctx context.Context, ref nodeRef) error {
	err, seen := c.leaves[ref]
	if !seen {
		if err = c.readLeaf(ctx, ref); ctx.Err() == nil {
			c.leaves[ref] = err
		}
	}
	return err
}

func (c *Checker) readLeaf(ctx context.Context, ref nodeRef) error {
	if p, ok := c.packs[ref.pack]; ok && p.err != nil {
		return p.err
	}
	b, err := c.src.ReadRecord(ctx, ref.pack, ref.record)
	if err != nil {
		return err
	}
	l, err := decodeLeaf(b)
	if err != nil {
		return err
	}
	for _, r := range l.runs {
		p := c.pack(ctx, l.packs[r.pack])
		if p.err != nil {
			return p.err
		}
		if int(r.chunk)+int(r.count) > p.count {
			return fmt.Errorf("%w: %s has %d chunks, the map wants %d", ErrCorrupt, l.packs[r.pack], p.count, int(r.chunk)+int(r.count))
		}
	}
	return nil
}

func (c *Checker) pack(ctx context.Context, ref chunk.PackRef) packState {
	p, ok := c.packs[ref]
	if !ok {
		p.count, p.err = c.count(ctx, ref)
		if ctx.Err() == nil {
			c.packs[ref] = p
		}
	}
	return p
}
