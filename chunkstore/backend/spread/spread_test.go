package spread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/backendtest"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/backend/mem"
)

// errDown is what a test's broken place answers.
var errDown = errors.New("down")

// cluster is places in memory, and a way to break them.
type cluster struct {
	*Spread
	places []*mem.Place
	down   atomic.Uint32 // places that fail every operation
	frozen atomic.Uint32 // places that fail every change
	ops    sync.Map      // "op name" → *atomic.Int64
}

func newCluster(t testing.TB, n int, shards Shards) *cluster {
	t.Helper()
	c := &cluster{}
	for i := range n {
		p := mem.New()
		p.Fault = func(op, name string) error {
			v, _ := c.ops.LoadOrStore(op, new(atomic.Int64))
			v.(*atomic.Int64).Add(1)
			if c.down.Load()&(1<<i) != 0 || c.frozen.Load()&(1<<i) != 0 && (op == "put" || op == "delete") {
				return fmt.Errorf("%s %s: %w", op, name, errDown)
			}
			return nil
		}
		c.places = append(c.places, p)
	}
	c.Spread = c.open(t, shards)
	return c
}

// open gives another host's view of the same places.
func (c *cluster) open(t testing.TB, shards Shards) *Spread {
	t.Helper()
	var members []Member
	for i, p := range c.places {
		members = append(members, Member{ID: fmt.Sprintf("%032d", i), Spec: fmt.Sprintf("/p%d", i), Place: p})
	}
	isAbort := func(_ string, head []byte) bool { return bytes.HasPrefix(head, []byte("an abort")) }
	s, err := New(members, shards, Options{Strict: isAbort})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *cluster) count(op string) int64 {
	v, ok := c.ops.Load(op)
	if !ok {
		return 0
	}
	return v.(*atomic.Int64).Load()
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestContract(t *testing.T) {
	for _, s := range []struct {
		n      int
		shards Shards
	}{{6, Shards{4, 2}}, {1, Shards{4, 2}}, {3, Shards{2, 1}}, {3, Shards{1, 2}}} {
		t.Run(fmt.Sprintf("%d places %s", s.n, s.shards), func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backend.Backend { return newCluster(t, s.n, s.shards).Spread })
		})
	}
	t.Run("local", func(t *testing.T) {
		backendtest.Run(t, func(t *testing.T) backend.Backend {
			var members []Member
			for i := range 6 {
				d, err := local.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
				if err != nil {
					t.Fatal(err)
				}
				members = append(members, Member{ID: fmt.Sprint(i), Spec: fmt.Sprint(i), Place: d})
			}
			s, err := New(members, Shards{4, 2}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		})
	})
}

// subsetsOf calls f for each set of at most m of n places.
func subsetsOf(n, m int, f func(set uint32)) {
	for set := range uint32(1) << n {
		if bits.OnesCount32(set) <= m {
			f(set)
		}
	}
}

// With any two of six places gone every pack and every control object reads
// back, ranges too, and the reads are counted.
func TestAnyPlacesGone(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	packs := map[string][]byte{}
	for i, n := range []int{1, 3, 4, 4097, 300_000, 1<<20 + 17} {
		packs[fmt.Sprintf("packs/s/%d", i)] = random(uint64(i), n)
	}
	for name, b := range packs {
		if err := c.Put(ctx, name, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Put(ctx, "points/a", []byte("a commit")); err != nil {
		t.Fatal(err)
	}
	sets := 0
	subsetsOf(6, 2, func(set uint32) {
		sets++
		c.down.Store(set)
		s := c.open(t, Shards{4, 2})
		for name, want := range packs {
			got, err := backend.Get(ctx, s, name, 1<<30)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("without %06b: %s: %v", set, name, err)
			}
			r := rand.New(rand.NewPCG(uint64(set), 3))
			for range 20 {
				off := r.IntN(len(want))
				p := make([]byte, r.IntN(len(want)-off)+1)
				if err := s.ReadAt(ctx, name, p, int64(off)); err != nil || !bytes.Equal(p, want[off:off+len(p)]) {
					t.Fatalf("without %06b: %s at %d: %v", set, name, off, err)
				}
			}
		}
		if b, err := backend.Get(ctx, s, "points/a", 100); err != nil || string(b) != "a commit" {
			t.Fatalf("without %06b: %q, %v", set, b, err)
		}
		n := 0
		if err := s.List(ctx, "packs/", func(backend.Object) error { n++; return nil }); err != nil || n != len(packs) {
			t.Fatalf("without %06b: listed %d, %v", set, n, err)
		}
		if set != 0 && s.ParityReads() == 0 {
			t.Errorf("without %06b: no read was served from parity", set)
		}
		if set != 0 && len(s.Warnings()) == 0 {
			t.Errorf("without %06b: no warning", set)
		}
		if set == 0 && s.ParityReads() != 0 {
			t.Errorf("%d reads were served from parity with all places there", s.ParityReads())
		}
	})
	if sets != 22 {
		t.Errorf("%d sets", sets)
	}
	c.down.Store(0b111)
	if _, err := backend.Get(ctx, c.open(t, Shards{4, 2}), "packs/s/4", 1<<30); !errors.Is(err, ErrAway) || errors.Is(err, backend.ErrNotExist) {
		t.Errorf("with three places gone: %v", err)
	}
	if _, err := c.open(t, Shards{4, 2}).Size(ctx, "points/none"); errors.Is(err, backend.ErrNotExist) != (c.leastQuorum() <= 3) {
		t.Errorf("with three places gone: %v", err)
	}
}

// A range read of a known pack reads one shard: one read, of the blocks
// around it.
func TestRangeReadsOneShard(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	data := random(1, 4<<20)
	if err := c.Put(ctx, "packs/s/x", data); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1 << 20, 3<<20 + 5} { // the shards' headers
		if err := c.ReadAt(ctx, "packs/s/x", make([]byte, 1), off); err != nil {
			t.Fatal(err)
		}
	}
	before := c.count("read")
	p := make([]byte, 100_000)
	if err := c.ReadAt(ctx, "packs/s/x", p, 1<<20+70_000); err != nil || !bytes.Equal(p, data[1<<20+70_000:][:len(p)]) {
		t.Fatal(err)
	}
	if n := c.count("read") - before; n != 1 {
		t.Errorf("%d reads for a range in one shard", n)
	}
	cold := c.open(t, Shards{4, 2})
	before = c.count("read")
	if _, err := cold.Size(ctx, "packs/s/x"); err != nil {
		t.Fatal(err)
	}
	if err := cold.ReadAt(ctx, "packs/s/x", p, 4<<20-int64(len(p))); err != nil {
		t.Fatal(err)
	}
	if n := c.count("read") - before; n != 2 {
		t.Errorf("%d reads for a pack's footer, want the header's and the footer's", n)
	}
}

// Each bit of a header, and bits all over the shard, flipped: detected, named,
// and the read is served from parity.
func TestFlippedBits(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	data := random(2, 900_000)
	const name = "packs/s/x"
	if err := c.Put(ctx, name, data); err != nil {
		t.Fatal(err)
	}
	g := newGeometry(4, 2, int64(len(data)))
	order := c.order(name)
	var positions []int
	for i := range g.headerSize() {
		positions = append(positions, i)
	}
	for i := g.headerSize(); i < int(g.objectSize()); i += 997 {
		positions = append(positions, i)
	}
	positions = append(positions, int(g.objectSize())-1)
	for n, at := range positions {
		i := n % 6
		flip := func(b []byte) []byte { b[at] ^= 1 << (n % 8); return b }
		c.places[order[i]].Damage(shardName(name, i), flip)
		s := c.open(t, Shards{4, 2})
		got, err := backend.Get(ctx, s, name, 1<<30)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("shard %d, byte %d: %v", i, at, err)
		}
		if i < 4 && s.ParityReads() == 0 {
			t.Fatalf("shard %d, byte %d: the flip was not noticed", i, at)
		}
		found, err := s.Audit(ctx, true, Part{}, nil)
		if err != nil || len(found) != 1 || found[0].Object != shardName(name, i) || found[0].Place != c.members[order[i]].Spec {
			t.Fatalf("shard %d, byte %d: audit: %v, %v", i, at, found, err)
		}
		c.places[order[i]].Damage(shardName(name, i), flip)
	}
	if found, err := c.Audit(ctx, true, Part{}, nil); err != nil || len(found) > 0 {
		t.Errorf("restored: %v, %v", found, err)
	}
}

// A place that answers with another object's shard, an empty one, a cut one,
// an older one, or one that it made itself, is found out; packs whose names
// are hashes read true.
func TestLyingPlace(t *testing.T) {
	ctx := t.Context()
	for kind, lie := range map[string]func(good, other []byte) []byte{
		"swapped": func(_, other []byte) []byte { return other },
		"empty":   func(_, _ []byte) []byte { return nil },
		"cut":     func(good, _ []byte) []byte { return good[:len(good)-1] },
		"longer":  func(good, _ []byte) []byte { return append(good, 0) },
		"invented": func(good, _ []byte) []byte {
			h, err := parseHeader(good)
			if err != nil {
				t.Fatal(err)
			}
			good[h.headerSize()] ^= 1
			return reseal(h, good)
		},
	} {
		c := newCluster(t, 6, Shards{4, 2})
		data, other := random(3, 500_000), random(4, 500_000)
		name, name2 := hashName(data), hashName(other)
		for n, b := range map[string][]byte{name: data, name2: other} {
			if err := c.Put(ctx, n, b); err != nil {
				t.Fatal(err)
			}
		}
		order, order2 := c.order(name), c.order(name2)
		foreign := make([]byte, newGeometry(4, 2, int64(len(other))).objectSize())
		if err := c.places[order2[1]].ReadAt(ctx, shardName(name2, 1), foreign, 0); err != nil {
			t.Fatal(err)
		}
		c.places[order[1]].Damage(shardName(name, 1), func(b []byte) []byte { return lie(b, foreign) })
		s := c.open(t, Shards{4, 2})
		got, err := backend.Get(ctx, s, name, 1<<30)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: %v", kind, err)
		}
		found, err := s.Audit(ctx, true, Part{}, nil)
		if err != nil || len(found) != 1 || found[0].Place != c.members[order[1]].Spec {
			t.Errorf("%s: audit: %v, %v", kind, found, err)
		}
		r, err := s.Repair(ctx, RepairOptions{ReadAll: true})
		if err != nil || r.Replaced != 1 || !r.Whole() {
			t.Errorf("%s: repair: %+v, %v", kind, r, err)
		}
		if found, err = s.Audit(ctx, true, Part{}, nil); err != nil || len(found) > 0 {
			t.Errorf("%s: after repair: %v, %v", kind, found, err)
		}
	}
}

// reseal makes a shard object's checksums fit its bytes.
func reseal(h *header, object []byte) []byte {
	body := object[h.headerSize():]
	for n := range h.sums {
		h.sums[n] = blakeSum(body[n*blockSize : min((n+1)*blockSize, len(body))])
	}
	h.encode(object)
	return object
}

// With fewer than k places nothing is stored, and the error says what to do.
func TestTooFewPlaces(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	c.frozen.Store(0b000111)
	for _, name := range []string{"packs/s/x", "points/x"} {
		err := c.Put(ctx, name, random(1, 1000))
		if !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "/p1") || !strings.Contains(err.Error(), "cairn place replace") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.frozen.Store(0)
	if err := c.Put(ctx, "packs/s/x", random(1, 1000)); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := c.Put(ctx, "points/x", random(1, 1000)); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := c.Put(ctx, "points/x", random(2, 1000)); !errors.Is(err, backend.ErrExist) {
		t.Errorf("another: %v", err)
	}
}

// hang blocks every operation of a place until released.
type hang struct {
	backend.Backend
	on   atomic.Bool
	free chan struct{}
}

func (h *hang) block() {
	if h.on.Load() {
		<-h.free
	}
}

func (h *hang) Put(ctx context.Context, name string, data []byte) error {
	h.block()
	return h.Backend.Put(ctx, name, data)
}

func (h *hang) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	h.block()
	return h.Backend.ReadAt(ctx, name, p, off)
}

func (h *hang) Size(ctx context.Context, name string) (int64, error) {
	h.block()
	return h.Backend.Size(ctx, name)
}

func (h *hang) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	h.block()
	return h.Backend.List(ctx, prefix, fn)
}

// A place that hangs holds nothing up for longer than its limit, is passed
// over then, and is tried again later.
func TestHungPlace(t *testing.T) {
	ctx := t.Context()
	h := &hang{Backend: mem.New(), free: make(chan struct{})}
	now := time.Unix(0, 0)
	var mu sync.Mutex
	o := Options{PutLimit: time.Second, ReadLimit: time.Second, Backoff: time.Hour, Leave: time.Millisecond,
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }}
	var members []Member
	for i := range 6 {
		members = append(members, Member{ID: fmt.Sprint(i), Spec: fmt.Sprintf("/p%d", i), Place: mem.New()})
	}
	members[2].Place = h
	s, err := New(members, Shards{4, 2}, o)
	if err != nil {
		t.Fatal(err)
	}
	data := random(5, 200_000)
	put := func(i int) {
		t.Helper()
		for _, name := range []string{fmt.Sprintf("packs/s/%d", i), fmt.Sprintf("points/%d", i)} {
			if err := s.Put(ctx, name, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(0)
	h.on.Store(true)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { put(i + 1) })
	}
	wg.Wait()
	for i := range 21 {
		if got, err := backend.Get(ctx, s, fmt.Sprintf("packs/s/%d", i), 1<<30); err != nil || !bytes.Equal(got, data) {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("20 puts and reads beside a hung place took %s", took)
	}
	if !s.members[2].away() || !s.Degraded() {
		t.Error("the hung place counts as there")
	}
	h.on.Store(false)
	close(h.free)
	for s.members[2].hangs(0); ; time.Sleep(time.Millisecond) {
		s.members[2].mu.Lock()
		n := s.members[2].hanging
		s.members[2].mu.Unlock()
		if n == 0 {
			break
		}
	}
	mu.Lock()
	now = now.Add(time.Hour + time.Second)
	mu.Unlock()
	if r, err := s.Repair(ctx, RepairOptions{}); err != nil || !r.Whole() {
		t.Errorf("repair: %+v, %v", r, err)
	}
	if s.members[2].away() {
		t.Error("the place answers again and counts as away")
	}
	if found, err := s.Audit(ctx, true, Part{}, nil); err != nil || len(found) > 0 {
		t.Errorf("audit: %v, %v", found, err)
	}
}

// One place with parity: damage to any two shards is mended.
func TestOnePlace(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 1, Shards{4, 2})
	data := random(6, 300_000)
	name := hashName(data)
	if err := c.Put(ctx, name, data); err != nil {
		t.Fatal(err)
	}
	subsetsOf(6, 2, func(set uint32) {
		for i := range 6 {
			if set&(1<<i) != 0 {
				c.places[0].Damage(shardName(name, i), func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
			}
		}
		s := c.open(t, Shards{4, 2})
		if got, err := backend.Get(ctx, s, name, 1<<30); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%06b: %v", set, err)
		}
		r, err := s.Repair(ctx, RepairOptions{ReadAll: true})
		if err != nil || r.Replaced != bits.OnesCount32(set) || !r.Whole() {
			t.Fatalf("%06b: repair: %+v, %v", set, r, err)
		}
	})
	// A shard that cannot be stored: there is no other place.
	c.places[0].Fault = func(op, name string) error {
		if op == "put" && strings.HasSuffix(name, ".3") {
			return backend.ErrNoSpace
		}
		return nil
	}
	if err := c.Put(ctx, hashName(data[1:]), data[1:]); !errors.Is(err, backend.ErrNoSpace) {
		t.Errorf("a full place: %v", err)
	}
}
