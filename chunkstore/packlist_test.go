package chunkstore

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// A PackList knows what a map knows, in whatever order it is told.
func TestPackList(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 3))
		var l PackList
		want := map[PackRef]int64{}
		shuffled := seed%3 == 0
		ref := func() (p PackRef) {
			p.Session[0], p.Hash[0], p.Hash[31] = byte(r.IntN(4)), byte(r.IntN(16)), byte(r.IntN(4))
			return p
		}
		var refs []PackRef
		for range r.IntN(200) {
			p := ref()
			if _, ok := want[p]; !ok {
				want[p] = r.Int64N(1 << 27)
				refs = append(refs, p)
			}
		}
		if !shuffled {
			slices.SortFunc(refs, func(a, b PackRef) int { return strings.Compare(PackText(a), PackText(b)) })
		}
		for _, p := range refs {
			l.Add(p, want[p])
			l.Add(p, 7) // it stays as it is
		}
		if l.Len() != len(want) {
			t.Fatalf("seed %d: %d packs, want %d", seed, l.Len(), len(want))
		}
		next := 0
		for n, p := range l.All() {
			if n != next || l.At(n) != p || want[p.Ref] != p.Size {
				t.Fatalf("seed %d: number %d of %d: %v, %v", seed, n, next, p, l.At(n))
			}
			if !shuffled && p.Ref != refs[n] {
				t.Fatalf("seed %d: number %d is not in order", seed, n)
			}
			next++
		}
		for range 100 {
			p := ref()
			size, ok := l.Size(p)
			if w, there := want[p]; ok != there || size != w {
				t.Fatalf("seed %d: %v %v, want %v %v", seed, size, ok, w, there)
			}
		}
	}
}

// A pack takes no more than 48 bytes in a PackList, 45 of them and fewer when
// all is listed.
func TestPackListMemory(t *testing.T) {
	const sessions, packs = 100, 2000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var l PackList
	for s := range sessions {
		for n := range packs {
			var r PackRef
			r.Session[0], r.Hash[0], r.Hash[1] = byte(s), byte(n>>8), byte(n)
			l.Add(r, 16<<20)
		}
	}
	if each := (heap() - before) / (sessions * packs); each > 48 || l.Len() != sessions*packs {
		t.Errorf("a pack takes %d bytes", each)
	}
	runtime.KeepAlive(&l)
}
