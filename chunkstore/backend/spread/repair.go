package spread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore/backend"
)

// A Finding is an object that is not as it should be on one place, or a place
// that is away: then there is no object.
type Finding struct {
	Place  string `json:"place"`
	Object string `json:"object,omitempty"`
	Error  string `json:"error"`
}

// Progress draws work of a number of things.
type Progress func(name string, total int64) (add func(int64), end func())

// RepairOptions says what Repair may rest on and how far it looks.
type RepairOptions struct {
	// ReadAll reads every byte; else only what is missing or has a wrong length is
	// mended. Of the packs it reads those of Part.
	ReadAll bool
	Part    Part
	// Condemned gives the packs (object names) that a final list of gc names
	// and that are not known to be deleted: they are not made anew. nil: none.
	Condemned func(context.Context) (map[string]bool, error)
	Progress  Progress // nil: nobody looks
	// Old is a place that was replaced and can still be read: its shards are
	// copied rather than made. nil: none.
	Old *Member
}

// Part says which packs are read whole, and how fast. Its zero value is all of
// them, as fast as that goes.
type Part struct {
	Has  func(pack string) bool                       // by the object's name
	Pace func(ctx context.Context, bytes int64) error // waits until so many may be read
}

func (p Part) has(pack string) bool { return p.Has == nil || p.Has(pack) }

// pace waits until all shards of a pack may be read.
func (s *Spread) pace(ctx context.Context, p Part, o *object) error {
	if p.Pace == nil {
		return ctx.Err()
	}
	return p.Pace(ctx, o.size*int64(s.shards.Total()))
}

// RepairReport is what Repair did.
type RepairReport struct {
	Copied     int       `json:"objects_copied"`  // control objects that a place missed
	Rebuilt    int       `json:"shards_made"`     // shards that a place missed
	Replaced   int       `json:"shards_replaced"` // objects that were wrong
	Removed    int       `json:"shards_removed"`  // of packs deleted while a place was away
	Bytes      int64     `json:"bytes_written"`
	Packs      int       `json:"packs"`
	Away       []string  `json:"places_away"`
	Incomplete []string  `json:"packs_incomplete"` // fewer than k shards: cannot be made anew
	Leftover   int       `json:"packs_leftover"`   // the same, of a run that died or was decided against
	Undecided  []string  `json:"objects_undecided"`
	Failed     []Finding `json:"failed"`
}

// Whole says whether every place has all that it should.
func (r *RepairReport) Whole() bool {
	return len(r.Away)+len(r.Incomplete)+len(r.Undecided)+len(r.Failed) == 0
}

// RepairPack makes one pack's missing and wrong shards from the others.
func (s *Spread) RepairPack(ctx context.Context, name string) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	r := &mender{Spread: s}
	if err := r.pack(ctx, &object{name: name, pack: true}, r.reachable(ctx)); err != nil {
		return err
	}
	if n := len(r.report.Incomplete); n > 0 {
		return errors.New(r.report.Incomplete[0])
	}
	if n := len(r.report.Failed); n > 0 {
		return fmt.Errorf("%d shards could not be stored, the first at place %s: %s", n, r.report.Failed[0].Place, r.report.Failed[0].Error)
	}
	return nil
}

// A mender is one Repair.
type mender struct {
	*Spread
	o         RepairOptions
	condemned map[string]bool
	gone      map[string]bool // packs deleted while a place was away
	ended     map[string]bool
	old       *member

	mu     sync.Mutex
	report RepairReport
	made   []madeShard
}

// madeShard is a shard that this repair put.
type madeShard struct {
	pack   string
	member *member
	i      int
}

// Repair brings the places up to date: control objects that are decided are
// copied to places that miss them, missing and wrong shards are made from
// others. It only adds, with three exceptions that rest on proof: a shard or
// copy that is proven wrong is deleted and put anew (a crash between leaves
// it missing, never wrong), a pack's last shards are removed when a note says
// that it was deleted, and what gc condemned while Repair made it anew is
// deleted again. Nothing is deleted by inference.
func (s *Spread) Repair(ctx context.Context, o RepairOptions) (*RepairReport, error) {
	if o.Progress == nil {
		o.Progress = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	r := &mender{Spread: s, o: o, gone: map[string]bool{}}
	r.report = RepairReport{Away: []string{}, Incomplete: []string{}, Undecided: []string{}, Failed: []Finding{}}
	if o.Old != nil && o.Old.Place != nil {
		r.old = &member{Member: *o.Old, o: &s.opts}
	}
	var err error
	if r.condemned, err = r.readCondemned(ctx); err != nil {
		return nil, fmt.Errorf("read what gc condemned: %w", err)
	}
	all, err := s.survey(ctx, "")
	if err != nil {
		return nil, err
	}
	r.ended = endedSessions(all)
	reached := r.reachable(ctx)
	if err := r.control(ctx, all, reached); err != nil {
		return nil, err
	}
	for _, o := range all {
		if pack, ok := strings.CutPrefix(o.name, gonePrefix); ok {
			r.gone[packsPrefix+pack] = true
		}
	}
	if err := r.packs(ctx, all, reached); err != nil {
		return nil, err
	}
	if err := r.takeBack(ctx); err != nil {
		return nil, err
	}
	if err := r.notes(ctx, all); err != nil {
		return nil, err
	}
	return &r.report, nil
}

func (r *mender) readCondemned(ctx context.Context) (map[string]bool, error) {
	if r.o.Condemned == nil {
		return nil, nil
	}
	return r.o.Condemned(ctx)
}

// reachable says which members answer; the others are reported.
func (r *mender) reachable(ctx context.Context) uint32 {
	errs := make([]error, len(r.members))
	r.each(func(i int, m *member) {
		errs[i] = m.there(ctx)
	})
	var on uint32
	for i, err := range errs {
		if err == nil {
			on |= 1 << i
		} else {
			r.report.Away = append(r.report.Away, err.Error())
		}
	}
	return on
}

func (r *mender) failed(m *member, object string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && len(r.report.Failed) < maxFindings {
		r.report.Failed = append(r.report.Failed, Finding{Place: m.Spec, Object: object, Error: root(err).Error()})
	}
}

// maxFindings bounds what a report lists.
const maxFindings = 1000

// control copies decided control objects to the places that miss them.
func (r *mender) control(ctx context.Context, all []*object, reached uint32) error {
	var objects []*object
	for _, o := range all {
		if o.pack || isPack(o.name) || strings.HasPrefix(o.name, notesPrefix) {
			continue
		}
		// A listing does not show that two places hold different things. Where
		// two may have competed it is looked at in any case.
		if o.on&reached != reached || r.o.ReadAll || mustSettle(o.name) {
			objects = append(objects, o)
		}
	}
	add, end := r.o.Progress("comparing the places", int64(len(objects)))
	defer end()
	for _, o := range objects {
		if err := r.controlOne(ctx, o.name, reached); err != nil {
			return err
		}
		add(1)
	}
	return nil
}

func (r *mender) controlOne(ctx context.Context, name string, reached uint32) error {
	v := r.compareBytes(ctx, name, r.o.ReadAll)
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(v.on) == 0 {
		return nil // deleted since
	}
	if strings.HasPrefix(name, placesPrefix) && r.neverDecided(v.absent()) {
		for _, i := range v.holders() {
			r.failed(r.members[i], name, errNeverDecided)
		}
		return nil
	}
	if !v.decided {
		if v = r.decide(ctx, name, reached); v == nil {
			r.report.Undecided = append(r.report.Undecided, name)
			return ctx.Err()
		}
	}
	body, err := r.body(ctx, name, v)
	if err != nil {
		return err
	}
	damaged := r.verify(name, body) != nil // then no place has another
	for i, m := range r.members {
		c := v.copies[i]
		if reached&(1<<i) == 0 || c.err == nil && c.print == v.best.print {
			continue
		}
		wrong := !c.absent() // another content, or one that cannot be read
		if c.err != nil && (!proven(c.err) || wrong && damaged) {
			r.failed(m, name, c.err) // what cannot be read is no worse than what is damaged
			continue
		}
		if wrong { // read once more: an error that passes must not cost a vote
			there, err := m.whole(ctx, name)
			if err == nil && bytes.Equal(there, body) {
				continue
			}
			if err == nil || proven(err) {
				err = m.remove(ctx, name)
			}
			if err != nil {
				r.failed(m, name, err)
				continue
			}
		}
		if err := m.put(ctx, name, body); err != nil {
			r.failed(m, name, err)
			continue
		}
		r.report.Bytes += int64(len(body))
		if wrong {
			r.report.Replaced++
		} else {
			r.report.Copied++
		}
	}
	return ctx.Err()
}

// decide settles a name that too few places hold, if all places can be asked;
// nil when that is not possible now.
func (r *mender) decide(ctx context.Context, name string, reached uint32) *view {
	if bits.OnesCount32(reached) < len(r.members) {
		return nil
	}
	if err := r.settleOne(ctx, name, r.o.ReadAll); err != nil && ctx.Err() != nil {
		return nil
	}
	v := r.compareBytes(ctx, name, r.o.ReadAll)
	if !v.decided && r.deadlocked(v, reached) {
		return r.breakTie(name, v)
	}
	if !v.decided {
		return nil
	}
	return v
}

// deadlocked says whether every place holds something under a name and no
// content can ever be decided.
func (r *mender) deadlocked(v *view, reached uint32) bool {
	if bits.OnesCount32(reached) < len(r.members) {
		return false
	}
	for _, c := range v.copies {
		if c.err != nil {
			return false
		}
	}
	return true
}

// breakTie takes the content that damaged copies may have decided, if it is one
// alone; else that on the first place in the name's order whose copy is not
// known to be damaged: as far as can be told nobody was told that any was stored,
// and each repair chooses the same.
func (r *mender) breakTie(name string, v *view) *view {
	best := v.best
	if len(v.could) != 1 {
		for _, i := range r.order(name) {
			if best = v.copies[i]; best.bad == nil || v.best.bad != nil {
				break
			}
		}
	} else {
		best = v.could[0]
	}
	out := &view{copies: v.copies, best: best}
	for i, c := range v.copies {
		if c.print == best.print {
			out.on = append(out.on, i)
		}
	}
	return out
}

// packs mends the shards.
func (r *mender) packs(ctx context.Context, all []*object, reached uint32) error {
	var todo []*object
	var usual int64
	for _, o := range all {
		if !o.pack {
			continue
		}
		r.report.Packs++
		if r.gone[o.name] || r.o.ReadAll && r.o.Part.has(o.name) || !r.hasAll(o, reached) {
			todo = append(todo, o)
			usual += o.size
		}
	}
	add, end := r.o.Progress("mending packs", int64(len(todo)))
	defer end()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(4, runtime.GOMAXPROCS(0)))
	for _, o := range todo {
		g.Go(func() error {
			defer add(1)
			if err := r.pace(gctx, r.o.Part, o); err != nil {
				return err
			}
			return r.pack(gctx, o, reached)
		})
	}
	if err := g.Wait(); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// hasAll says whether each reachable place lists its shards.
func (r *mender) hasAll(o *object, reached uint32) bool {
	order := r.order(o.name)
	for i := range r.shards.Total() {
		if o.on&(1<<i) == 0 && reached&(1<<order[i%len(order)]) != 0 {
			return false
		}
	}
	return true
}

func (r *mender) pack(ctx context.Context, o *object, reached uint32) error {
	order := r.order(o.name)
	if r.gone[o.name] {
		return r.removeRest(ctx, o, order)
	}
	if r.condemned[o.name] {
		return nil
	}
	var a *assembled
	var err error
	if a, err = r.assemble(ctx, o.name, order); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if a, err = r.withOld(ctx, o.name, order, err); err != nil {
			r.incomplete(ctx, o.name, err)
			return nil
		}
	}
	for i, bad := range a.bad {
		if bad == nil || reached&(1<<order[i%len(order)]) == 0 {
			continue
		}
		m := r.at(order, i)
		if !proven(bad) {
			r.failed(m, shardName(o.name, i), bad)
			continue
		}
		if err := r.putMade(ctx, m, o.name, i, a.objects[i], !errors.Is(bad, backend.ErrNotExist)); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.failed(m, shardName(o.name, i), err)
		}
	}
	r.forget(o.name)
	return nil
}

// incomplete counts a pack that cannot be made whole. One whose session has
// no decision was never stored: its run died, or stores it just now. Nor was, as
// a rule, one of a session that was decided against.
func (r *mender) incomplete(ctx context.Context, pack string, err error) {
	session := sessionOf(pack)
	leftover := r.ended != nil && (!r.ended[session] || r.aborted(ctx, session))
	r.mu.Lock()
	defer r.mu.Unlock()
	if leftover {
		r.report.Leftover++
	} else if len(r.report.Incomplete) < maxFindings {
		r.report.Incomplete = append(r.report.Incomplete, err.Error())
	}
}

// sessionOf gives the session of a pack's name: what is between the slashes.
func sessionOf(pack string) string {
	session, _, _ := strings.Cut(strings.TrimPrefix(pack, packsPrefix), "/")
	return session
}

// aborted says whether a session was decided against, as far as can be read.
func (s *Spread) aborted(ctx context.Context, session string) bool {
	name := "points/" + session
	body, err := backend.Get(ctx, s, name, maxDecision)
	return err == nil && s.opts.Strict != nil && s.opts.Strict(name, body)
}

// maxDecision bounds a decision that is read: a point's manifest.
const maxDecision = 64 << 20

// endedSessions gives the sessions that have a decision.
func endedSessions(all []*object) map[string]bool {
	out := map[string]bool{}
	for _, o := range all {
		if id, ok := strings.CutPrefix(o.name, "points/"); ok {
			out[id] = true
		}
	}
	return out
}

// putMade puts a shard that was made; a wrong one is deleted before.
func (r *mender) putMade(ctx context.Context, m *member, pack string, i int, data []byte, wrong bool) error {
	name := shardName(pack, i)
	if wrong {
		if err := m.remove(ctx, name); err != nil {
			return err
		}
	}
	if err := m.putShard(ctx, name, data); err != nil {
		return err
	}
	h, err := m.read(ctx, name, 0, min(len(data), blockSize))
	if err != nil || !bytes.Equal(h, data[:len(h)]) {
		return errors.Join(errors.New("what was put reads back differently"), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made = append(r.made, madeShard{pack, m, i})
	r.report.Bytes += int64(len(data))
	if wrong {
		r.report.Replaced++
	} else {
		r.report.Rebuilt++
	}
	return nil
}

// proven says whether an object is known to be missing, wrong or unreadable: a
// place that does not answer proves nothing.
func proven(err error) bool {
	return !errors.Is(err, errGone) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// withOld makes a pack that lacks shards with those of a place that was
// replaced.
func (r *mender) withOld(ctx context.Context, name string, order []int, why error) (*assembled, error) {
	if r.old == nil {
		return nil, why
	}
	with := make([]*member, len(r.members))
	for i, m := range r.members {
		with[i] = m
		if m.Slot == r.old.Slot {
			with[i] = r.old
		}
	}
	tmp := &Spread{shards: r.shards, members: with, opts: r.opts, rs: r.rs, packs: map[string]*packInfo{}, trouble: map[string]*trouble{}}
	a, err := tmp.assemble(ctx, name, order)
	if err != nil {
		return nil, errors.Join(why, err)
	}
	for i := range a.bad { // what the old place has the new one misses
		if r.at(order, i).Slot == r.old.Slot {
			_, _, a.bad[i] = r.readShard(ctx, name, order, i)
		}
	}
	return a, nil
}

// removeRest removes the shards of a pack that was deleted while a place was
// away.
func (r *mender) removeRest(ctx context.Context, o *object, order []int) error {
	for i := range r.shards.Total() {
		if o.on&(1<<i) == 0 {
			continue
		}
		m := r.at(order, i)
		if err := m.remove(ctx, shardName(o.name, i)); err != nil {
			r.failed(m, shardName(o.name, i), err)
			continue
		}
		r.mu.Lock()
		r.report.Removed++
		r.mu.Unlock()
	}
	r.forget(o.name)
	return ctx.Err()
}

// takeBack deletes what was made of packs that gc condemned meanwhile.
func (r *mender) takeBack(ctx context.Context) error {
	if len(r.made) == 0 {
		return nil
	}
	condemned, err := r.readCondemned(ctx)
	if err != nil {
		return err
	}
	for _, x := range r.made {
		if condemned[x.pack] {
			if err := x.member.remove(ctx, shardName(x.pack, x.i)); err != nil {
				return err
			}
			r.report.Removed++
		}
	}
	return nil
}

// notes removes the notes whose packs have all their shards, or none.
func (r *mender) notes(ctx context.Context, all []*object) error {
	var notes []string
	for _, o := range all {
		if strings.HasPrefix(o.name, notesPrefix) {
			notes = append(notes, o.name)
		}
	}
	if len(notes) == 0 || len(r.report.Away) > 0 {
		return nil // what is away may still miss something
	}
	now, err := r.surveyTable(ctx, packsPrefix)
	if err != nil || !now.whole() {
		return err
	}
	stored := map[string]*object{}
	for _, o := range now.list() {
		stored[o.name] = o
	}
	for _, n := range notes {
		pack, gone := notedPack(n)
		o := stored[pack]
		if o != nil && (gone || !r.complete(o)) {
			continue
		}
		if err := r.Delete(ctx, n); err != nil {
			return err
		}
	}
	return nil
}
