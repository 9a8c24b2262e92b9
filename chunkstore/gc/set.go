package gc

import (
	"math/bits"
	"sort"
)

// set is a set of small numbers: chunks or records of one pack. Most packs are
// used whole, or in a few stretches, so that a set is a few spans; one that is
// used in many is bits.
type set struct {
	spans []span // sorted, apart from each other
	bits  []uint64
}

// span is from first up to end.
type span struct{ first, end uint32 }

// maxSpans is how many there are before bits take less: 8 bytes each.
const maxSpans = 64

// add takes the numbers first… and says whether one of them is new.
func (s *set) add(first, count int) bool {
	if count <= 0 || first < 0 {
		return false
	}
	if s.bits != nil {
		return s.addBits(first, first+count)
	}
	a, b := uint32(first), uint32(first+count)
	// [i, j) are the spans that touch the new one.
	i := sort.Search(len(s.spans), func(k int) bool { return s.spans[k].end >= a })
	j := i
	for j < len(s.spans) && s.spans[j].first <= b {
		j++
	}
	if i < j {
		if s.spans[i].first <= a && s.spans[i].end >= b {
			return false
		}
		a, b = min(a, s.spans[i].first), max(b, s.spans[j-1].end)
		s.spans[i] = span{a, b}
		s.spans = append(s.spans[:i+1], s.spans[j:]...)
		return true
	}
	s.spans = append(s.spans, span{})
	copy(s.spans[i+1:], s.spans[i:])
	s.spans[i] = span{a, b}
	if len(s.spans) > maxSpans {
		old := s.spans
		s.spans, s.bits = nil, []uint64{}
		for _, p := range old {
			s.addBits(int(p.first), int(p.end))
		}
	}
	return true
}

func (s *set) addBits(first, end int) (fresh bool) {
	if n := (end + 63) / 64; n > len(s.bits) {
		s.bits = append(s.bits, make([]uint64, n-len(s.bits))...)
	}
	for i := first; i < end; {
		n := min(64-i%64, end-i)
		mask := ^uint64(0) >> (64 - n) << (i % 64)
		fresh = fresh || s.bits[i/64]&mask != mask
		s.bits[i/64] |= mask
		i += n
	}
	return fresh
}

// bytes is about how much memory it takes.
func (s *set) bytes() int64 { return 48 + 8*int64(cap(s.spans)+cap(s.bits)) }

// len is how many numbers there are.
func (s *set) len() int {
	n := 0
	for _, p := range s.spans {
		n += int(p.end - p.first)
	}
	for _, b := range s.bits {
		n += bits.OnesCount64(b)
	}
	return n
}

// has says whether a number is in it.
func (s *set) has(n int) bool {
	if s.bits != nil {
		return n/64 < len(s.bits) && s.bits[n/64]>>(n%64)&1 != 0
	}
	i := sort.Search(len(s.spans), func(k int) bool { return int(s.spans[k].end) > n })
	return i < len(s.spans) && int(s.spans[i].first) <= n
}

// each calls fn for each stretch, in order, until it is false.
func (s *set) each(fn func(first, count int) bool) {
	for _, p := range s.spans {
		if !fn(int(p.first), int(p.end-p.first)) {
			return
		}
	}
	for i := 0; i < len(s.bits)*64; {
		if !s.has(i) {
			i++
			continue
		}
		j := i + 1
		for j < len(s.bits)*64 && s.has(j) {
			j++
		}
		if !fn(i, j-i) {
			return
		}
		i = j
	}
}
