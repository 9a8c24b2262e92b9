package catalogue

import (
	"cmp"
	"math"
	"slices"
)

// spanUnit is the grain of spans, in bytes of the volume: that of the disk
// maps. Part of the on-disk format.
const spanUnit = 4096

// maxSpans is how many spans tell of one subtree. Part of the on-disk format.
const maxSpans = 16

// span is a range of a volume, in units of spanUnit.
type span struct{ start, end int64 }

// everywhere tells of a subtree that must be looked at every time: a part of
// it could not be read, or the reader does not tell of records.
var everywhere = []span{{0, math.MaxInt64}}

func isEverywhere(s []span) bool { return len(s) == 1 && s[0].end == math.MaxInt64 }

// spanSet gathers where the inode records of a subtree lie.
type spanSet struct {
	list []span
	all  bool
}

// add takes a range in bytes.
func (s *spanSet) add(start, end int64) {
	n := span{start / spanUnit, (end + spanUnit - 1) / spanUnit}
	if k := len(s.list); k > 0 && s.list[k-1].start <= n.start && n.end <= s.list[k-1].end {
		return // most records lie in the block of the one before
	}
	s.list = append(s.list, n)
}

// addAll takes what a directory below has.
func (s *spanSet) addAll(list []span) {
	if isEverywhere(list) {
		s.all = true
	}
	s.list = append(s.list, list...)
}

// spans gives at most maxSpans spans that cover all that was added, sorted
// and apart: those with the smallest gaps between them are joined.
func (s *spanSet) spans() []span {
	if s.all {
		return everywhere
	}
	if len(s.list) == 0 {
		return nil
	}
	if less := func(a, b span) int { return cmp.Compare(a.start, b.start) }; !slices.IsSortedFunc(s.list, less) {
		slices.SortFunc(s.list, less)
	}
	merged := s.list[:1]
	for _, n := range s.list[1:] {
		if last := &merged[len(merged)-1]; n.start <= last.end {
			last.end = max(last.end, n.end)
		} else {
			merged = append(merged, n)
		}
	}
	if len(merged) > maxSpans {
		gaps := make([]int64, len(merged)-1)
		for i := range gaps {
			gaps[i] = merged[i+1].start - merged[i].end
		}
		slices.Sort(gaps)
		small := gaps[len(merged)-maxSpans-1] // gaps up to this one are closed
		out := merged[:1]
		for _, n := range merged[1:] {
			if last := &out[len(out)-1]; n.start-last.end <= small {
				last.end = n.end
			} else {
				out = append(out, n)
			}
		}
		merged = out
	}
	return slices.Clone(merged)
}

// changeSet is what of a volume may have changed: ranges in bytes. It is for
// one goroutine.
type changeSet struct {
	ranges [][2]int64 // sorted, apart
	// Records of one directory lie together: where the last questions fell.
	still, moved [2]int64 // nothing changed in the first, all in the second
}

func (c *changeSet) add(start, end int64) { c.ranges = append(c.ranges, [2]int64{start, end}) }

// seal sorts and joins the ranges; touches may be asked after it.
func (c *changeSet) seal() {
	slices.SortFunc(c.ranges, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	out := c.ranges[:0]
	for _, r := range c.ranges {
		if k := len(out); k > 0 && r[0] <= out[k-1][1] {
			out[k-1][1] = max(out[k-1][1], r[1])
		} else {
			out = append(out, r)
		}
	}
	c.ranges = out
}

// touches says whether anything changed in [start, end).
func (c *changeSet) touches(start, end int64) bool {
	if c.still[0] <= start && end <= c.still[1] {
		return false
	}
	if c.moved[0] <= start && start < c.moved[1] {
		return true
	}
	i, _ := slices.BinarySearchFunc(c.ranges, start, func(r [2]int64, at int64) int {
		if r[1] <= at {
			return -1
		}
		return 1
	})
	if i < len(c.ranges) && c.ranges[i][0] < end {
		c.moved = c.ranges[i]
		return true
	}
	c.still = [2]int64{0, math.MaxInt64}
	if i > 0 {
		c.still[0] = c.ranges[i-1][1]
	}
	if i < len(c.ranges) {
		c.still[1] = c.ranges[i][0]
	}
	return false
}

// touchesAny says whether anything changed in a subtree.
func (c *changeSet) touchesAny(list []span) bool {
	for _, s := range list {
		end := int64(math.MaxInt64)
		if s.end < math.MaxInt64/spanUnit {
			end = s.end * spanUnit
		}
		if c.touches(s.start*spanUnit, end) {
			return true
		}
	}
	return len(list) == 0 // nothing is known
}
