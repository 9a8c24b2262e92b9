package gc

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
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
	// their lives. Twice 600 steps find less than once 1,600: a collection is
	// some hundreds of calls.
	simBases     = 24
	simBaseSteps = 900
	simSteps     = 1600
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
	index  simIndex
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

type simBody struct {
	Leaves []simRef `json:"leaves"`
}

type simRef struct {
	Pack   string `json:"pack"`
	Record int    `json:"record"`
}

// simIndex knows all packs there ever were, also those that are gone: the
// worst cache that a host can have.
type simIndex struct {
	packs map[chunk.ID][]chunk.PackRef
}

func (x simIndex) Packs(_ context.Context, hooks []chunk.ID) ([]chunk.PackRef, error) {
	var out []chunk.PackRef
	for _, h := range hooks {
		for _, r := range x.packs[h] {
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func (x simIndex) Add(_ context.Context, ref chunk.PackRef, ids []chunk.ID) error {
	for _, id := range ids {
		if !slices.Contains(x.packs[id], ref) {
			x.packs[id] = append(x.packs[id], ref)
		}
	}
	return nil
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

// simPlace is the store as one actor sees it.
type simPlace struct{ a *actor }

// PutsAtOnce keeps an actor to one call at a time, or a seed would not replay.
func (simPlace) PutsAtOnce() int { return 1 }

// do makes one call, with its faults.
func (p simPlace) do(op, name string, call func() error) (err error) {
	if err := p.a.turn(); err != nil {
		return err
	}
	s := p.a.s
	if s.log != nil {
		defer func() { s.log(fmt.Sprintf("%4d %-12s %-6s %s: %v", s.steps, p.a.name, op, name, err)) }()
	}
	switch n := s.rnd.IntN(600); {
	case n == 0:
		s.crash(p.a)
		return errCrashed
	case n == 1:
		_ = call()
		s.crash(p.a)
		return errCrashed
	case n == 2 && op == "put":
		s.counts["answers lost"]++
		_ = call()
		return errLost
	case n == 3:
		s.counts["calls failed"]++
		return errLost
	case n == 4 && op == "put":
		s.counts["puts repeated"]++
		s.late = append(s.late, func() { _ = call() })
	case n == 5 && op == "read":
		s.counts["bodies torn"]++
		return io.ErrUnexpectedEOF
	}
	return call()
}

// put stores an object, and a mirror has it a moment later.
func (s *sim) put(ctx context.Context, name string, data []byte) error {
	err := s.place.Put(ctx, name, data)
	if err == nil {
		_ = s.mirror.Put(ctx, name, data) // names are never used again
	}
	return err
}

func (s *sim) crash(a *actor) {
	a.crashed = true
	s.counts["crashes"]++
}

func (p simPlace) Put(ctx context.Context, name string, data []byte) error {
	return p.do("put", name, func() error { return p.a.s.put(ctx, name, data) })
}

func (p simPlace) ReadAt(ctx context.Context, name string, b []byte, off int64) error {
	return p.do("read", name, func() error { return p.a.s.place.ReadAt(ctx, name, b, off) })
}

func (p simPlace) Size(ctx context.Context, name string) (n int64, err error) {
	err = p.do("size", name, func() error { n, err = p.a.s.place.Size(ctx, name); return err })
	return n, err
}

func (p simPlace) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	return p.do("list", prefix, func() error { return p.a.s.place.List(ctx, prefix, fn) })
}

func (p simPlace) Delete(ctx context.Context, name string) error {
	return p.do("delete", name, func() error { return p.a.s.place.Delete(ctx, name) })
}

// simWorld is what all schedules share: keys, chunks that the index samples,
// all of them, and repositories to begin with.
type simWorld struct {
	keys   *seal.Keyring
	chunks [simContents][]byte
	bases  []*sim
}

func newWorld(t *testing.T) *simWorld {
	cryptotest.SetGlobalRandom(t, 0)
	keys, err := seal.NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	w := &simWorld{keys: keys}
	h := chunk.NewHasher(keys.ChunkID)
	for i, n := 0, uint64(1); i < simContents; n++ {
		b := make([]byte, chunk.Size)
		binary.LittleEndian.PutUint64(b, n)
		if h.Sum(b).IsHook() {
			w.chunks[i] = b
			i++
		}
	}
	return w
}

// age makes the repositories that schedules begin with.
func (w *simWorld) age(t *testing.T) *simWorld {
	for i := range simBases { // each in the middle of whatever went on
		s := w.newSim(t, uint64(i)<<40, nil)
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
	return w
}

// onTopOf begins where another schedule ended.
func (s *sim) onTopOf(base *sim) {
	s.leaves = base.leaves
	s.place, s.mirror = base.place.Clone(), base.mirror.Clone()
	for id, refs := range base.index.packs {
		s.index.packs[id] = slices.Clone(refs)
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
		index: simIndex{map[chunk.ID][]chunk.PackRef{}}, chunks: w.chunks, counts: map[string]int{}, hurt: map[string]bool{}, length: simSteps, leaves: simLeaves}
	if len(w.bases) == simBases {
		s.onTopOf(w.bases[s.rnd.IntN(simBases)])
		s.rots = s.rnd.IntN(4) == 0
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

func collectOnce(ctx context.Context, a *actor) error {
	r, err := Collect(ctx, a.store, a.s.options(a))
	if err == nil {
		a.s.counts["collections"]++
	}
	for what, n := range map[string]int{"packs removed": r.PacksRemoved, "packs copied": r.PacksCopied, "fenced": r.Fenced, "rescued": r.Rescued, "taken over": r.Taken} {
		a.s.counts[what] += n
	}
	return err
}

func (s *sim) options(a *actor) Options {
	return Options{Trace: simTrace(a.reader), RewriteBelow: 0.7, About: a.name, sets: s.sets,
		dead:  func(chunk.SessionID, time.Duration) bool { return s.rnd.IntN(12) == 0 },
		sleep: func(context.Context) bool { return a.turn() == nil }}
}

func simTrace(r *chunkstore.Reader) Trace {
	return func(ctx context.Context, p chunkstore.Commit, t chunk.Tracer) error {
		var body simBody
		if err := json.Unmarshal(p.Body, &body); err != nil {
			return err
		}
		for _, l := range body.Leaves {
			ref, err := chunkstore.ParsePackText(l.Pack)
			if err != nil {
				return err
			}
			if !t.Enter(ref, l.Record) {
				continue
			}
			t.Record(ref, l.Record)
			runs, err := readLeaf(ctx, r, ref, l.Record)
			if err != nil {
				return err
			}
			for _, b := range runs {
				t.Chunks(b.ref, b.n, 1)
			}
		}
		return nil
	}
}

type simBlock struct {
	ref chunk.PackRef
	n   int
}

func readLeaf(ctx context.Context, r *chunkstore.Reader, ref chunk.PackRef, record int) ([]simBlock, error) {
	b, err := r.ReadRecord(ctx, ref, record)
	if err != nil {
		return nil, err
	}
	var refs []simRef
	if err := json.Unmarshal(b, &refs); err != nil {
		return nil, err
	}
	out := make([]simBlock, len(refs))
	for i, x := range refs {
		if out[i].ref, err = chunkstore.ParsePackText(x.Pack); err != nil {
			return nil, err
		}
		out[i].n = x.Record
	}
	return out, nil
}

// standing gives the points that were not dropped, and how many were that gc
// has not come to.
func (s *sim) standing(ctx context.Context) (live []*simPoint, waiting int) {
	for _, p := range s.points {
		if !p.dropped {
			live = append(live, p)
		} else if _, err := s.place.Size(ctx, "points/"+p.id.String()); err == nil {
			waiting++
		}
	}
	return live, waiting
}

// forget drops one point, perhaps.
func forget(ctx context.Context, a *actor) error {
	s := a.s
	live, waiting := s.standing(ctx)
	if len(live) < simKept || waiting > simWaiting || s.rnd.IntN(2) > 0 {
		return a.turn()
	}
	p := live[s.rnd.IntN(len(live))]
	if len(s.hurt) == 0 {
		if err := s.readable(s.reading(), p); err != nil && s.problem == nil {
			s.problem = fmt.Errorf("before it was dropped: %w", err)
		}
	}
	p.dropped = true
	s.counts["dropped"]++
	return a.store.Drop(ctx, p.id, chunkstore.Note{Host: a.name})
}

// backup makes one point of a VM, on its last one.
func (a *actor) backup(ctx context.Context, vm int) error {
	if live, waiting := a.s.standing(ctx); len(live) > simKept+waiting && a.s.rnd.IntN(4) > 0 {
		return a.turn() // a collection reads all points: few are enough
	}
	w, err := a.store.Begin(ctx, a.s.index, []byte(a.name))
	if err != nil {
		return err
	}
	defer w.Close()
	err = a.backUp(ctx, w, vm)
	if errors.Is(err, backend.ErrNotExist) {
		if _, derr := a.s.place.Size(ctx, "points/"+w.ID().String()); derr == nil {
			return chunkstore.ErrAborted // nothing is kept for a session that was decided against
		}
	}
	return err
}

func (a *actor) backUp(ctx context.Context, w *chunkstore.Session, vm int) error {
	s, store := a.s, a.store
	p := &simPoint{id: w.ID()}
	var parent *simPoint
	var base simBody
	if n := len(s.by[vm]); n > 0 && s.rnd.IntN(5) > 0 {
		parent = s.by[vm][n-1]
		err := w.BuildOn(ctx, parent.id, func(t chunk.Tracer) error {
			body, err := parent.read(ctx, store)
			if err != nil {
				return err
			}
			return simTrace(a.reader)(ctx, chunkstore.Commit{ID: parent.id, Body: body}, t)
		})
		if errors.Is(err, chunkstore.ErrNoBase) {
			parent = nil
		} else if err != nil {
			return err
		}
	}
	if parent != nil {
		p.content = parent.content
		body, err := parent.read(ctx, store)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(body, &base); err != nil {
			return err
		}
	}
	body := simBody{Leaves: make([]simRef, s.leaves)}
	var fresh []chunk.RecordLoc
	var at []int
	for leaf := range s.leaves {
		if parent != nil && s.rnd.IntN(2) == 0 {
			body.Leaves[leaf] = base.Leaves[leaf]
			continue
		}
		var old []chunk.Loc
		if parent != nil {
			ref, err := chunkstore.ParsePackText(base.Leaves[leaf].Pack)
			if err != nil {
				return err
			}
			blocks, err := readLeaf(ctx, a.reader, ref, base.Leaves[leaf].Record)
			if err != nil {
				return err
			}
			for _, b := range blocks {
				old = append(old, w.Loc(b.ref, b.n))
			}
		}
		for i := range simBlocks {
			if parent == nil || s.rnd.IntN(2) == 0 {
				p.content[leaf*simBlocks+i] = s.rnd.IntN(simContents)
			}
		}
		loc, err := a.writeLeaf(ctx, w, p.content[leaf*simBlocks:(leaf+1)*simBlocks], old)
		if err != nil {
			return err
		}
		fresh, at = append(fresh, loc), append(at, leaf)
	}
	if err := w.FlushRecords(ctx); err != nil {
		return err
	}
	for i, loc := range fresh {
		body.Leaves[at[i]] = simRef{chunkstore.PackText(w.MapPack(loc.Pack)), loc.Record}
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	if err := w.Commit(ctx, b); err != nil {
		return err
	}
	s.counts["commits"]++
	s.points = append(s.points, p)
	s.by[vm] = append(s.by[vm], p)
	return nil
}

// read gives what a point committed. That it is gone is no fault if it was
// dropped since it was built on: the run fails, and the next one is another.
func (p *simPoint) read(ctx context.Context, store *chunkstore.Store) ([]byte, error) {
	body, err := store.ReadCommit(ctx, p.id)
	if p.dropped && errors.Is(err, backend.ErrNotExist) {
		err = chunkstore.ErrNoBase
	}
	return body, err
}

func (a *actor) writeLeaf(ctx context.Context, w *chunkstore.Session, contents []int, old []chunk.Loc) (chunk.RecordLoc, error) {
	data, err := w.Buffer(ctx)
	if err != nil {
		return chunk.RecordLoc{}, err
	}
	data = data[:simBlocks*chunk.Size]
	for i, c := range contents {
		copy(data[i*chunk.Size:], a.s.chunks[c])
	}
	var locs []chunk.Loc
	if err := w.Append(ctx, &chunkstore.Batch{Data: data, Parent: old, Placed: func(l []chunk.Loc) error {
		locs = slices.Clone(l)
		return nil
	}}); err != nil {
		return chunk.RecordLoc{}, err
	}
	if err := w.Flush(ctx); err != nil {
		return chunk.RecordLoc{}, err
	}
	var refs []simRef
	for _, l := range locs {
		ref, n, _, ok := w.Resolve(l, 1)
		if !ok {
			return chunk.RecordLoc{}, errors.New("a chunk has no pack")
		}
		refs = append(refs, simRef{chunkstore.PackText(ref), n})
	}
	b, err := json.Marshal(refs)
	if err != nil {
		return chunk.RecordLoc{}, err
	}
	return w.AddRecord(func(int) ([]byte, error) { return b, nil })
}

// simReading is a host that only reads.
type simReading struct {
	store  *chunkstore.Store
	reader *chunkstore.Reader
}

func (s *sim) reading() simReading {
	store := chunkstore.NewStore(s.place, s.config, s.keys)
	return simReading{store, store.NewReader(simCache)}
}

// simCache is the frames that a reader keeps, in bytes.
const simCache = 1 << 20

// readable reads a point as a reader on another host would, outside of the
// schedule.
func (s *sim) readable(from simReading, p *simPoint) error {
	ctx, r := context.Background(), from.reader
	raw, err := from.store.ReadCommit(ctx, p.id)
	if err != nil {
		return err
	}
	var body simBody
	if err := json.Unmarshal(raw, &body); err != nil {
		return err
	}
	ids, hasher := from.store.NewIDReader(), chunk.NewHasher(s.keys.ChunkID)
	got, id := make([]byte, chunk.Size), make([]chunk.ID, 1)
	for leaf, l := range body.Leaves {
		ref, err := chunkstore.ParsePackText(l.Pack)
		if err != nil {
			return err
		}
		blocks, err := readLeaf(ctx, r, ref, l.Record)
		if err != nil {
			return fmt.Errorf("leaf %d: %w", leaf, err)
		}
		for i, b := range blocks {
			if err := r.ReadChunks(ctx, b.ref, b.n, got); err != nil {
				return fmt.Errorf("leaf %d, chunk %d: %w", leaf, i, err)
			}
			if !bytes.Equal(got, s.chunks[p.content[leaf*simBlocks+i]]) {
				return fmt.Errorf("leaf %d, chunk %d: other bytes", leaf, i)
			}
			if err := ids.ReadIDs(ctx, b.ref, b.n, id); err != nil || id[0] != hasher.Sum(got) {
				return fmt.Errorf("leaf %d, chunk %d: another's ID: %w", leaf, i, err)
			}
		}
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

// number gives an environment variable's number.
func number(t *testing.T, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestSimulation plays schedules. CAIRN_SIM_SEED and CAIRN_SIM_COUNT play
// others; a seed that fails is in the error.
func TestSimulation(t *testing.T) {
	count, first := number(t, "CAIRN_SIM_COUNT", 1000), number(t, "CAIRN_SIM_SEED", 1)
	world, total, steps := newWorld(t).age(t), map[string]int{}, 0
	start := time.Now()
	for i := range count {
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
