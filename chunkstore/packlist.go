package chunkstore

import (
	"bytes"
	"cmp"
	"iter"
	"math"
	"slices"

	"cairn/chunkstore/pack"
)

// PackList is packs with their stored sizes, by number: those of a listing in
// the order of their names, and behind them what was added out of order. A
// repository of 100 TiB has seven million packs, so that each takes 36 bytes
// here; in a map it is four times as much. The zero value is empty.
type PackList struct {
	sessions []sessionPacks
	number   map[SessionID]int // in sessions
	listed   int
	late     []PackSize
	lateOf   map[PackRef]int // in late
}

// sessionPacks are the packs of one session, in order.
type sessionPacks struct {
	id     SessionID
	first  int // number of its first pack
	hashes []pack.Hash
	sizes  []uint32
}

// Len is how many packs there are; their numbers are 0…Len()-1.
func (l *PackList) Len() int { return l.listed + len(l.late) }

// Add takes a pack with its size in bytes. One that is there already stays as
// it is.
func (l *PackList) Add(ref PackRef, size int64) {
	k := len(l.sessions) - 1
	c := 1
	if k >= 0 {
		s := &l.sessions[k]
		if c = bytes.Compare(ref.Session[:], s.id[:]); c == 0 {
			c = bytes.Compare(ref.Hash[:], s.hashes[len(s.hashes)-1][:])
			if c > 0 && len(l.late) == 0 {
				s.add(ref.Hash, size)
				l.listed++
				return
			}
		}
	}
	if c > 0 && len(l.late) == 0 {
		if l.number == nil {
			l.number = map[SessionID]int{}
		}
		if k >= 0 { // the last one is whole
			l.sessions[k].hashes, l.sessions[k].sizes = slices.Clip(l.sessions[k].hashes), slices.Clip(l.sessions[k].sizes)
		}
		l.number[ref.Session] = len(l.sessions)
		l.sessions = append(l.sessions, sessionPacks{id: ref.Session, first: l.listed})
		l.sessions[k+1].add(ref.Hash, size)
		l.listed++
		return
	}
	if _, ok := l.Find(ref); ok {
		return
	}
	if l.lateOf == nil {
		l.lateOf = map[PackRef]int{}
	}
	l.lateOf[ref] = len(l.late)
	l.late = append(l.late, PackSize{ref, size})
}

func (s *sessionPacks) add(h pack.Hash, size int64) {
	s.hashes = append(s.hashes, h)
	s.sizes = append(s.sizes, uint32(min(size, math.MaxUint32))) // a pack has at most pack.MaxSize
}

// Find gives a pack's number.
func (l *PackList) Find(ref PackRef) (n int, ok bool) {
	if k, there := l.number[ref.Session]; there {
		s := &l.sessions[k]
		lo, hi := 0, len(s.hashes)
		for lo < hi {
			mid := int(uint(lo+hi) >> 1)
			switch c := bytes.Compare(s.hashes[mid][:], ref.Hash[:]); {
			case c == 0:
				return s.first + mid, true
			case c < 0:
				lo = mid + 1
			default:
				hi = mid
			}
		}
	}
	n, ok = l.lateOf[ref]
	return l.listed + n, ok
}

// At gives pack n.
func (l *PackList) At(n int) PackSize {
	if n >= l.listed {
		return l.late[n-l.listed]
	}
	k, ok := slices.BinarySearchFunc(l.sessions, n, func(s sessionPacks, n int) int { return cmp.Compare(s.first, n) })
	if !ok {
		k--
	}
	s := &l.sessions[k]
	return PackSize{PackRef{Session: s.id, Hash: s.hashes[n-s.first]}, int64(s.sizes[n-s.first])}
}

// Size gives a pack's stored size in bytes.
func (l *PackList) Size(ref PackRef) (size int64, ok bool) {
	n, ok := l.Find(ref)
	if !ok {
		return 0, false
	}
	return l.At(n).Size, true
}

// Has says whether a pack is in the list.
func (l *PackList) Has(ref PackRef) bool {
	_, ok := l.Find(ref)
	return ok
}

// All gives the packs with their numbers, in their order.
func (l *PackList) All() iter.Seq2[int, PackSize] {
	return func(yield func(int, PackSize) bool) {
		for k := range l.sessions {
			s := &l.sessions[k]
			for i, h := range s.hashes {
				if !yield(s.first+i, PackSize{PackRef{Session: s.id, Hash: h}, int64(s.sizes[i])}) {
					return
				}
			}
		}
		for i, p := range l.late {
			if !yield(l.listed+i, p) {
				return
			}
		}
	}
}
