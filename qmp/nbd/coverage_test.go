package nbd

import (
	"math/rand/v2"
	"testing"
)

// TestCoverageAgainstBytes compares coverage with a plain array of marks.
func TestCoverageAgainstBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 500 {
		const size = 64
		var c coverage
		var marks [size]bool
		for range 40 {
			off := uint32(random.IntN(size))
			n := 1 + uint32(random.IntN(int(min(size-off, 6))))
			free, all := true, true
			for i := off; i < off+n; i++ {
				free = free && !marks[i]
			}
			if got := c.add(off, n); got != free {
				t.Fatalf("round %d: add(%d, %d) is %v, want %v, in %v", round, off, n, got, free, marks)
			}
			for i := off; i < off+n && free; i++ {
				marks[i] = true
			}
			for _, m := range marks {
				all = all && m
			}
			if c.whole(size) != all {
				t.Fatalf("round %d: whole is %v, want %v", round, !all, all)
			}
		}
	}
}
