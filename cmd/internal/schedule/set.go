package schedule

import "math/bits"

// set is a set of small numbers, 0 to 255.
type set [4]uint64

func (s *set) add(n int)     { s[n>>6] |= 1 << (n & 63) }
func (s set) has(n int) bool { return n >= 0 && n < 256 && s[n>>6]&(1<<(n&63)) != 0 }

func (s set) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// list gives the members in order.
func (s set) list() []int {
	out := make([]int, 0, s.count())
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			out = append(out, i<<6+bits.TrailingZeros64(w))
		}
	}
	return out
}

// span is the set of lo, lo+step, … up to hi.
func span(lo, hi, step int) (s set) {
	for n := lo; n <= hi; n += step {
		s.add(n)
	}
	return s
}

func (s set) or(o set) set {
	for i := range s {
		s[i] |= o[i]
	}
	return s
}
