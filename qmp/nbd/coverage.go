package nbd

import "slices"

// maxSpans bounds how scattered the chunks of one read may come.
const maxSpans = 4096

// coverage is the part of a read that has been answered: sorted spans that
// neither overlap nor touch. Chunks usually come in order, which keeps it at
// one span.
type coverage struct {
	first span   // held apart: the usual case needs no allocation
	rest  []span // behind first
}

type span struct{ start, end uint32 }

// add adds [off, off+n), n > 0. False means that it overlaps what is there, or
// that there are too many spans.
func (c *coverage) add(off, n uint32) bool {
	s := span{off, off + n}
	if len(c.rest) == 0 {
		switch {
		case c.first.end == 0:
			c.first = s
			return true
		case s.start == c.first.end:
			c.first.end = s.end
			return true
		}
	}
	all := append([]span{c.first}, c.rest...)
	i, _ := slices.BinarySearchFunc(all, s.start, func(e span, start uint32) int {
		return int(int64(e.start) - int64(start))
	})
	if i < len(all) && all[i].start < s.end || i > 0 && all[i-1].end > s.start || len(all) > maxSpans {
		return false
	}
	if i < len(all) && all[i].start == s.end { // grows the span behind it downwards
		s.end = all[i].end
		all = slices.Delete(all, i, i+1)
	}
	if i > 0 && all[i-1].end == s.start {
		all[i-1].end = s.end
	} else {
		all = slices.Insert(all, i, s)
	}
	c.first, c.rest = all[0], all[1:]
	return true
}

// whole says whether [0, n) is covered.
func (c *coverage) whole(n uint32) bool { return len(c.rest) == 0 && c.first == span{0, n} }
