package restorepoint

import (
	"context"
	"fmt"
	"math"
	"slices"

	"cairn/chunkstore/chunk"
)

// A Checker makes sure that all that points need is there, and finds who
// suffers from what is known to be damaged. Nodes and packs that points share
// are looked at once. It is for one goroutine.
type Checker struct {
	src   Source
	count func(context.Context, chunk.PackRef) (int, error)

	packs  map[chunk.PackRef]packState // that are damaged
	leaves map[nodeRef]*leafState      // with which something is wrong
	// Of a large repository nearly all is good: of that little is kept.
	counts map[chunk.SessionID]map[packKey]int32 // chunks in packs
	good   map[chunk.PackRef]visited             // nodes
}

// packKey is enough of a hash to know one pack of a session from another.
type packKey [16]byte

// visited is a bit for each record of a map pack.
type visited []uint64

func (v visited) has(n int) bool { return n/64 < len(v) && v[n/64]>>(n%64)&1 != 0 }

func (v visited) with(n int) visited {
	if need := n/64 + 1; need > len(v) {
		v = append(v, make(visited, need-len(v))...)
	}
	v[n/64] |= 1 << (n % 64)
	return v
}

type packState struct {
	count int
	whole bool     // nothing of it can be used
	bad   [][2]int // chunks: first, and the one behind the last
	err   error
}

// leafState is what is wrong below a leaf; offsets count from its start.
type leafState struct {
	lost []Lost
	uses []chunk.PackRef // damaged packs, also where no lost chunk is needed

	blind bool // the leaf itself cannot be read
}

// Lost is a range of a disk that cannot be had.
type Lost struct {
	Offset, Length int64         // bytes of the disk
	Pack           chunk.PackRef // what is damaged or missing: a data pack, or a map pack
	Err            error
}

// End is the byte behind the range.
func (l Lost) End() int64 { return l.Offset + l.Length }

// DiskState is what a check found of one disk.
type DiskState struct {
	Lost  []Lost // in the order of the disk; the first of them
	Bytes int64  // of all that are lost, as far as it was looked at
	More  int    // ranges that are not in Lost
	// Uses names the damaged packs that the disk's maps name, also those of
	// which it needs nothing that is lost.
	Uses []chunk.PackRef
	// Blind says that a node of the map cannot be read, so that nobody knows
	// which packs are needed below it.
	Blind bool
	// Err is of the map as a whole, or of ctx.
	Err error
}

// Good says that nothing is wrong.
func (d *DiskState) Good() bool { return d.Err == nil && d.Bytes == 0 && len(d.Lost) == 0 }

// NewChecker gives a Checker; count gives the number of chunks in a stored
// pack.
func NewChecker(src Source, count func(context.Context, chunk.PackRef) (int, error)) *Checker {
	return &Checker{src: src, count: count, packs: map[chunk.PackRef]packState{}, leaves: map[nodeRef]*leafState{},
		counts: map[chunk.SessionID]map[packKey]int32{}, good: map[chunk.PackRef]visited{}}
}

// Damaged tells of a pack whose contents are known to be bad, before any disk
// is looked at: all of it when whole is set, else these chunks (or records),
// each first and the one behind the last, in order.
func (c *Checker) Damaged(ref chunk.PackRef, whole bool, chunks [][2]int, err error) {
	c.packs[ref] = packState{whole: whole, bad: chunks, err: err}
}

// Disk checks one disk of a point: every node can be read, every pack is
// there and long enough, and no damaged chunk is needed. At most limit ranges
// are told apart.
func (c *Checker) Disk(ctx context.Context, d Disk, limit int) *DiskState {
	s := &DiskState{}
	m, err := OpenMap(c.src, d.MapRoot, d.Size)
	if err != nil {
		s.Err = err
		return s
	}
	for i := 0; int64(i)*middleSize < d.Size; i++ {
		ref, ok := m.nodes[i]
		if !ok {
			continue
		}
		base := int64(i) * middleSize
		s.use(c.packs[ref.pack], ref.pack)
		if c.good[ref.pack].has(ref.record) { // and all below it: points share most of their maps
			continue
		}
		n, err := c.middle(ctx, m, i, ref)
		if ctx.Err() != nil {
			s.Err = ctx.Err()
			return s
		}
		if err != nil {
			s.Blind = true
			s.add(Lost{base, min(middleSize, d.Size-base), ref.pack, err}, limit)
			continue
		}
		good := c.packs[ref.pack].err == nil
		for at := range middleLeaves {
			ref, ok := n.leaves[at]
			if !ok {
				continue
			}
			l := c.leaf(ctx, ref)
			if ctx.Err() != nil {
				s.Err = ctx.Err()
				return s
			}
			if l == nil {
				continue
			}
			good = false
			s.Blind = s.Blind || l.blind
			for _, lost := range l.lost {
				lost.Offset += base + int64(at)*LeafSize
				if lost.Length = min(lost.Length, d.Size-lost.Offset); lost.Length > 0 {
					s.add(lost, limit)
				}
			}
			for _, p := range l.uses {
				s.use(c.packs[p], p)
			}
		}
		if good {
			c.good[ref.pack] = c.good[ref.pack].with(ref.record)
		}
	}
	return s
}

// add joins a range with the last one when they touch.
func (d *DiskState) add(l Lost, limit int) {
	d.Bytes += l.Length
	if n := len(d.Lost); n > 0 && d.More == 0 && d.Lost[n-1].Pack == l.Pack && d.Lost[n-1].End() == l.Offset {
		d.Lost[n-1].Length += l.Length
		return
	}
	if len(d.Lost) < limit {
		d.Lost = append(d.Lost, l)
	} else {
		d.More++
	}
}

func (d *DiskState) use(p packState, ref chunk.PackRef) {
	if p.err != nil && !slices.Contains(d.Uses, ref) {
		d.Uses = append(d.Uses, ref)
	}
}

// middle reads a middle node, unless its record is known to be bad.
func (c *Checker) middle(ctx context.Context, m *Map, i int, ref nodeRef) (*middle, error) {
	if p := c.packs[ref.pack]; p.hits(ref.record, 1) {
		return nil, p.err
	}
	return m.middle(ctx, i)
}

func (c *Checker) leaf(ctx context.Context, ref nodeRef) *leafState {
	seen := c.good[ref.pack]
	if seen.has(ref.record) {
		return nil
	}
	l, bad := c.leaves[ref]
	if bad {
		return l
	}
	l = c.readLeaf(ctx, ref)
	switch {
	case ctx.Err() != nil:
	case l == nil:
		c.good[ref.pack] = seen.with(ref.record)
	default:
		c.leaves[ref] = l
	}
	return l
}

func (c *Checker) readLeaf(ctx context.Context, ref nodeRef) *leafState {
	s := &leafState{}
	all := func(err error) *leafState {
		s.lost, s.blind = []Lost{{0, LeafSize, ref.pack, err}}, true
		return s
	}
	p := c.packs[ref.pack]
	if p.err != nil {
		s.uses = append(s.uses, ref.pack)
	}
	if p.hits(ref.record, 1) {
		return all(p.err)
	}
	b, err := c.src.ReadRecord(ctx, ref.pack, ref.record)
	if err != nil {
		return all(err)
	}
	l, err := decodeLeaf(b)
	if err != nil {
		return all(err)
	}
	for _, r := range l.runs {
		ref := l.packs[r.pack]
		p := c.pack(ctx, ref)
		if p.err != nil && !slices.Contains(s.uses, ref) {
			s.uses = append(s.uses, ref)
		}
		first, count := int(r.chunk), int(r.count)
		lose := func(from, to int, err error) { // chunks of the pack
			s.lost = append(s.lost, Lost{int64(int(r.first)+from-first) * chunk.Size, int64(to-from) * chunk.Size, ref, err})
		}
		switch {
		case p.whole:
			lose(first, first+count, p.err)
		case p.err != nil:
			for _, b := range p.bad {
				if from, to := max(b[0], first), min(b[1], first+count); from < to {
					lose(from, to, p.err)
				}
			}
		case first+count > p.count:
			lose(max(first, min(p.count, first+count)), first+count, fmt.Errorf("%w: %s has %d chunks, the map wants %d", ErrCorrupt, ref, p.count, first+count))
		}
	}
	if len(s.lost) == 0 && len(s.uses) == 0 {
		return nil
	}
	return s
}

// hits says whether one of n chunks or records from first on is bad.
func (p packState) hits(first, n int) bool {
	return p.whole || slices.ContainsFunc(p.bad, func(b [2]int) bool { return b[0] < first+n && first < b[1] })
}

func (c *Checker) pack(ctx context.Context, ref chunk.PackRef) packState {
	p, ok := c.packs[ref]
	if ok {
		return p
	}
	key := packKey(ref.Hash[:len(packKey{})])
	if n, ok := c.counts[ref.Session][key]; ok {
		return packState{count: int(n)}
	}
	if p.count, p.err = c.count(ctx, ref); p.err != nil {
		p.whole = true
	}
	switch {
	case ctx.Err() != nil:
	case p.err != nil || p.count > math.MaxInt32:
		c.packs[ref] = p
	default:
		if c.counts[ref.Session] == nil {
			c.counts[ref.Session] = map[packKey]int32{}
		}
		c.counts[ref.Session][key] = int32(p.count)
	}
	return p
}
