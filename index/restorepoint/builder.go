package restorepoint

import (
	"context"
	"fmt"
	"slices"

	"cairn/chunkstore/chunk"
)

// Sink is where a map is written; *chunkstore.Session is one.
type Sink interface {
	// Loc gives the Loc of a chunk in a stored pack.
	Loc(ref chunk.PackRef, n int) chunk.Loc
	// Resolve says where a chunk and up to n-1 that follow it lie; ok is
	// false while their pack is not closed.
	Resolve(l chunk.Loc, n int) (ref chunk.PackRef, first, count int, ok bool)
	// AddRecord takes a record that encode makes when it is told the number
	// of the map pack it will be in.
	AddRecord(encode func(open int) ([]byte, error)) (chunk.RecordLoc, error)
	// MapPack names a map pack that is closed, by number.
	MapPack(n int) chunk.PackRef
}

// A Builder makes the map of one disk of a new point, from its parent's map
// and what was read. Set and Hole are called in the order of the disk, by one
// goroutine at a time; Finish and Root when all is done. Memory is bounded by
// the leaves whose packs are not closed yet.
type Builder struct {
	ctx    context.Context
	sink   Sink
	parent *Map // nil: none
	size   int64

	at      int64 // index of the open leaf; -1: none
	locs    [leafChunks]chunk.Loc
	pending []pendingLeaf
	changed map[int64]*newLeaf // leaves that differ from the parent's
	roots   []builtMiddle      // after Finish
}

// pendingLeaf waits for its packs to close.
type pendingLeaf struct {
	index int64
	runs  []locRun
}

// locRun is a run by Loc.
type locRun struct {
	first, count uint16
	loc          chunk.Loc
}

// newLeaf is a leaf that this point wrote; nil in Builder.changed is a hole.
type newLeaf = chunk.RecordLoc

type builtMiddle struct {
	index int
	kept  *nodeRef // the parent's, unchanged
	loc   chunk.RecordLoc
}

// NewBuilder begins the map of a disk of size bytes. parent may be nil, or of
// another size. ctx is for reading the parent's map.
func NewBuilder(ctx context.Context, sink Sink, parent *Map, size int64) (*Builder, error) {
	if size < 0 || size > MaxDiskSize {
		return nil, fmt.Errorf("a disk of %d bytes is over the format's limit of %d", size, MaxDiskSize)
	}
	return &Builder{ctx: ctx, sink: sink, parent: parent, size: size, at: -1, changed: map[int64]*newLeaf{}}, nil
}

// ParentLocs fills locs with the parent's Locs of the chunks from first on;
// chunk.Hole where it has none. It may be called by another goroutine than
// the one that calls Set.
func (b *Builder) ParentLocs(first int64, locs []chunk.Loc) error {
	clear(locs)
	for len(locs) > 0 {
		i, skip := first/leafChunks, int(first%leafChunks)
		n := min(leafChunks-skip, len(locs))
		l, err := b.parentLeaf(i)
		if err != nil {
			return err
		}
		for _, r := range l.runs {
			lo, hi := max(int(r.first), skip), min(int(r.first)+int(r.count), skip+n)
			if lo >= hi {
				continue
			}
			base := b.sink.Loc(l.packs[r.pack], int(r.chunk)+lo-int(r.first))
			for c := lo; c < hi; c++ {
				locs[c-skip] = base + chunk.Loc(c-lo)
			}
		}
		locs, first = locs[n:], first+int64(n)
	}
	return nil
}

func (b *Builder) parentLeaf(i int64) (*leaf, error) {
	if b.parent == nil || i*LeafSize >= b.parent.size {
		return &leaf{}, nil
	}
	return b.parent.leaf(b.ctx, i)
}

// Set says where the chunks from first on lie now.
func (b *Builder) Set(first int64, locs []chunk.Loc) error {
	for len(locs) > 0 {
		i, skip := first/leafChunks, int(first%leafChunks)
		n := min(leafChunks-skip, len(locs))
		if err := b.openLeaf(i, n == leafChunks); err != nil {
			return err
		}
		copy(b.locs[skip:], locs[:n])
		locs, first = locs[n:], first+int64(n)
	}
	return nil
}

// Hole says that n chunks from first on are zeros.
func (b *Builder) Hole(first, n int64) error {
	for n > 0 {
		i, skip := first/leafChunks, first%leafChunks
		k := min(leafChunks-skip, n)
		// A leaf that is a hole already, or was never there, stays so.
		if i != b.at {
			l, err := b.parentLeaf(i)
			if err != nil {
				return err
			}
			if len(l.runs) == 0 {
				n, first = n-k, first+k
				continue
			}
		}
		if err := b.openLeaf(i, k == leafChunks); err != nil {
			return err
		}
		clear(b.locs[skip : skip+k])
		n, first = n-k, first+k
	}
	return nil
}

// openLeaf makes leaf i the open one; its chunks start as the parent's,
// unless all of them will be set.
func (b *Builder) openLeaf(i int64, all bool) error {
	if i == b.at {
		return nil
	}
	if i < b.at {
		return fmt.Errorf("internal error: leaf %d after leaf %d", i, b.at)
	}
	if err := b.closeLeaf(); err != nil {
		return err
	}
	b.at = i
	if all {
		clear(b.locs[:])
		return nil
	}
	return b.ParentLocs(i*leafChunks, b.locs[:])
}

// closeLeaf turns the open leaf into runs, keeps the parent's when nothing
// changed, and writes what can be written.
func (b *Builder) closeLeaf() error {
	if b.at < 0 {
		return nil
	}
	i := b.at
	b.at = -1
	// The parent may have had chunks behind the end of a disk that shrank.
	if inside := (b.size - i*LeafSize + chunk.Size - 1) / chunk.Size; inside < leafChunks {
		clear(b.locs[inside:])
	}
	runs := runsOf(b.locs[:])
	old, err := b.parentLeaf(i)
	if err != nil {
		return err
	}
	switch {
	case b.sameRuns(old, runs):
	case len(runs) == 0:
		b.changed[i] = nil
	default:
		b.pending = append(b.pending, pendingLeaf{i, runs})
	}
	return b.writePending()
}

func runsOf(locs []chunk.Loc) []locRun {
	var runs []locRun
	for i := 0; i < len(locs); {
		if locs[i] == chunk.Hole {
			i++
			continue
		}
		j := i + 1
		for j < len(locs) && locs[j].Follows(locs[j-1]) {
			j++
		}
		runs = append(runs, locRun{uint16(i), uint16(j - i), locs[i]})
		i = j
	}
	return slices.Clip(runs)
}

func (b *Builder) sameRuns(l *leaf, runs []locRun) bool {
	if len(l.runs) != len(runs) {
		return false
	}
	for i, r := range l.runs {
		if r.first != runs[i].first || r.count != runs[i].count || b.sink.Loc(l.packs[r.pack], int(r.chunk)) != runs[i].loc {
			return false
		}
	}
	return true
}

// writePending writes the leaves at the head of the queue whose packs are
// closed.
func (b *Builder) writePending() error {
	for len(b.pending) > 0 {
		l, ok := b.resolve(b.pending[0].runs)
		if !ok {
			return nil
		}
		loc, err := b.sink.AddRecord(func(int) ([]byte, error) { return encodeLeaf(l), nil })
		if err != nil {
			return err
		}
		b.changed[b.pending[0].index] = &loc
		b.pending = b.pending[1:]
	}
	return nil
}

// resolve turns runs by Loc into a leaf; a run over a pack's end becomes two.
func (b *Builder) resolve(runs []locRun) (*leaf, bool) {
	l := &leaf{runs: make([]run, 0, len(runs))}
	number := map[chunk.PackRef]int{}
	for _, r := range runs {
		for r.count > 0 {
			ref, first, n, ok := b.sink.Resolve(r.loc, int(r.count))
			if !ok {
				return nil, false
			}
			at, seen := number[ref]
			if !seen {
				at = len(l.packs)
				number[ref] = at
				l.packs = append(l.packs, ref)
			}
			l.runs = append(l.runs, run{r.first, uint16(n), uint16(at), uint32(first)})
			r.first += uint16(n)
			r.count -= uint16(n)
			r.loc += chunk.Loc(n)
		}
	}
	return l, true
}

// Finish writes the rest of the map; every pack must be closed (the
// session's Flush). The map's records must be flushed before Root.
func (b *Builder) Finish() error {
	if last := (b.size - 1) / LeafSize; b.parent != nil && b.parent.size > b.size && b.size > 0 && last > b.at {
		if err := b.openLeaf(last, false); err != nil {
			return err
		}
	}
	if err := b.closeLeaf(); err != nil {
		return err
	}
	if len(b.pending) > 0 {
		return fmt.Errorf("internal error: %d leaves have no packs", len(b.pending))
	}
	touched := map[int][]int64{}
	for i := range b.changed {
		at := int(i / middleLeaves)
		touched[at] = append(touched[at], i)
	}
	for at := range int((b.size + middleSize - 1) / middleSize) {
		if err := b.finishMiddle(at, touched[at]); err != nil {
			return err
		}
	}
	return nil
}

// finishMiddle keeps the parent's middle node or writes a new one.
func (b *Builder) finishMiddle(at int, changed []int64) error {
	old := &middle{}
	var kept *nodeRef
	if b.parent != nil {
		if ref, ok := b.parent.nodes[at]; ok {
			kept = &ref
			var err error
			if old, err = b.parent.middle(b.ctx, at); err != nil {
				return err
			}
		}
	}
	// A disk that shrank drops the leaves behind its end.
	leaves := int(min(middleLeaves, (b.size-int64(at)*middleSize+LeafSize-1)/LeafSize))
	shrunk := false
	for i := range old.leaves {
		shrunk = shrunk || i >= leaves
	}
	if len(changed) == 0 && !shrunk {
		if kept != nil {
			b.roots = append(b.roots, builtMiddle{index: at, kept: kept})
		}
		return nil
	}
	var present []int
	for i := range leaves {
		loc, isChanged := b.changed[int64(at)*middleLeaves+int64(i)]
		if _, wasThere := old.leaves[i]; isChanged && loc != nil || !isChanged && wasThere {
			present = append(present, i)
		}
	}
	if len(present) == 0 {
		return nil
	}
	loc, err := b.sink.AddRecord(func(open int) ([]byte, error) {
		children := make([]child, 0, len(present))
		for _, i := range present {
			c := child{index: i}
			if loc := b.changed[int64(at)*middleLeaves+int64(i)]; loc == nil {
				c.pack, c.record = old.leaves[i].pack, old.leaves[i].record
			} else if c.record = loc.Record; loc.Pack == open {
				c.self = true
			} else {
				c.pack = b.sink.MapPack(loc.Pack)
			}
			children = append(children, c)
		}
		return encodeMiddle(children), nil
	})
	if err != nil {
		return err
	}
	b.roots = append(b.roots, builtMiddle{index: at, loc: loc})
	return nil
}

// Root gives the map's root, after Finish and once the session's records are
// flushed.
func (b *Builder) Root() MapRoot {
	var root MapRoot
	number := map[chunk.PackRef]int{}
	for _, m := range b.roots {
		ref, record := chunk.PackRef{}, m.loc.Record
		if m.kept != nil {
			ref, record = m.kept.pack, m.kept.record
		} else {
			ref = b.sink.MapPack(m.loc.Pack)
		}
		at, ok := number[ref]
		if !ok {
			at = len(root.Packs)
			number[ref] = at
			root.Packs = append(root.Packs, packName(ref))
		}
		root.Nodes = append(root.Nodes, [3]int{m.index, at, record})
	}
	return root
}
