package gc

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
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
	// KeepFailed is how long what a session stored is kept, from the abort on,
	// by the place's clock: the next backup finds it there and need not store it
	// again. 0: not at all.
	KeepFailed time.Duration
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
	// sets is maxSets, or a test's.
	sets int64
}

// Result is what a run did, or would do.
type Result struct {
	Points       int   // that were marked
	Packs        int   // in the repository, before
	BytesStored  int64 // in packs, before
	PacksKept    int   // of failed sessions, for the next one
	BytesKept    int64
	PacksRemoved int
	BytesRemoved int64
	RestsRemoved int // packs of which too little was left to be read; not in PacksRemoved
	PacksCopied  int // of PacksRemoved: what was needed of them was copied
	BytesCopied  int64
	// Sparse are packs that would have been copied, had these keys been able to
	// read them.
	Sparse int
	// Full: the place had no room for copies.
	Full          bool
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
	ids    []chunk.SessionID      // all that this run had
	used   bool                   // a generation was begun under id
	goes   map[chunk.PackRef]bool // forwards that the generation at hand removes
	result Result
	began  time.Time // here, when id was stored
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
	c := &collector{store: store, opts: o}
	err := c.run(ctx)
	return &c.result, err
}

func (c *collector) run(ctx context.Context) (err error) {
	if c.opts.DryRun {
		c.now = c.began // near enough for what is only said
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
	err := c.store.Collect(ctx, c.id, []byte(c.opts.About))
	c.began, c.now = time.Now(), time.Time{}
	return err
}

// list takes the inventory, and from it the place's clock: every wait needs
// that, also one for a generation of somebody else's, which comes first.
func (c *collector) list(ctx context.Context) (*chunkstore.Inventory, error) {
	v, err := c.store.List(ctx)
	if err != nil {
		return nil, err
	}
	if at, ok := v.Collectors[c.id]; ok {
		c.now = at
	}
	return v, nil
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
			if err := c.finish(ctx, last.N, nil); err != nil {
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
	v, err := c.list(ctx)
	if err != nil {
		return false, err
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
	p.rewritten, err = c.copySparse(ctx, p)
	if errors.Is(err, backend.ErrNoSpace) { // what needs no copy makes room
		c.result.Full, p.rewritten, err = true, nil, nil
	}
	if err != nil {
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
	if err := c.finish(ctx, n, p.marks); err != nil {
		return false, err
	}
	if err := c.tidy(ctx, v, p.marks); err != nil {
		return false, err
	}
	return p.cut, nil
}
