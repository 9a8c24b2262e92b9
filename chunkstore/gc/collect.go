package gc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// Trace tells t of all that a commit needs.
type Trace func(ctx context.Context, p chunkstore.Commit, t chunk.Tracer) error

// Options of Collect.
type Options struct {
	// Trace knows what is in a commit. It is needed.
	Trace Trace
	// DryRun only says what a run would do.
	DryRun bool
	// RewriteBelow is the part of a pack's stored bytes that must be needed, or
	// what is needed is copied and the pack removed: 0 never does.
	RewriteBelow float64
	// Wait bounds waiting for sessions that run; then the generation is left
	// for a later run to finish.
	Wait time.Duration
	// FenceAfter is how long a session may give no sign of life, by the place's
	// clock, before it is decided against. 0: 24 hours.
	FenceAfter time.Duration
	// Committed, when set, says whether a session is known to have committed: if
	// its commit is not there it is lost, and what it needs must stay.
	Committed func(chunk.SessionID) bool
	// Waiting, when set, is told once of sessions that are waited for.
	Waiting func(n int)
	// Progress, when set, begins a piece of work of so many units.
	Progress func(what string, total int64) (add func(int64), end func())
	// About says who collects, for people.
	About string

	// For the simulation: when to fence, and how to wait. dead says that a
	// session that was quiet for so long is dead; sleep is false when waiting
	// is over.
	dead  func(id chunk.SessionID, quiet time.Duration) bool
	sleep func(ctx context.Context) bool
}

// Result is what a run did, or would do.
type Result struct {
	Points       int   // that were marked
	Packs        int   // in the repository, before
	BytesStored  int64 // in packs, before
	PacksRemoved int
	BytesRemoved int64
	PacksCopied  int // of PacksRemoved: what was needed of them was copied
	BytesCopied  int64
	// Sparse are packs that would have been copied, had these keys been able to
	// read them.
	Sparse        int
	PointsRemoved int // manifests of forgotten points, and catalogues
	Fenced        int // sessions decided against
	Rescued       int // packs that were needed after all
	Taken         int // generations of others that were finished
	Damaged       []chunk.PackRef
}

// ErrRunning: sessions run that had to be waited for. What was begun stays, and
// harms nobody; a later run finishes it.
var ErrRunning = errors.New("backups are running")

// ErrLost: a commit that is known to have been there is gone. Nothing is
// removed, for a copy of it may still exist.
var ErrLost = errors.New("a restore point's manifest is lost")

// maxPerGeneration bounds what one generation condemns; a run makes as many as
// it takes.
const maxPerGeneration = 100_000

// poll is how often it is looked whether a session was decided.
const poll = 2 * time.Second

// collector is one run.
type collector struct {
	store  *chunkstore.Store
	opts   Options
	id     chunk.SessionID
	ids    []chunk.SessionID // all that this run had
	used   bool              // a generation was begun under id
	result Result
	began  time.Time // here
	now    time.Time // the place's clock then
}

// Collect gives back the space of what no point needs.
func Collect(ctx context.Context, store *chunkstore.Store, o Options) (*Result, error) {
	if o.FenceAfter == 0 {
		o.FenceAfter = 24 * time.Hour
	}
	if o.Progress == nil {
		o.Progress = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	c := &collector{store: store, opts: o, began: time.Now()}
	err := c.run(ctx)
	return &c.result, err
}

func (c *collector) run(ctx context.Context) (err error) {
	if c.opts.DryRun {
		v, err := c.store.List(ctx)
		if err != nil {
			return err
		}
		_, err = c.choose(ctx, v)
		return err
	}
	defer func() {
		for _, id := range c.ids { // what a dead collector leaves is removed by a later one
			if rerr := c.store.RemoveCollector(context.WithoutCancel(ctx), id); err == nil {
				err = rerr
			}
		}
	}()
	if err := c.begin(ctx); err != nil {
		return err
	}
	for tries := 0; ; {
		more, err := c.next(ctx)
		if errors.Is(err, backend.ErrNotExist) && tries < maxTries {
			// A point may have been forgotten, and what it needed removed by
			// another collector, since this one listed it.
			tries++
			continue
		}
		if err != nil || !more {
			return err
		}
	}
}

// begin takes a new name: two generations must not store forwards of one pack
// under the same.
func (c *collector) begin(ctx context.Context) error {
	c.id = chunkstore.NewSessionID()
	c.ids = append(c.ids, c.id)
	return c.store.Collect(ctx, c.id, []byte(c.opts.About))
}

// maxTries is how often something may be missing before it is said so.
const maxTries = 3

// next finishes the last generation, or makes a new one. more says that there
// may be more to do.
func (c *collector) next(ctx context.Context) (more bool, err error) {
	gens, err := c.store.Generations(ctx)
	if err != nil {
		return false, err
	}
	n := 1
	if k := len(gens); k > 0 {
		n = gens[k-1].N + 1
		if last := gens[k-1]; !last.Done {
			if err := c.finish(ctx, last.N); err != nil {
				return false, err
			}
			c.result.Taken++
			return true, nil
		}
	}
	if c.used {
		if err := c.begin(ctx); err != nil {
			return false, err
		}
	}
	c.used = true
	return c.generation(ctx, n)
}

// generation makes one generation, if there is anything to remove. more says
// that there may be more, or that another collector was faster.
func (c *collector) generation(ctx context.Context, n int) (more bool, err error) {
	v, err := c.store.List(ctx)
	if err != nil {
		return false, err
	}
	if at, ok := v.Collectors[c.id]; ok {
		c.now = at
	}
	fenced, err := c.fenceDead(ctx, v)
	if err != nil {
		return false, err
	}
	if fenced {
		if v, err = c.store.List(ctx); err != nil {
			return false, err
		}
	}
	p, err := c.choose(ctx, v)
	if err != nil {
		return false, err
	}
	if err := c.fold(ctx, v, p.marks); err != nil {
		return false, err
	}
	if p.empty() {
		return false, c.tidy(ctx, v, p.marks)
	}
	if p.rewritten, err = c.copySparse(ctx, p); err != nil {
		return false, err
	}
	list := chunkstore.Condemned{Collector: c.id.String(), Packs: texts(p.dead), Rewritten: texts(p.rewritten), Forwards: texts(p.forwards)}
	body, err := json.Marshal(list)
	if err != nil {
		return false, err
	}
	err = c.store.PutRecord(ctx, chunkstore.GenerationName(n, "condemned"), chunkstore.RecordCondemned, body)
	if errors.Is(err, backend.ErrExist) {
		return true, nil // another one's, or our own whose answer was lost: it is finished first
	}
	if err != nil {
		return false, err
	}
	if err := c.finish(ctx, n); err != nil {
		return false, err
	}
	if err := c.tidy(ctx, v, p.marks); err != nil {
		return false, err
	}
	return p.cut, nil
}

// plan is what a generation means to remove.
type plan struct {
	marks     *marks
	dead      []chunk.PackRef // nobody needs anything of them
	sparse    map[pack.Kind][]chunk.PackRef
	rewritten []chunk.PackRef
	forwards  []chunk.PackRef // packs that are gone, whose forwards nobody needs
	cut       bool            // there is more
}

func (p *plan) empty() bool {
	return len(p.dead)+len(p.forwards)+len(p.sparse[pack.KindData])+len(p.sparse[pack.KindMap]) == 0
}

// choose marks, and says what can go.
func (c *collector) choose(ctx context.Context, v *chunkstore.Inventory) (*plan, error) {
	m, err := c.mark(ctx, v)
	if err != nil {
		return nil, err
	}
	p := &plan{marks: m, sparse: map[pack.Kind][]chunk.PackRef{}}
	c.result.Points, c.result.Packs, c.result.BytesStored = m.points, len(v.Packs), 0
	var look []chunk.PackRef
	for _, ref := range sortedRefs(v.Packs) {
		c.result.BytesStored += v.Packs[ref]
		_, collecting := v.Collectors[ref.Session]
		switch {
		case v.Undecided(ref.Session), collecting:
		case m.live[ref] != nil:
			look = append(look, ref)
		case len(p.dead) >= maxPerGeneration:
			p.cut = true
		default:
			p.dead = append(p.dead, ref)
			if c.opts.DryRun {
				c.result.PacksRemoved++
				c.result.BytesRemoved += v.Packs[ref]
			}
		}
	}
	for _, ref := range sortedRefs(v.Forwards) {
		if _, there := v.Packs[ref]; !there && m.live[ref] == nil && len(p.forwards) < maxPerGeneration {
			p.forwards = append(p.forwards, ref)
		}
	}
	if c.opts.RewriteBelow > 0 {
		err = c.findSparse(ctx, v, m, look, p)
	}
	return p, err
}

// findSparse looks which packs are nearly empty.
func (c *collector) findSparse(ctx context.Context, v *chunkstore.Inventory, m *marks, refs []chunk.PackRef, p *plan) error {
	add, end := c.opts.Progress("looking for packs that are nearly empty", int64(len(refs)))
	defer end()
	for _, ref := range refs {
		add(1)
		f, err := c.store.ReadFooter(ctx, ref)
		if errors.Is(err, backend.ErrNotExist) || pack.IsDamage(err) {
			continue // gone meanwhile; or check's to name
		}
		if err != nil {
			return err
		}
		if n := m.live[ref].len(); n >= f.Count || !c.sparse(f, m.live[ref], v.Packs[ref]) {
			continue
		}
		if f.Kind == pack.KindData && !c.store.Keys().CanRead() {
			c.result.Sparse++
			continue
		}
		if len(p.sparse[f.Kind]) < maxPerGeneration {
			p.sparse[f.Kind] = append(p.sparse[f.Kind], ref)
		}
		if c.opts.DryRun {
			c.result.PacksRemoved++
			c.result.PacksCopied++
			c.result.BytesRemoved += v.Packs[ref]
		}
	}
	return nil
}

// sparse says whether so little of a pack is live that it is worth copying.
func (c *collector) sparse(f *pack.Footer, live *set, size int64) bool {
	var bytes float64
	for _, fr := range f.Frames {
		n := 0
		for i := range int(fr.Count) {
			if live.has(int(fr.First) + i) {
				n++
			}
		}
		bytes += float64(fr.Stored) * float64(n) / float64(fr.Count)
	}
	return bytes < c.opts.RewriteBelow*float64(size)
}

// copySparse copies what is left of nearly empty packs.
func (c *collector) copySparse(ctx context.Context, p *plan) ([]chunk.PackRef, error) {
	var all []chunk.PackRef
	for _, kind := range []pack.Kind{pack.KindData, pack.KindMap} {
		if len(p.sparse[kind]) == 0 {
			continue
		}
		done, err := c.rewrite(ctx, kind, p.sparse[kind], p.marks)
		if err != nil {
			return nil, err
		}
		all = append(all, done...)
	}
	return all, nil
}

func texts(refs []chunk.PackRef) []string {
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = chunkstore.PackText(r)
	}
	return out
}

func parse(texts []string) ([]chunk.PackRef, error) {
	out := make([]chunk.PackRef, len(texts))
	for i, s := range texts {
		var err error
		if out[i], err = chunkstore.ParsePackText(s); err != nil {
			return nil, fmt.Errorf("%w: a list of gc: %v", pack.ErrCorrupt, err)
		}
	}
	return out, nil
}

// quiet is how long a session gave no sign of life, by the place's clock.
func (c *collector) quiet(v *chunkstore.Inventory, id chunk.SessionID) time.Duration {
	if c.now.IsZero() {
		return 0
	}
	return c.now.Add(time.Since(c.began)).Sub(v.Intents[id])
}

// end decides against a session that gave no sign of life.
func (c *collector) end(ctx context.Context, id chunk.SessionID) error {
	if c.opts.Committed != nil && c.opts.Committed(id) {
		return fmt.Errorf("%w: points/%s: nothing is removed: bring it back with cairn check --repair --from MIRROR", ErrLost, id)
	}
	if err := c.store.Abort(ctx, id, "no sign of life; decided by "+c.opts.About); err != nil {
		return err
	}
	c.result.Fenced++
	return nil
}

func (c *collector) isDead(v *chunkstore.Inventory, id chunk.SessionID) bool {
	if c.opts.dead != nil {
		return c.opts.dead(id, c.quiet(v, id))
	}
	return c.quiet(v, id) > c.opts.FenceAfter
}

// fenceDead decides against sessions that died, and removes what dead
// collectors left.
func (c *collector) fenceDead(ctx context.Context, v *chunkstore.Inventory) (any bool, err error) {
	for _, id := range undecided(v) {
		if c.isDead(v, id) {
			if err := c.end(ctx, id); err != nil {
				return any, err
			}
			any = true
		}
	}
	for id, at := range v.Collectors {
		if id != c.id && !c.now.IsZero() && c.now.Sub(at) > c.opts.FenceAfter {
			if err := c.store.RemoveCollector(ctx, id); err != nil {
				return any, err
			}
			any = true
		}
	}
	return any, nil
}

func undecided(v *chunkstore.Inventory) []chunk.SessionID {
	var out []chunk.SessionID
	for id := range v.Intents {
		if v.Undecided(id) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b chunk.SessionID) int { return slices.Compare(a[:], b[:]) })
	return out
}

// await waits until the sessions that were undecided when it is called are
// decided. Those that begin later saw what is condemned.
func (c *collector) await(ctx context.Context) error {
	var waiting map[chunk.SessionID]bool
	for told, start := false, time.Now(); ; told = true {
		v, err := c.store.List(ctx)
		if err != nil {
			return err
		}
		if waiting == nil {
			waiting = map[chunk.SessionID]bool{}
			for _, id := range undecided(v) {
				waiting[id] = true
			}
		}
		left := 0
		for _, id := range undecided(v) {
			if !waiting[id] {
				continue
			}
			if !c.isDead(v, id) {
				left++
				continue
			}
			if err := c.end(ctx, id); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if !told && c.opts.Waiting != nil {
			c.opts.Waiting(left)
		}
		if !c.wait(ctx, start) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: %d, after waiting for %v: what was begun goes on with the next run", ErrRunning, left, c.opts.Wait)
		}
	}
}

func (c *collector) wait(ctx context.Context, start time.Time) bool {
	if c.opts.sleep != nil {
		return c.opts.sleep(ctx)
	}
	if time.Since(start) > c.opts.Wait {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(poll):
		return true
	}
}

// finish does what is left of a generation that was condemned, by this or by
// another collector.
func (c *collector) finish(ctx context.Context, n int) error {
	list, err := c.store.ReadCondemned(ctx, n)
	if err != nil {
		return fmt.Errorf("run %d of gc: %w", n, err)
	}
	if err := c.await(ctx); err != nil {
		return err
	}
	v, err := c.store.List(ctx)
	if err != nil {
		return err
	}
	// Only while it is not done is the inventory free of what collectors of the
	// next generation store: another one may have finished this one meanwhile.
	gens, err := c.store.Generations(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(gens, func(g chunkstore.Generation) bool { return g.N == n }); i >= 0 && gens[i].Done {
		return nil
	}
	by, err := chunkstore.ParseSessionID(list.Collector)
	if err != nil {
		return fmt.Errorf("run %d of gc: %w: %v", n, pack.ErrCorrupt, err)
	}
	final, err := c.store.ReadFinal(ctx, n)
	own := errors.Is(err, backend.ErrNotExist)
	if own {
		final, own, err = c.decide(ctx, n, list, by, v)
	}
	if err == nil && !own {
		err = c.agree(ctx, list, final, by)
	}
	if err != nil {
		return fmt.Errorf("run %d of gc: %w", n, err)
	}
	if err := c.remove(ctx, n, list, final, v); err != nil {
		return err
	}
	err = c.store.PutRecord(ctx, chunkstore.GenerationName(n, "done"), chunkstore.RecordDone, nil)
	if errors.Is(err, backend.ErrExist) {
		err = nil
	}
	return err
}

// ErrForeign: a list of what to remove names what a point needs. No cairn makes
// such a list: an engine forgot something, or somebody forged it.
var ErrForeign = errors.New("a list of gc names what a restore point needs")

// agree holds what another one decided against what this collector marks now,
// behind that: by the protocol nothing of it can be needed any more.
func (c *collector) agree(ctx context.Context, list *chunkstore.Condemned, final *chunkstore.Final, by chunk.SessionID) error {
	v, err := c.store.List(ctx)
	if err != nil {
		return err
	}
	m, err := c.mark(ctx, v)
	if err != nil {
		return err
	}
	packs, err := parse(final.Packs)
	if err != nil {
		return err
	}
	for i, ref := range packs {
		if m.live[ref] == nil {
			continue
		}
		ok := slices.Contains(list.Rewritten, final.Packs[i])
		if ok {
			if ok, err = c.covered(ctx, ref, by, m.live[ref]); err != nil {
				return err
			}
		}
		if !ok {
			return fmt.Errorf("%w: %s: nothing more is removed, and no gc runs until somebody has looked", ErrForeign, ref)
		}
	}
	forwards, err := parse(final.Forwards)
	if err != nil {
		return err
	}
	for _, ref := range forwards {
		if m.live[ref] != nil {
			return fmt.Errorf("%w: the forwards of %s: nothing more is removed, and no gc runs until somebody has looked", ErrForeign, ref)
		}
	}
	return nil
}

// decide marks again, behind the wait, and publishes what is removed. own is
// false when another one was faster: then it is that one's.
func (c *collector) decide(ctx context.Context, n int, list *chunkstore.Condemned, by chunk.SessionID, v *chunkstore.Inventory) (_ *chunkstore.Final, own bool, _ error) {
	m, err := c.mark(ctx, v)
	if err != nil {
		return nil, false, err
	}
	var final chunkstore.Final
	dead, err := parse(list.Packs)
	if err != nil {
		return nil, false, err
	}
	for _, ref := range dead {
		if m.live[ref] == nil {
			final.Packs = append(final.Packs, chunkstore.PackText(ref))
		} else {
			c.result.Rescued++
		}
	}
	rewritten, err := parse(list.Rewritten)
	if err != nil {
		return nil, false, err
	}
	for _, ref := range rewritten {
		ok, err := c.covered(ctx, ref, by, m.live[ref])
		if err != nil {
			return nil, false, err
		}
		if ok {
			final.Packs = append(final.Packs, chunkstore.PackText(ref))
		} else {
			c.result.Rescued++
		}
	}
	gone, err := parse(list.Forwards)
	if err != nil {
		return nil, false, err
	}
	for _, ref := range gone {
		if m.live[ref] == nil {
			final.Forwards = append(final.Forwards, chunkstore.PackText(ref))
		}
	}
	body, err := json.Marshal(final)
	if err != nil {
		return nil, false, err
	}
	err = c.store.PutRecord(ctx, chunkstore.GenerationName(n, "final"), chunkstore.RecordFinal, body)
	if err != nil && !errors.Is(err, backend.ErrExist) {
		return nil, false, err
	}
	own = err == nil
	winner, err := c.store.ReadFinal(ctx, n)
	return winner, own, err
}

// covered says whether all that is needed of a rewritten pack was copied.
func (c *collector) covered(ctx context.Context, ref chunk.PackRef, by chunk.SessionID, live *set) (bool, error) {
	ways, err := c.store.Forwards(ctx, ref)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(ways, func(f *chunkstore.Forward) bool { return f.By == by })
	if i < 0 {
		return false, nil
	}
	if live == nil {
		return true, nil
	}
	there := map[chunk.PackRef]bool{}
	ok := true
	live.each(func(first, count int) bool {
		for count > 0 && ok {
			to, _, k, found := ways[i].Find(first, count)
			if ok = found; !ok {
				return false
			}
			if _, known := there[to]; !known {
				there[to], err = c.store.HasPack(ctx, to)
			}
			if ok = there[to] && err == nil; !ok {
				return false
			}
			first, count = first+k, count-k
		}
		return true
	})
	return ok, err
}

// remove removes what was decided.
func (c *collector) remove(ctx context.Context, n int, list *chunkstore.Condemned, final *chunkstore.Final, v *chunkstore.Inventory) error {
	// An engine that forgot one of these would let others think that nothing
	// was decided: look once more before the first removal.
	for _, part := range []struct {
		name string
		kind chunkstore.RecordKind
	}{{"condemned", chunkstore.RecordCondemned}, {"final", chunkstore.RecordFinal}} {
		if _, err := c.store.GetRecord(ctx, chunkstore.GenerationName(n, part.name), part.kind); err != nil {
			return fmt.Errorf("run %d of gc, read back: %w", n, err)
		}
	}
	packs, err := parse(final.Packs)
	if err != nil {
		return err
	}
	forwards, err := parse(final.Forwards)
	if err != nil {
		return err
	}
	add, end := c.opts.Progress("removing what nobody needs", int64(len(packs)))
	defer end()
	copied := map[string]bool{}
	for _, s := range list.Rewritten {
		copied[s] = true
	}
	removed := map[chunk.PackRef]bool{}
	for i, ref := range packs {
		if err := c.store.RemovePack(ctx, ref); err != nil {
			return fmt.Errorf("remove %s: %w", ref, err)
		}
		removed[ref] = true
		if size, there := v.Packs[ref]; there {
			c.result.PacksRemoved++
			c.result.BytesRemoved += size
			if copied[final.Packs[i]] {
				c.result.PacksCopied++
			}
		}
		add(1)
	}
	for _, ref := range forwards {
		for _, by := range v.Forwards[ref] {
			if err := c.store.RemoveForward(ctx, ref, by); err != nil {
				return fmt.Errorf("remove the forward of %s: %w", ref, err)
			}
		}
	}
	// Forwards of packs that stay: of collectors that lost, or of packs that
	// were rescued. No other generation can be begun before this one is done.
	for _, ref := range sortedRefs(v.Forwards) {
		if _, there := v.Packs[ref]; !there || removed[ref] {
			continue
		}
		for _, by := range v.Forwards[ref] {
			if err := c.store.RemoveForward(ctx, ref, by); err != nil {
				return fmt.Errorf("remove the forward of %s: %w", ref, err)
			}
		}
	}
	return nil
}

// tidy removes what needs no generation: forgotten points' manifests and
// catalogues, intents of sessions of which nothing is kept, signs of life.
func (c *collector) tidy(ctx context.Context, v *chunkstore.Inventory, m *marks) error {
	for _, id := range m.rubbish {
		if err := c.store.RemoveCommit(ctx, id); err != nil {
			return err
		}
		c.result.PointsRemoved++
	}
	for id := range v.Intents {
		if !v.Undecided(id) && !m.kept[id] {
			if err := c.store.RemoveIntent(ctx, id); err != nil {
				return err
			}
		}
	}
	for _, name := range v.Beats {
		if err := c.store.RemoveBeat(ctx, v, name); err != nil {
			return err
		}
	}
	return nil
}

// fold gives packs that are gone, and whose chunks moved more than once, a
// forward of one step. The older ones stay while anybody may need the pack: a
// session that runs may want more of it than the points of now.
func (c *collector) fold(ctx context.Context, v *chunkstore.Inventory, m *marks) error {
	for _, ref := range sortedRefs(m.far) {
		ways := m.ways[ref]
		f := &chunkstore.Forward{Kind: ways[0].Kind, Count: ways[0].Count}
		ok := true
		m.live[ref].each(func(first, count int) bool {
			for count > 0 && ok {
				to, at, k, _, found := pick(v, ways, first, count)
				for hops := 0; found && hops <= maxHops; hops++ {
					if _, there := v.Packs[to]; there {
						break
					}
					to, at, k, _, found = pick(v, m.ways[to], at, k)
				}
				if ok = found; !ok {
					return false
				}
				f.Runs = append(f.Runs, chunkstore.ForwardRun{First: first, Count: k, To: to, At: at})
				first, count = first+k, count-k
			}
			return true
		})
		if !ok {
			continue // it can be read by more steps
		}
		if err := c.store.PutForward(ctx, ref, c.id, f); err != nil && !errors.Is(err, backend.ErrExist) {
			return err
		}
	}
	return nil
}
