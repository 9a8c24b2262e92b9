package xfs

import (
	"context"
	"fmt"
	"slices"
)

// Free gives the extents of each group's tree of free blocks and the blocks
// that the group keeps for its trees. A group is left out when its tree is
// damaged or does not have as many blocks as its header says.
func (fs *FS) Free(ctx context.Context, fn func(start, end int64) error) error {
	if fs.unsure != nil {
		return fmt.Errorf("xfs: the log was not replayed (%w): what is free is not known", fs.unsure)
	}
	if fs.fromCopy || fs.sb.checksumError != nil {
		return fmt.Errorf("xfs: %w: what is free is not known without the superblock", corrupt("superblock"))
	}
	g := fs.newGiver(fn)
	whole := fs.size / fs.sb.blockSize * fs.sb.blockSize
	for ag := range fs.sb.agCount {
		w := freeWalk{fs: fs, ctx: ctx, ag: ag}
		if err := w.verify(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			fs.note("free space of group %d is not known: %v", ag, err)
			continue
		}
		w.fn = func(start, end uint32) error {
			base := fs.sb.groupOffset(ag)
			return g.give(base+int64(start)*fs.sb.blockSize, min(whole, base+int64(end)*fs.sb.blockSize))
		}
		if err := w.walk(); err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
	return nil
}

// giver passes free ranges on without the blocks that the log changes: a mount
// would change them again, and reads them first.
type giver struct {
	changed []span // bytes, whole blocks, ascending
	last    int64
	fn      func(start, end int64) error
}

func (fs *FS) newGiver(fn func(start, end int64) error) *giver {
	g := &giver{fn: fn}
	bs := fs.sb.blockSize
	fs.replayed.each(func(start, end int64) {
		g.changed = append(g.changed, span{start / bs * bs, (end + bs - 1) / bs * bs})
	})
	return g
}

// give passes on a range; ranges ascend.
func (g *giver) give(start, end int64) error {
	for len(g.changed) > 0 && g.changed[0].end <= start {
		g.changed = g.changed[1:]
	}
	for len(g.changed) > 0 && g.changed[0].start < end {
		if err := g.pass(start, g.changed[0].start); err != nil {
			return err
		}
		start = max(start, g.changed[0].end)
		if start >= end {
			return nil
		}
		g.changed = g.changed[1:]
	}
	return g.pass(start, end)
}

func (g *giver) pass(start, end int64) error {
	if start >= end {
		return nil
	}
	if start < g.last {
		return corrupt("free space is given twice at %d", start)
	}
	g.last = end
	return g.fn(start, end)
}

const agflMagic = "XAFL"

// freeWalk goes through one group's free space.
type freeWalk struct {
	fs  *FS
	ctx context.Context
	ag  uint32
	agf []byte
	// kept are the blocks of the AGFL, ascending, that are not yet given.
	kept []uint32
	// next is the first block that a further extent may begin with.
	next  uint32
	total uint64
	fn    func(start, end uint32) error
}

// verify reads all of the group's free space without giving it.
func (w *freeWalk) verify() error {
	var err error
	if w.agf, err = w.fs.agf(w.ag); err != nil {
		return err
	}
	if w.kept, err = w.freeList(); err != nil {
		return err
	}
	kept := w.kept
	w.kept = nil
	i := 0
	w.fn = func(start, end uint32) error {
		for i < len(kept) && kept[i] < start {
			i++
		}
		if i < len(kept) && kept[i] < end {
			return corrupt("block %d is free twice", kept[i])
		}
		return nil
	}
	if err := w.walk(); err != nil {
		return err
	}
	if want := uint64(be.Uint32(w.agf[52:])); w.total != want {
		return corrupt("tree with %d free blocks, its header has %d", w.total, want)
	}
	w.kept = kept
	return nil
}

// freeList gives the AGFL: blocks that are kept free for the trees.
func (w *freeWalk) freeList() ([]uint32, error) {
	s := w.fs.sb
	var list []byte
	if s.v5 {
		b, err := w.fs.groupHeader(w.ag, 3, agflMagic, 32, 8)
		if err != nil {
			return nil, err
		}
		list = b[36:]
	} else {
		list = make([]byte, s.sectorSize)
		if err := w.fs.readMeta(list, s.groupOffset(w.ag)+3*s.sectorSize); err != nil {
			return nil, err
		}
	}
	room := uint32(len(list) / 4)
	first, n := be.Uint32(w.agf[40:]), be.Uint32(w.agf[48:])
	if first >= room || n > room || n > 0 && (first+n-1)%room != be.Uint32(w.agf[44:]) {
		return nil, corrupt("free list of %d blocks from %d to %d", n, first, be.Uint32(w.agf[44:]))
	}
	kept := make([]uint32, 0, n)
	for i := range n {
		kept = append(kept, be.Uint32(list[(first+i)%room*4:]))
	}
	slices.Sort(kept)
	for i, b := range kept {
		if b < w.firstBlock() || b >= s.groupBlocks(w.ag) || i > 0 && kept[i-1] == b {
			return nil, corrupt("block %d in the free list", b)
		}
	}
	return kept, nil
}

// firstBlock is the first block behind the group's headers.
func (w *freeWalk) firstBlock() uint32 {
	s := w.fs.sb
	return uint32((4*s.sectorSize + s.blockSize - 1) / s.blockSize)
}

// walk goes through the tree of free extents by block number.
func (w *freeWalk) walk() error {
	w.next, w.total = w.firstBlock(), 0
	level := int(be.Uint32(w.agf[28:]))
	if level < 1 || level > maxTreeLevels {
		return corrupt("tree of %d levels", level)
	}
	return w.node(be.Uint32(w.agf[16:]), level-1)
}

// node visits a block of the tree and all below. The level falls with every
// step, and extents must ascend, so that no block can be visited twice.
func (w *freeWalk) node(block uint32, level int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	b, err := w.block(block, level)
	if err != nil {
		return fmt.Errorf("free space block %d of group %d: %w", block, w.ag, err)
	}
	head := w.fs.sb.shortHeader()
	n := int(be.Uint16(b[6:]))
	if level == 0 {
		for i := range n {
			if err := w.extent(be.Uint32(b[head+i*8:]), be.Uint32(b[head+i*8+4:])); err != nil {
				return err
			}
		}
		return nil
	}
	room := (len(b) - head) / 12 // keys of 8 bytes, then pointers of 4
	for i := range n {
		before := w.next
		if err := w.node(be.Uint32(b[head+room*8+i*4:]), level-1); err != nil {
			return err
		}
		if w.next == before {
			return corrupt("empty block of the free space tree")
		}
	}
	return nil
}

// shortHeader is the length of the header of a B+tree block with short
// pointers.
func (s *super) shortHeader() int {
	if s.v5 {
		return 56
	}
	return 16
}

// block reads a block of the tree (Variable Length Record B+trees, "Short
// Format").
func (w *freeWalk) block(n uint32, level int) ([]byte, error) {
	s := w.fs.sb
	if n < w.firstBlock() || n >= s.groupBlocks(w.ag) {
		return nil, corrupt("it lies outside the group")
	}
	b := make([]byte, s.blockSize)
	off := s.groupOffset(w.ag) + int64(n)*s.blockSize
	if err := w.fs.readMeta(b, off); err != nil {
		return nil, err
	}
	magic, record := "ABTB", 8
	if s.v5 {
		magic = "AB3B"
	}
	if level > 0 {
		record = 12
	}
	switch {
	case string(b[:4]) != magic:
		return nil, corrupt("magic number")
	case int(be.Uint16(b[4:])) != level:
		return nil, corrupt("level %d, want %d", be.Uint16(b[4:]), level)
	case int(be.Uint16(b[6:])) > (len(b)-s.shortHeader())/record:
		return nil, corrupt("%d entries", be.Uint16(b[6:]))
	case !s.v5:
		return b, nil
	case !w.fs.checksumFits(b, 52) && !w.fs.replayed.touches(off, len(b)):
		return nil, corrupt("checksum")
	case be.Uint64(b[16:]) != uint64(off/sectorSize):
		return nil, corrupt("it lies in a wrong place")
	case be.Uint32(b[48:]) != w.ag:
		return nil, corrupt("it belongs to group %d", be.Uint32(b[48:]))
	}
	return b, nil
}

// extent gives one free extent, after the kept blocks before it.
func (w *freeWalk) extent(start, count uint32) error {
	size := w.fs.sb.groupBlocks(w.ag)
	if count == 0 || start < w.next || start >= size || count > size-start {
		return corrupt("free extent %d+%d in group %d", start, count, w.ag)
	}
	if w.overlapsLog(start, count) {
		return corrupt("free extent %d+%d of group %d lies in the log", start, count, w.ag)
	}
	for len(w.kept) > 0 && w.kept[0] < start {
		if err := w.fn(w.kept[0], w.kept[0]+1); err != nil {
			return err
		}
		w.kept = w.kept[1:]
	}
	w.next, w.total = start+count, w.total+uint64(count)
	return w.fn(start, start+count)
}

func (w *freeWalk) overlapsLog(start, count uint32) bool {
	s := w.fs.sb
	ag, first := uint32(s.logStart>>s.agBlockLog), uint32(s.logStart&(1<<s.agBlockLog-1))
	return s.logStart != 0 && ag == w.ag && start < first+s.logBlocks && first < start+count
}

// flush gives the kept blocks behind the last extent.
func (w *freeWalk) flush() error {
	for _, b := range w.kept {
		if err := w.fn(b, b+1); err != nil {
			return err
		}
	}
	w.kept = nil
	return nil
}
