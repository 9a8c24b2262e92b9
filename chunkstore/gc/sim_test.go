package gc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/chunkstoretest"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// The simulation: the real Session, the real Store and the real collector, as
// actors of their own, on one store in memory. Each call to the store is one
// step; who makes the next is drawn by a seed. Actors crash before and behind
// calls, answers are lost, puts arrive twice, the second time much later.

const (
	simContents = 48 // different chunks there are
	simLeaves   = 3  // of a point, at most
	simBlocks   = 4  // chunks of a leaf
	simVMs      = 2
	simKept     = 3 // points, when one may be forgotten
	simWaiting  = 2
	// A schedule begins with one of simBases repositories in the middle of
	// their lives, mostly of a collection, which is some hundreds of calls.
	// After simEra schedules they are others: what a schedule can meet hangs
	// on what it began with.
	simBases     = 24
	simEra       = 500
	simBaseSteps = 900
	simSteps     = 600
	simLong      = 1600 // of one schedule in simLongs: only such a one copies many packs
	simLongs     = 12
	simQuiet     = 3 // one schedule in so many ends with quiet collections
)

var (
	errCrashed = errors.New("the actor crashed")
	errLost    = errors.New("the answer was lost")
)

// sim is one schedule.
type sim struct {
	sets   int64 // Options.sets
	rnd    *rand.Rand
	place  *mem.Place
	keys   *seal.Keyring
	config *chunkstore.Config
	actors []*actor
	index  chunkstoretest.Index
	chunks [simContents][]byte
	leaves int // of a point
	steps  int
	length int      // of the schedule, in steps
	late   []func() // puts that arrive again
	mirror *mem.Place
	rots   bool            // the place damages and loses objects
	hurt   map[string]bool // which, until they were mended

	points  []*simPoint
	by      [simVMs][]*simPoint
	counts  map[string]int
	problem error
	log     func(string)   // nil: nobody wants to know
	born    map[string]int // when objects were put; of a mutant
}

// simPoint is a point that was confirmed, and what it holds.
type simPoint struct {
	id      chunk.SessionID
	content [simLeaves * simBlocks]int
	dropped bool // or may be
}

// actor is one process on one host.
type actor struct {
	s       *sim
	name    string
	run     func(ctx context.Context, a *actor) error
	place   backend.Backend // what it sees of the store
	ask     chan struct{}   // it wants a step
	grant   chan struct{}
	ended   chan struct{}
	crashed bool
	asleep  int // until this step
	err     error
	store   *chunkstore.Store // of this run
	reader  *chunkstore.Reader
}

// open opens the repository anew, as a new process does.
func (a *actor) open() *chunkstore.Store {
	a.store = chunkstore.NewStore(a.place, a.s.config, a.s.keys)
	a.reader = a.store.NewReader(simCache)
	return a.store
}

// turn waits for the actor's next step.
func (a *actor) turn() error {
	a.ask <- struct{}{}
	<-a.grant
	if a.crashed {
		return errCrashed
	}
	return nil
}

// simWorld is what all schedules share: keys, chunks that the index samples,
// all of them, and repositories to begin with.
type simWorld struct {
	keys   *seal.Keyring
	chunks [simContents][]byte
	era    uint64
	bases  []*sim // of the era
}

func newWorld(t *testing.T) *simWorld {
	cryptotest.SetGlobalRandom(t, 0)
	keys, err := seal.NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	w := &simWorld{keys: keys.WithPackKeys(chunkstoretest.PackKeys{})}
	h := chunk.NewHasher(keys.ChunkID)
	for i, rnd := 0, rand.NewChaCha8([32]byte{}); i < simContents; {
		b := make([]byte, chunk.Size)
		_, _ = rnd.Read(b) // nothing to compress, which costs
		if h.Sum(b).IsHook() {
			w.chunks[i] = b
			i++
		}
	}
	return w
}

// enter makes the repositories that the schedules of a seed's era begin with.
func (w *simWorld) enter(t *testing.T, seed uint64) {
	era := seed / simEra
	if w.era == era && w.bases != nil {
		return
	}
	w.era, w.bases = era, nil
	for i := range simBases { // each in the middle of whatever went on
		s := w.newSim(t, era<<48|uint64(i)<<40, nil)
		s.length = simBaseSteps / simBases * (i + 1)
		if i%2 == 0 { // a collection of few calls ends in more schedules
			s.leaves = 1
		}
		s.run(context.Background())
		if s.problem != nil {
			t.Fatalf("base %d: %v", i, s.problem)
		}
		w.bases = append(w.bases, s)
	}
}

// onTopOf begins where another schedule ended.
func (s *sim) onTopOf(base *sim) {
	s.leaves = base.leaves
	s.place, s.mirror = base.place.Clone(), base.mirror.Clone()
	for id, refs := range base.index {
		s.index[id] = slices.Clone(refs)
	}
	copies := map[*simPoint]*simPoint{}
	for _, p := range base.points {
		c := *p
		copies[p] = &c
		s.points = append(s.points, &c)
	}
	for vm, list := range base.by {
		for _, p := range list {
			s.by[vm] = append(s.by[vm], copies[p])
		}
	}
}

// mutation changes what an actor sees of the store, so that a rule of the
// protocol does not hold.
type mutation func(a *actor, p backend.Backend) backend.Backend

// newSim makes one schedule.
func (w *simWorld) newSim(t *testing.T, seed uint64, m mutation) *sim {
	cryptotest.SetGlobalRandom(t, seed)
	s := &sim{rnd: rand.New(rand.NewPCG(seed, 2)), place: mem.New(), mirror: mem.New(), keys: w.keys, config: &chunkstore.Config{ID: strings.Repeat("00", 16)},
		index: chunkstoretest.Index{}, chunks: w.chunks, counts: map[string]int{}, hurt: map[string]bool{}, length: simSteps, leaves: simLeaves}
	if len(w.bases) == simBases {
		s.onTopOf(w.bases[s.rnd.IntN(simBases)])
		s.rots = s.rnd.IntN(4) == 0
		if s.rnd.IntN(simLongs) == 0 {
			s.length = simLong
		}
	}
	// The place's clock is of no use to anybody.
	s.place.Now = func() time.Time { return time.Unix(1e9+s.rnd.Int64N(1e9), 0) }
	add := func(name string, run func(context.Context, *actor) error) {
		a := &actor{s: s, name: name, run: run, ask: make(chan struct{}), grant: make(chan struct{}), ended: make(chan struct{})}
		a.place = simPlace{a}
		if m != nil {
			a.place = m(a, a.place)
		}
		s.actors = append(s.actors, a)
	}
	for vm := range simVMs {
		add(fmt.Sprint("writer ", vm), func(ctx context.Context, a *actor) error { return a.backup(ctx, vm) })
	}
	add("collector 0", collectOnce)
	add("collector 1", collectOnce)
	add("forgetter", forget)
	if s.rots {
		add("repair", mend)
	}
	return s
}

// simReading is a host that only reads, and what it has read: points share
// most of their leaves.
type simReading struct {
	store  *chunkstore.Store
	reader *chunkstore.Reader
	ids    *chunkstore.IDReader
	hasher *chunk.Hasher
	buf    []byte // of one chunk
	leaves map[simBlock][]simBlock
	chunks map[simBlock]int // which of sim.chunks is there
}

func (s *sim) reading() simReading {
	store := chunkstore.NewStore(s.place, s.config, s.keys)
	return simReading{store, store.NewReader(simCache), store.NewIDReader(), chunk.NewHasher(s.keys.ChunkID), make([]byte, chunk.Size), map[simBlock][]simBlock{}, map[simBlock]int{}}
}

// simCache is the frames that a reader keeps, in bytes.
const simCache = 1 << 20

// readable reads a point as a reader on another host would, outside of the
// schedule.
func (s *sim) readable(from simReading, p *simPoint) error {
	ctx := context.Background()
	raw, err := from.store.ReadCommit(ctx, p.id)
	if err != nil {
		return err
	}
	leaves, err := decodeBlocks(raw)
	if err != nil {
		return err
	}
	if len(leaves) != s.leaves {
		return fmt.Errorf("%d leaves", len(leaves))
	}
	for i, leaf := range leaves {
		blocks, ok := from.leaves[leaf]
		if !ok {
			if blocks, err = readLeaf(ctx, from.reader, leaf); err != nil {
				return fmt.Errorf("leaf %d: %w", i, err)
			}
			from.leaves[leaf] = blocks
		}
		if len(blocks) != simBlocks {
			return fmt.Errorf("leaf %d has %d chunks", i, len(blocks))
		}
		for j, b := range blocks {
			want := p.content[i*simBlocks+j]
			if c, ok := from.chunks[b]; ok && c == want {
				continue
			}
			if err := from.is(ctx, b, s.chunks[want]); err != nil {
				return fmt.Errorf("leaf %d, chunk %d: %w", i, j, err)
			}
			from.chunks[b] = want
		}
	}
	return nil
}

// is says that a chunk is not what it should be.
func (from simReading) is(ctx context.Context, b simBlock, want []byte) error {
	id := make([]chunk.ID, 1)
	if err := from.reader.ReadChunks(ctx, b.ref, b.n, from.buf); err != nil {
		return err
	}
	if !bytes.Equal(from.buf, want) {
		return errors.New("other bytes")
	}
	if err := from.ids.ReadIDs(ctx, b.ref, b.n, id); err != nil || id[0] != from.hasher.Sum(from.buf) {
		return fmt.Errorf("another's ID: %w", err)
	}
	return nil
}

// play runs the schedule to its end, and checks what is left.
func (s *sim) play() error {
	ctx := context.Background()
	s.run(ctx)
	for _, again := range s.late {
		again()
	}
	if s.problem != nil {
		return s.problem
	}
	if err := s.mendAll(ctx); err != nil {
		return err
	}
	if err := s.check("at the end"); err != nil {
		return err
	}
	if s.rnd.IntN(simQuiet) > 0 {
		return nil
	}
	return s.quiet(ctx)
}

// run runs the schedule until all hosts lose power.
func (s *sim) run(ctx context.Context) {
	for _, a := range s.actors {
		s.start(ctx, a)
	}
	for s.steps = 0; s.steps < s.length && s.problem == nil; s.steps++ {
		if len(s.late) > 0 && s.rnd.IntN(20) == 0 {
			i := s.rnd.IntN(len(s.late))
			s.late[i]()
			s.late = slices.Delete(s.late, i, i+1)
		}
		if s.rots && s.rnd.IntN(100) == 0 {
			s.rot(ctx)
		}
		a := s.actors[s.rnd.IntN(len(s.actors))]
		if s.rnd.IntN(3) == 0 {
			a = s.actors[simVMs+s.rnd.IntN(2)] // a collection takes more calls than a backup
		}
		if a.asleep > s.steps {
			continue
		}
		if s.rnd.IntN(60) == 0 {
			a.asleep = s.steps + s.rnd.IntN(150)
			continue
		}
		s.step(ctx, a)
	}
	for _, a := range s.actors {
		for a.crashed = true; ; {
			a.grant <- struct{}{}
			select {
			case <-a.ask:
				continue
			case <-a.ended:
			}
			break
		}
	}
}

// start begins an actor's next piece of work and waits until it wants a step.
func (s *sim) start(ctx context.Context, a *actor) {
	a.crashed, a.err = false, nil
	a.open()
	go func() {
		a.err = a.run(ctx, a)
		a.ended <- struct{}{}
	}()
	s.settle(ctx, a)
}

// settle waits until the actor wants its next step. One that has ended begins
// anew.
func (s *sim) settle(ctx context.Context, a *actor) {
	select {
	case <-a.ask:
	case <-a.ended:
		if a.err != nil && !a.crashed && !s.expected(a.err) && s.problem == nil {
			s.problem = fmt.Errorf("%s: %w", a.name, a.err)
		}
		s.start(ctx, a)
	}
}

// expected says whether an error is one that a run may have in such a world.
func (s *sim) expected(err error) bool {
	if s.rots && (pack.IsDamage(err) || errors.Is(err, backend.ErrNotExist) || errors.Is(err, chunkstore.ErrNotProven) || errors.Is(err, ErrForeign) || strings.Contains(err.Error(), "is not known to this cairn")) {
		return true
	}
	return errors.Is(err, errLost) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, chunkstore.ErrAborted) || errors.Is(err, chunkstore.ErrNoBase) || errors.Is(err, ErrRunning) ||
		strings.Contains(err.Error(), "the session's intent") || strings.Contains(err.Error(), "which earlier points need too")
}

func (s *sim) step(ctx context.Context, a *actor) {
	a.grant <- struct{}{}
	s.settle(ctx, a)
}

func (s *sim) check(when string) error {
	from := s.reading()
	for i, p := range s.points {
		if p.dropped {
			continue
		}
		if err := s.readable(from, p); err != nil {
			return fmt.Errorf("%s: point %d of %d was confirmed, and cannot be read: %w", when, i, len(s.points), err)
		}
	}
	return nil
}

// quiet collects twice with nobody else there: then nothing is left that no
// point needs, and all points are still there.
func (s *sim) quiet(ctx context.Context) error {
	store := chunkstore.NewStore(s.place, s.config, s.keys)
	o := Options{Trace: simTrace(store.NewReader(simCache)), dead: func(chunk.SessionID, time.Duration) bool { return true }, sleep: func(context.Context) bool { return true }}
	for range 2 {
		v, err := store.List(ctx)
		if err != nil {
			return err
		}
		for id := range v.Collectors { // a day later they are old
			if err := store.RemoveCollector(ctx, id); err != nil {
				return err
			}
		}
		if _, err := Collect(ctx, store, o); err != nil {
			return fmt.Errorf("a quiet collection: %w", err)
		}
	}
	if err := s.check("after quiet collections"); err != nil {
		return err
	}
	v, err := store.List(ctx)
	if err != nil {
		return err
	}
	c := &collector{store: store, opts: o}
	c.opts.Progress = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	m, err := c.mark(ctx, v)
	if err != nil {
		return err
	}
	for i, p := range v.Packs.All() {
		if !m.need.anyOf(i) {
			return fmt.Errorf("%s is left though nobody needs it", p.Ref)
		}
	}
	for ref := range v.Forwards {
		if v.Packs.Has(ref) || !m.need.any(ref) {
			return fmt.Errorf("a forward of %s is left though nobody needs it", ref)
		}
	}
	intents := 0
	for id := range v.Intents {
		if !m.kept[id] {
			intents++
		}
	}
	if n := intents + len(v.Collectors) + len(m.rubbish); n > 0 {
		return fmt.Errorf("%d intents, %d collectors, %d decisions are left", intents, len(v.Collectors), len(m.rubbish))
	}
	return nil
}

// haste is for many schedules: only one actor runs at a time, so that a second
// processor only costs, and there is little that must be kept in memory.
func haste(t *testing.T) {
	processors, percent := runtime.GOMAXPROCS(1), debug.SetGCPercent(200)
	t.Cleanup(func() { runtime.GOMAXPROCS(processors); debug.SetGCPercent(percent) })
}

// TestSimulation plays schedules. CAIRN_SIM_SEED and CAIRN_SIM_COUNT play
// others; a seed that fails is in the error.
func TestSimulation(t *testing.T) {
	count, first := chunkstoretest.Number(t, "CAIRN_SIM_COUNT", 50_000), chunkstoretest.Number(t, "CAIRN_SIM_SEED", 1)
	if testing.Short() {
		count = min(count, 1000)
	}
	haste(t)
	world, total, steps := newWorld(t), map[string]int{}, 0
	start := time.Now()
	for i := range count {
		world.enter(t, uint64(first+i))
		s := world.newSim(t, uint64(first+i), nil)
		if os.Getenv("CAIRN_SIM_LOG") != "" {
			s.log = func(line string) { t.Log(line) }
		}
		if err := s.play(); err != nil {
			t.Fatalf("CAIRN_SIM_SEED=%d: step %d: %v", first+i, s.steps, err)
		}
		for k, n := range s.counts {
			total[k] += n
		}
		steps += s.length
	}
	t.Logf("seeds %d to %d, %d steps in %v: %v", first, first+count-1, steps, time.Since(start).Round(time.Millisecond), total)
}

// TestSimulationReplays: a seed gives the same calls in the same order.
func TestSimulationReplays(t *testing.T) {
	world := newWorld(t)
	for seed := range uint64(20) {
		world.enter(t, 900+seed)
		var calls [2][]string
		for i := range calls {
			s := world.newSim(t, 900+seed, nil)
			s.log = func(line string) { calls[i] = append(calls[i], line) }
			if err := s.play(); err != nil {
				t.Fatal(err)
			}
		}
		for i, line := range calls[0] {
			if i >= len(calls[1]) || calls[1][i] != line {
				t.Fatalf("seed %d: call %d of %d is another when it is played again:\n%s\n%s", 900+seed, i, len(calls[0]), line, append(calls[1], "")[min(i, len(calls[1]))])
			}
		}
	}
}
