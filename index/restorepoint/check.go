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
	src    Source
	stored func(context.Context, chunk.PackRef) (Stored, error)

	packs  map[chunk.PackRef]packState // that are damaged, or moved
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

// Stored is what the store tells of a pack: how many chunks (or records) it
// has, and, if it is gone because gc copied what was needed of it, by Moved the
// places where up to count of them from n on may lie, the best first.
type Stored struct {
	Count int
	Moved func(n, count int) []Piece
}

// Piece is consecutive chunks (or records) of a pack.
type Piece struct {
	Pack     chunk.PackRef
	First, N int
}

type packState struct {
	Stored
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

// NewChecker gives a Checker; stored tells of a pack.
func NewChecker(src Source, stored func(context.Context, chunk.PackRef) (Stored, error)) *Checker {
	return &Checker{src: src, stored: stored, packs: map[chunk.PackRef]packState{}, leaves: map[nodeRef]*leafState{},
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
			s.add(Lost{base, min(middleSize, d.Size-base), c.culprit(ctx, ref), err}, limit)
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
		s.lost, s.blind = []Lost{{0, LeafSize, c.culprit(ctx, ref), err}}, true
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
		for _, l := range c.lacks(ctx, Piece{ref, int(r.chunk), int(r.count)}, 0) {
			s.lost = append(s.lost, Lost{int64(int(r.first)+l.at) * chunk.Size, int64(l.n) * chunk.Size, l.pack, l.err})
			if !slices.Contains(s.uses, l.pack) && c.packs[l.pack].err != nil {
				s.uses = append(s.uses, l.pack)
			}
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

// lack is chunks of a piece that cannot be had.
type lack struct {
	at, n int // from the piece's first on
	pack  chunk.PackRef
	err   error
}

// maxMoves bounds how often something may have moved.
const maxMoves = 64

// lacks says which of a piece's chunks cannot be had, and because of which
// pack: of one that gc rewrote, that to which they were copied.
func (c *Checker) lacks(ctx context.Context, want Piece, moves int) (out []lack) {
	p := c.pack(ctx, want.Pack)
	switch end := want.First + want.N; {
	case p.whole:
		return []lack{{0, want.N, want.Pack, p.err}}
	case p.err != nil:
		for _, b := range p.bad {
			if from, to := max(b[0], want.First), min(b[1], end); from < to {
				out = append(out, lack{from - want.First, to - from, want.Pack, p.err})
			}
		}
		return out
	case end > p.Count:
		from := max(want.First, min(p.Count, end))
		return []lack{{from - want.First, end - from, want.Pack, fmt.Errorf("%w: %s has %d chunks, the map wants %d", ErrCorrupt, want.Pack, p.Count, end)}}
	case p.Moved == nil:
		return nil
	case moves >= maxMoves:
		return []lack{{0, want.N, want.Pack, fmt.Errorf("%w: %s moved more than %d times", ErrCorrupt, want.Pack, maxMoves)}}
	}
	for done := 0; done < want.N; {
		step := 1
		best := []lack{{0, 1, want.Pack, fmt.Errorf("%w: %s was removed, and chunk %d of it not kept", ErrCorrupt, want.Pack, want.First+done)}}
		for i, piece := range p.Moved(want.First+done, want.N-done) {
			l := c.lacks(ctx, piece, moves+1)
			if i == 0 || len(l) == 0 {
				best, step = l, piece.N
			}
			if len(l) == 0 {
				break
			}
		}
		for _, l := range best {
			l.at += done
			out = append(out, l)
		}
		done += step
	}
	return out
}

// culprit names the pack because of which a record cannot be read.
func (c *Checker) culprit(ctx context.Context, ref nodeRef) chunk.PackRef {
	if l := c.lacks(ctx, Piece{ref.pack, ref.record, 1}, 0); len(l) > 0 {
		return l[0].pack
	}
	return ref.pack
}

func (c *Checker) pack(ctx context.Context, ref chunk.PackRef) packState {
	p, ok := c.packs[ref]
	if ok {
		return p
	}
	key := packKey(ref.Hash[:len(packKey{})])
	if n, ok := c.counts[ref.Session][key]; ok {
		return packState{Stored: Stored{Count: int(n)}}
	}
	if p.Stored, p.err = c.stored(ctx, ref); p.err != nil {
		p.whole = true
	}
	switch {
	case ctx.Err() != nil:
	case p.err != nil || p.Moved != nil || p.Count > math.MaxInt32:
		c.packs[ref] = p
	default:
		if c.counts[ref.Session] == nil {
			c.counts[ref.Session] = map[packKey]int32{}
		}
		c.counts[ref.Session][key] = int32(p.Count)
	}
	return p
}
