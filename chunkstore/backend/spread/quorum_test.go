package spread

import (
	"errors"
	"fmt"
	"math/bits"
	"testing"

	"cairn/chunkstore/backend"
)

// models are the quorums of every k+m of up to six places.
func models(f func(k, m int)) {
	for n := 2; n <= 6; n++ {
		for m := 1; m < n; m++ {
			f(n-m, m)
		}
	}
}

// Every set of places that decides a commit meets every one that decides an
// abort, two of those meet, and what is decided is seen by whoever asks as
// many places as a listing needs: all subsets, by counting them out.
func TestQuorumsMeet(t *testing.T) {
	models(func(k, m int) {
		n := k + m
		s := &Spread{shards: Shards{k, m}, members: make([]*member, n)}
		commit, strict, seen, least := s.commitQuorum(), s.strictQuorum(), s.seenQuorum(), s.leastQuorum()
		for a := range uint32(1) << n {
			for b := range uint32(1) << n {
				if a&b != 0 {
					continue
				}
				na, nb := bits.OnesCount32(a), bits.OnesCount32(b)
				if na >= commit && nb >= strict {
					t.Errorf("%d+%d: a commit on %b and an abort on %b", k, m, a, b)
				}
				if na >= strict && nb >= strict {
					t.Errorf("%d+%d: two aborts, on %b and %b", k, m, a, b)
				}
				if na >= strict && nb >= least {
					t.Errorf("%d+%d: strictly decided on %b, and not seen from %b", k, m, a, b)
				}
				if (na >= commit || na >= strict) && nb >= seen {
					t.Errorf("%d+%d: decided on %b, and not seen from %b", k, m, a, b)
				}
			}
		}
		if least > n-m {
			t.Errorf("%d+%d: with m places gone nothing can be listed", k, m)
		}
	})
}

// The code itself, for all sets of places that fail at the commit and at the
// abort, whoever is first: at most one of them is told that it is decided, the
// reader then sees that one, and when all places are back one of the two can
// be decided, by a retry or by repair.
func TestCommitOrAbort(t *testing.T) {
	models(func(k, m int) {
		n := k + m
		if n > 4 && (testing.Short() || k != 4 || m > 2) { // 16,384 runs of the others took 50 s and showed nothing new
			return
		}
		for downC := range uint32(1) << n {
			for downA := range uint32(1) << n {
				for _, commitFirst := range []bool{true, false} {
					commitOrAbort(t, k, m, downC, downA, commitFirst)
				}
			}
		}
	})
}

func commitOrAbort(t *testing.T, k, m int, downC, downA uint32, commitFirst bool) {
	t.Helper()
	ctx := t.Context()
	c := newCluster(t, k+m, Shards{k, m})
	other := c.open(t, Shards{k, m})
	const name = "points/s"
	var committed, aborted error
	commit := func() {
		c.frozen.Store(downC)
		committed = c.Put(ctx, name, []byte("a commit"))
	}
	abort := func() {
		c.frozen.Store(downA)
		aborted = other.PutStrict(ctx, name, []byte("an abort!"))
	}
	if commitFirst {
		commit()
		abort()
	} else {
		abort()
		commit()
	}
	what := fmt.Sprintf("%d+%d, commit without %b, abort without %b, commit first %v: %v, %v", k, m, downC, downA, commitFirst, committed, aborted)
	if committed == nil && aborted == nil {
		t.Fatalf("both decided: %s", what)
	}
	c.frozen.Store(0)
	reader := c.open(t, Shards{k, m})
	got, err := backend.Get(ctx, reader, name, 100)
	if (committed == nil && string(got) != "a commit") || (aborted == nil && string(got) != "an abort!") {
		t.Fatalf("read %q, %v: %s", got, err, what)
	}
	if errors.Is(err, backend.ErrNotExist) {
		return // neither stored anything
	}
	if _, err := reader.Repair(ctx, RepairOptions{}); err != nil {
		t.Fatalf("repair: %v: %s", err, what)
	}
	again, againA := reader.Put(ctx, name, []byte("a commit")), reader.PutStrict(ctx, name, []byte("an abort!"))
	if (again == nil) == (againA == nil) || committed == nil && again != nil || aborted == nil && againA != nil {
		t.Fatalf("after all are back: %v, %v: %s", again, againA, what)
	}
}

// A commit, an abort and the commit's retry, each with its own places down:
// the two are never both told that they are decided.
func TestCommitAbortRetry(t *testing.T) {
	models(func(k, m int) {
		n := k + m
		if n > 4 {
			return
		}
		for set := range uint32(1) << (3 * n) {
			c := newCluster(t, n, Shards{k, m})
			other := c.open(t, Shards{k, m})
			one := uint32(1)<<n - 1
			c.frozen.Store(set & one)
			first := c.Put(t.Context(), "points/s", []byte("a commit"))
			c.frozen.Store(set >> n & one)
			abort := other.PutStrict(t.Context(), "points/s", []byte("an abort!"))
			c.frozen.Store(set >> (2 * n) & one)
			retry := c.Put(t.Context(), "points/s", []byte("a commit"))
			if (first == nil || retry == nil) && abort == nil {
				t.Fatalf("%d+%d, down %b: %v, %v, %v", k, m, set, first, abort, retry)
			}
		}
	})
}

// What was read undecided is decided before anything strict is put, or
// nothing is.
func TestStrictSettlesFirst(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	c.frozen.Store(0b111110)
	if err := c.places[0].Put(ctx, "drops/x", []byte("a drop")); err != nil { // what a dead writer left
		t.Fatal(err)
	}
	s := c.open(t, Shards{4, 2})
	n := 0
	if err := s.List(ctx, "drops/", func(backend.Object) error { n++; return nil }); err != nil || n != 1 {
		t.Fatalf("listed %d, %v", n, err)
	}
	if err := s.PutStrict(ctx, "gc/1/final", []byte("a list")); err == nil {
		t.Error("a list was decided that rests on a drop which is not")
	}
	c.frozen.Store(0)
	if err := s.PutStrict(ctx, "gc/1/final", []byte("a list")); err != nil {
		t.Error(err)
	}
	if v := s.compare(ctx, "drops/x"); len(v.on) < s.settledQuorum() {
		t.Errorf("the drop is on %d places", len(v.on))
	}
}
