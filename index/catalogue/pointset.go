package catalogue

import "sort"

// pointSet is a set of points, by their indexes in a list: ranges that ascend and
// do not touch. Versions of a file live in few ranges, however many points
// there are. A pointSet is never changed.
type pointSet []pointRange

// pointRange is first to last, both in it.
type pointRange struct{ lo, hi int32 }

func only(i int) pointSet { return pointSet{{int32(i), int32(i)}} }

func (s pointSet) first() int { return int(s[0].lo) }

func (s pointSet) last() int { return int(s[len(s)-1].hi) }

func (s pointSet) count() (n int) {
	for _, r := range s {
		n += int(r.hi-r.lo) + 1
	}
	return n
}

func (s pointSet) has(i int) bool {
	at := sort.Search(len(s), func(k int) bool { return int(s[k].hi) >= i })
	return at < len(s) && int(s[at].lo) <= i
}

// each calls fn for every index, ascending.
func (s pointSet) each(fn func(i int)) {
	for _, r := range s {
		for i := r.lo; i <= r.hi; i++ {
			fn(int(i))
		}
	}
}

// and gives what is in both.
func (s pointSet) and(t pointSet) pointSet {
	var out pointSet
	for i, j := 0, 0; i < len(s) && j < len(t); {
		if lo, hi := max(s[i].lo, t[j].lo), min(s[i].hi, t[j].hi); lo <= hi {
			out = append(out, pointRange{lo, hi})
		}
		if s[i].hi < t[j].hi {
			i++
		} else {
			j++
		}
	}
	return out
}

// or gives what is in either.
func (s pointSet) or(t pointSet) pointSet {
	switch {
	case len(s) == 0:
		return t
	case len(t) == 0:
		return s
	}
	out := make(pointSet, 0, len(s)+len(t))
	add := func(r pointRange) {
		if n := len(out); n > 0 && out[n-1].hi+1 >= r.lo {
			out[n-1].hi = max(out[n-1].hi, r.hi)
			return
		}
		out = append(out, r)
	}
	for len(s) > 0 || len(t) > 0 {
		if len(t) == 0 || len(s) > 0 && s[0].lo <= t[0].lo {
			add(s[0])
			s = s[1:]
		} else {
			add(t[0])
			t = t[1:]
		}
	}
	return out
}
