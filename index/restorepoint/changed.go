package restorepoint

import (
	"context"

	"cairn/chunkstore/chunk"
)

// Changed calls fn for the ranges [start, end) of the disk, in bytes,
// ascending, whose chunks are not the same stored chunks in both maps: what
// is outside of them is equal. What both maps share is skipped without being
// read. old may be of a disk of another size, and nil is an empty one.
func (m *Map) Changed(ctx context.Context, old *Map, fn func(start, end int64) error) error {
	if old == nil {
		var err error
		if old, err = OpenMap(m.src, MapRoot{}, 0); err != nil {
			return err
		}
	}
	size := max(m.size, old.size)
	c := changes{fn: fn, limit: size}
	if m.size != old.size { // only one of the disks is there: given as a whole
		c.limit = min(m.size, old.size) &^ (chunk.Size - 1)
	}
	for at := 0; int64(at)*middleSize < size; at++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		a, hasA := m.nodes[at]
		b, hasB := old.nodes[at]
		if hasA == hasB && a == b {
			continue
		}
		if err := c.middle(ctx, m, old, at); err != nil {
			return err
		}
	}
	limit := c.limit
	c.limit = size
	c.add(limit, size)
	return c.flush()
}

// changes joins ranges that follow each other.
type changes struct {
	fn         func(start, end int64) error
	limit      int64 // what lies behind it is left out
	start, end int64
	err        error
}

func (c *changes) add(start, end int64) {
	if end = min(end, c.limit); start >= end {
		return
	}
	if start <= c.end && c.end > c.start {
		c.end = max(c.end, end)
		return
	}
	if err := c.flush(); c.err == nil {
		c.err = err
	}
	c.start, c.end = start, end
}

func (c *changes) flush() error {
	if c.err == nil && c.end > c.start {
		c.err = c.fn(c.start, c.end)
	}
	c.start, c.end = 0, 0
	return c.err
}

func (c *changes) middle(ctx context.Context, m, old *Map, at int) error {
	a, err := m.middle(ctx, at)
	if err != nil {
		return err
	}
	b, err := old.middle(ctx, at)
	if err != nil {
		return err
	}
	for i := range middleLeaves {
		refA, hasA := a.leaves[i]
		refB, hasB := b.leaves[i]
		if hasA == hasB && refA == refB {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n := int64(at)*middleLeaves + int64(i)
		la, err := m.leaf(ctx, n)
		if err != nil {
			return err
		}
		lb, err := old.leaf(ctx, n)
		if err != nil {
			return err
		}
		c.leaf(n*LeafSize, la, lb)
		if c.err != nil {
			return c.err
		}
	}
	return nil
}

// leaf compares the runs of two leaves that begin at base on the disk.
func (c *changes) leaf(base int64, a, b *leaf) {
	for at, i, j := 0, 0, 0; at < leafChunks; {
		ra, endA := a.segment(at, &i)
		rb, endB := b.segment(at, &j)
		end := min(endA, endB)
		same := ra == nil && rb == nil
		if ra != nil && rb != nil {
			same = a.packs[ra.pack] == b.packs[rb.pack] && int(ra.chunk)+at-int(ra.first) == int(rb.chunk)+at-int(rb.first)
		}
		if !same {
			c.add(base+int64(at)*chunk.Size, base+int64(end)*chunk.Size)
		}
		at = end
	}
}

// segment gives the run that chunk at lies in, nil in a hole, and where the
// run or the hole ends. i is the caller's place in the runs.
func (l *leaf) segment(at int, i *int) (*run, int) {
	for *i < len(l.runs) && int(l.runs[*i].first)+int(l.runs[*i].count) <= at {
		*i++
	}
	if *i == len(l.runs) {
		return nil, leafChunks
	}
	r := &l.runs[*i]
	if int(r.first) > at {
		return nil, int(r.first)
	}
	return r, int(r.first) + int(r.count)
}
