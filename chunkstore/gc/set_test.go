package gc

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A set is what a map of numbers is, as spans and as bits.
func TestSet(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var s set
		want := map[int]bool{}
		for range 1 + r.IntN(300) {
			first, count := r.IntN(2000), 1+r.IntN(20)
			fresh := false
			for i := first; i < first+count; i++ {
				fresh = fresh || !want[i]
				want[i] = true
			}
			if got := s.add(first, count); got != fresh {
				t.Fatalf("seed %d: add(%d, %d) = %v", seed, first, count, got)
			}
		}
		var numbers, got []int
		for n := range want {
			numbers = append(numbers, n)
		}
		slices.Sort(numbers)
		last := -1
		s.each(func(first, count int) bool {
			if first <= last {
				t.Fatalf("seed %d: stretches touch", seed)
			}
			last = first + count
			for i := first; i < first+count; i++ {
				got = append(got, i)
			}
			return true
		})
		if !slices.Equal(got, numbers) || s.len() != len(numbers) {
			t.Fatalf("seed %d: %d numbers, want %d", seed, len(got), len(numbers))
		}
		for i := range 2100 {
			if s.has(i) != want[i] {
				t.Fatalf("seed %d: has(%d) = %v", seed, i, s.has(i))
			}
		}
	}
}
