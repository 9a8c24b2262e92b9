package gc

import (
	"encoding/binary"
	"math"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
)

// needs is which chunks or records of which packs are needed. Of most packs one
// stretch is, which takes 12 bytes; the others have a set each. Should these
// grow over a limit, half of the packs are taken for needed whole, another half
// in each run: what they have free is then found by a later run.
type needs struct {
	packs    *chunkstore.PackList
	uses     []use // by number in packs
	sets     []set // the first is nobody's
	free     []uint32
	unlisted map[chunk.PackRef]*set // packs that are not in packs: always exact

	limit int64 // of bytes in sets
	bytes int64
	seed  uint64
	mask  uint64 // packs whose hash, with seed, has a bit of it are taken whole
	exact map[int]bool

	recent [64]numbered // by a byte of the hash
}

// use is what is needed of a pack: up to end from first on, or a set. With end
// 0 it is nothing.
type use struct{ first, end, set uint32 }

// whole is the end of a use that means all of a pack, however long.
const whole = math.MaxUint32

type numbered struct {
	ref   chunk.PackRef
	n     int
	known bool
}

// maxSets is how much the sets of needs may take, in bytes. A pack of 16 MiB
// needs at most 1 KiB when its chunks are half as long stored as they are.
const maxSets = 256 << 20

func newNeeds(packs *chunkstore.PackList, limit int64, run chunk.SessionID, exact []chunk.PackRef) needs {
	if limit == 0 {
		limit = maxSets
	}
	n := needs{packs: packs, uses: make([]use, packs.Len()), sets: make([]set, 1), unlisted: map[chunk.PackRef]*set{}, limit: limit,
		seed: binary.LittleEndian.Uint64(run[:]), exact: map[int]bool{}}
	n.keepExact(exact)
	return n
}

// keepExact makes sure that packs are not taken whole.
func (n *needs) keepExact(refs []chunk.PackRef) {
	for _, ref := range refs {
		if i, ok := n.packs.Find(ref); ok {
			n.exact[i] = true
		}
	}
}

// find gives a pack's number.
func (n *needs) find(ref chunk.PackRef) (int, bool) {
	r := &n.recent[ref.Hash[31]%64]
	if r.known && r.ref == ref {
		return r.n, true
	}
	i, ok := n.packs.Find(ref)
	if ok {
		*r = numbered{ref, i, true}
	}
	return i, ok
}

// add marks chunks and says whether one of them is new.
func (n *needs) add(ref chunk.PackRef, first, count int) bool {
	if count <= 0 || first < 0 || first+count >= whole {
		return false
	}
	i, ok := n.find(ref)
	if !ok {
		s := n.unlisted[ref]
		if s == nil {
			s = &set{}
			n.unlisted[ref] = s
		}
		return s.add(first, count)
	}
	u := &n.uses[i]
	a, b := uint32(first), uint32(first+count)
	switch {
	case u.set != 0:
		return n.addTo(u.set, first, count)
	case u.end == 0:
		u.first, u.end = a, b
		return true
	case u.end == whole, u.first <= a && b <= u.end:
		return false
	case a <= u.end && u.first <= b: // they touch
		u.first, u.end = min(a, u.first), max(b, u.end)
		return true
	case n.coarse(i):
		u.first, u.end = 0, whole
		return true
	}
	if k := len(n.free); k > 0 {
		u.set, n.free = n.free[k-1], n.free[:k-1]
	} else {
		u.set = uint32(len(n.sets))
		n.sets = append(n.sets, set{})
	}
	n.sets[u.set].add(int(u.first), int(u.end-u.first))
	return n.addTo(u.set, first, count)
}

func (n *needs) addTo(i uint32, first, count int) bool {
	s := &n.sets[i]
	before := s.bytes()
	fresh := s.add(first, count)
	if n.bytes += s.bytes() - before; n.bytes > n.limit {
		n.coarsen()
	}
	return fresh
}

// coarse says whether a pack is one of those that are taken whole.
func (n *needs) coarse(i int) bool {
	if n.mask == 0 || n.exact[i] {
		return false
	}
	h := n.packs.At(i).Ref.Hash
	return (binary.LittleEndian.Uint64(h[16:])^n.seed)&n.mask != 0
}

// coarsen takes half of the packs whole that were not yet, until the sets are
// small enough.
func (n *needs) coarsen() {
	for n.bytes > n.limit && n.mask != math.MaxUint64 {
		n.mask = n.mask<<1 | 1
		for i := range n.uses {
			u := &n.uses[i]
			if u.set == 0 || !n.coarse(i) {
				continue
			}
			n.bytes -= n.sets[u.set].bytes()
			n.sets[u.set] = set{}
			n.free = append(n.free, u.set)
			*u = use{0, whole, 0}
		}
	}
}

// listed takes a pack that was found to be there since into account.
func (n *needs) listed(ref chunk.PackRef) {
	i, _ := n.packs.Find(ref)
	for len(n.uses) <= i {
		n.uses = append(n.uses, use{})
	}
	if s := n.unlisted[ref]; s != nil {
		delete(n.unlisted, ref)
		s.each(func(first, count int) bool { n.add(ref, first, count); return true })
	}
}

// any says whether anything of a pack is needed.
func (n *needs) any(ref chunk.PackRef) bool {
	if i, ok := n.packs.Find(ref); ok {
		return n.anyOf(i)
	}
	return n.unlisted[ref] != nil
}

// anyOf is any of pack i. What was added to packs since by others than listed
// is not needed by what was marked.
func (n *needs) anyOf(i int) bool { return i < len(n.uses) && n.uses[i].end != 0 }

// of gives what is needed of a pack; nil: nothing. known is false when that is
// not known to the chunk: then it is taken whole.
func (n *needs) of(ref chunk.PackRef) (s *set, known bool) {
	i, ok := n.packs.Find(ref)
	if !ok {
		return n.unlisted[ref], true
	}
	switch u := n.uses[i]; {
	case u.set != 0:
		return &n.sets[u.set], true
	case u.end == 0:
		return nil, true
	case u.end == whole:
		return nil, false
	default:
		return &set{spans: []span{{u.first, u.end}}}, true
	}
}
