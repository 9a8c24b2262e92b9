package spread

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/chunkstore/backend"
)

// session is one backup: what it stores is drawn when it begins.
type session struct {
	id     string
	packs  map[string][]byte
	names  []string // of packs, in their order
	commit []byte
}

// A replacement is one that was begun.
type replacement struct {
	slot  int
	old   *disk
	fresh *disk
}

type deed func(l *life, ctx context.Context) error

// choose draws a host's next deed; nil: it has none now.
func (s *sim) choose(h *host) deed {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch h.n {
	case 0, 1:
		if s.rnd.IntN(8) == 0 && s.shards.K > s.shards.M {
			s.keys += s.rnd.IntN(2)
			h.key = s.keys
			return (*life).register
		}
		if len(s.sessions) > 12 { // each costs the collectors much
			return nil
		}
		h.session = s.newSession()
		return (*life).backup
	case 2, 3:
		if s.rnd.IntN(5) == 0 {
			if h.session = s.oneOf(s.sessions); h.session != nil {
				if t := s.things["points/"+h.session.id]; t != nil && t.acked != nil {
					return (*life).forget
				}
			}
		}
		return (*life).collect
	case 4:
		if s.rnd.IntN(6) == 0 {
			return (*life).audit
		}
		return (*life).mend
	case 5:
		h.targets = nil
		for range 4 {
			if len(s.names) > 0 {
				h.targets = append(h.targets, s.things[s.names[s.rnd.IntN(len(s.names))]])
			}
		}
		return (*life).look
	}
	return s.chooseReplacement()
}

func (s *sim) oneOf(list []*session) *session {
	if len(list) == 0 {
		return nil
	}
	return list[s.rnd.IntN(len(list))]
}

func (s *sim) newSession() *session {
	x := &session{id: fmt.Sprintf("%032x", len(s.sessions)+1), packs: map[string][]byte{}}
	for range 1 + s.rnd.IntN(2) {
		n := 1 + s.rnd.IntN(300)
		if s.rnd.IntN(8) == 0 {
			n = 4<<10*s.shards.K + s.rnd.IntN(1000) // its length is not listed exactly
		}
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(s.rnd.Uint32())
		}
		sum := backend.PackName(b)
		name := "packs/" + x.id + "/" + hex.EncodeToString(sum[:])
		x.packs[name] = b
		x.names = append(x.names, name)
	}
	x.commit = sealed("points/"+x.id, "commit "+x.id)
	s.sessions = append(s.sessions, x)
	return x
}

// options are those with which every process opens the repository.
func (s *sim) options() Options {
	o := Options{Strict: simAbort, Verify: simVerify, Settle: -1}
	if s.m != nil && s.m.options != nil {
		s.m.options(&o)
	}
	return o
}

// open opens the repository as a new process does.
func (l *life) open(ctx context.Context) error {
	if l.spread != nil {
		return nil
	}
	s := l.h.s
	s.mu.Lock()
	known := slices.Clone(s.known)
	s.mu.Unlock()
	sp, layout, err := Open(ctx, known, func(_ context.Context, spec string) (backend.Backend, error) { return l.at(spec) }, s.options())
	if err != nil {
		return err
	}
	if s.m != nil && s.m.opened != nil {
		s.m.opened(l, sp)
	}
	l.spread, l.layout = sp, layout
	return nil
}

// at gives a place by its spec.
func (l *life) at(spec string) (backend.Backend, error) {
	for _, d := range l.h.s.disks {
		if d.place.Spec == spec {
			var b backend.Backend = simPlace{l, d}
			if m := l.h.s.m; m != nil && m.wrap != nil {
				b = m.wrap(l, b)
			}
			return b, nil
		}
	}
	return nil, backend.ErrNotExist
}

// putText puts a small object, sealed.
func (l *life) putText(ctx context.Context, name, text string, strict bool) error {
	return l.put(ctx, name, sealed(name, text), strict)
}

// put stores an object and says so when that was acknowledged.
func (l *life) put(ctx context.Context, name string, body []byte, strict bool) error {
	s := l.h.s
	t := s.attempt(name, body)
	put := l.spread.Put
	if strict {
		put = l.spread.PutStrict
	}
	if s.m != nil && s.m.put != nil {
		put = s.m.put(l, strict)
	}
	err := put(ctx, name, bytes.Clone(body))
	for range 2 { // a session tries again what failed
		if err == nil || errors.Is(err, backend.ErrExist) || l.dead.Load() || l.h.rnd.IntN(2) > 0 {
			break
		}
		err = put(ctx, name, bytes.Clone(body))
	}
	if err == nil {
		s.ack(l, t, body, strict)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.busy--
	return err
}

func (l *life) get(ctx context.Context, name string) ([]byte, error) {
	return backend.Get(ctx, l.spread, name, 1<<20)
}

// backup does what a session does: its intent, its packs, the commit, which is
// read back when its name is taken.
func (l *life) backup(ctx context.Context) error {
	x := l.h.session
	if err := l.open(ctx); err != nil {
		return err
	}
	if err := l.putText(ctx, "sessions/"+x.id, "intent "+x.id, true); err != nil {
		return err
	}
	for _, name := range x.names {
		if err := l.put(ctx, name, x.packs[name], false); err != nil {
			return err
		}
	}
	for _, name := range x.names {
		if _, err := l.spread.Size(ctx, name); err != nil {
			return err
		}
	}
	if _, err := l.spread.Size(ctx, "sessions/"+x.id); err != nil {
		return err
	}
	name := "points/" + x.id
	err := l.put(ctx, name, x.commit, false)
	if err != nil && !errors.Is(err, backend.ErrExist) {
		return err
	}
	back, rerr := l.get(ctx, name)
	if rerr != nil {
		return rerr
	}
	if !bytes.Equal(back, x.commit) {
		if err == nil && l.h.s.untouched(name) {
			l.h.s.wrong("%s: its commit of %s was acknowledged, and reads back as %q", l.h.name, x.id, back)
		}
		return errors.New("aborted")
	}
	if err != nil { // as Session.Commit: its own put, whose answer was lost
		l.h.s.ack(l, l.h.s.thingOf(name), x.commit, false)
	}
	l.h.s.count("commits")
	return nil
}

// register puts what another host may put under the same name.
func (l *life) register(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	err := l.putText(ctx, fmt.Sprintf("keys/%d", l.h.key), "a key of "+l.h.name, false)
	if errors.Is(err, backend.ErrExist) {
		return nil
	}
	return err
}

// forget drops a point.
func (l *life) forget(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	l.h.s.goes("points/" + l.h.session.id)
	for _, name := range l.h.session.names {
		l.h.s.goes(name)
	}
	l.h.s.goes("sessions/" + l.h.session.id)
	l.h.s.count("drops")
	return l.putText(ctx, "drops/"+l.h.session.id, "drop by "+l.h.name, true)
}

func (l *life) list(ctx context.Context, prefix string) (out []backend.Object, err error) {
	err = l.spread.List(ctx, prefix, func(o backend.Object) error { out = append(out, o); return nil })
	return out, err
}

// removal is gc's list.
type removal struct {
	By    string   `json:"by"`
	Packs []string `json:"packs"`
}

// removed gives what gc decided to remove, as Store.Removed.
func (l *life) removed(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	list, err := l.list(ctx, "gc/")
	if err != nil {
		return nil, err
	}
	for _, o := range list {
		if !strings.HasSuffix(o.Name, "/final") {
			continue
		}
		r, err := l.removal(ctx, o.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range r.Packs {
			out[p] = true
		}
	}
	return out, nil
}

func (l *life) removal(ctx context.Context, name string) (*removal, error) {
	b, err := l.get(ctx, name)
	if err != nil {
		return nil, err
	}
	r := new(removal)
	return r, json.Unmarshal(unsealed(b), r)
}

// garbage says whether gc takes a pack for one that nobody needs.
func (s *sim) garbage(d *decisions, o backend.Object) bool {
	garbage := d.garbage(sessionOf(o.Name))
	if s.m != nil && s.m.garbage != nil {
		garbage = s.m.garbage(o, garbage)
	}
	return garbage
}

// decide puts one of gc's lists, or gives the one that is there.
func (l *life) decide(ctx context.Context, name string, mine *removal) (*removal, error) {
	mine.By = l.h.name
	body, err := json.Marshal(mine)
	if err != nil {
		return nil, err
	}
	if err := l.putText(ctx, name, string(body), true); err != nil && !errors.Is(err, backend.ErrExist) {
		return nil, err
	}
	return l.removal(ctx, name)
}

// decisions says what became of sessions, by id.
type decisions struct {
	dead      map[string]bool // decided against, or dropped
	dropped   map[string]bool
	undecided map[string]bool
	points    map[string]bool // committed, and not dropped
}

// garbage says whether nobody needs a session's packs: it has no point, and will
// have none. Of some nothing tells any more that they were.
func (d *decisions) garbage(session string) bool { return !d.points[session] && !d.undecided[session] }

// decisions reads what became of sessions.
func (l *life) decisions(ctx context.Context) (*decisions, error) {
	d := &decisions{dead: map[string]bool{}, dropped: map[string]bool{}, undecided: map[string]bool{}, points: map[string]bool{}}
	intents, err := l.list(ctx, "sessions/")
	if err != nil {
		return nil, err
	}
	for _, o := range intents {
		d.undecided[strings.TrimPrefix(o.Name, "sessions/")] = true
	}
	drops, err := l.list(ctx, "drops/")
	if err != nil {
		return nil, err
	}
	for _, o := range drops {
		d.dropped[strings.TrimPrefix(o.Name, "drops/")] = true
		d.dead[strings.TrimPrefix(o.Name, "drops/")] = true
	}
	points, err := l.list(ctx, "points/")
	if err != nil {
		return nil, err
	}
	for _, o := range points {
		id := strings.TrimPrefix(o.Name, "points/")
		delete(d.undecided, id)
		body, err := l.get(ctx, o.Name)
		if errors.Is(err, backend.ErrNotExist) && d.dropped[id] {
			continue
		}
		if err != nil {
			return nil, err
		}
		if simAbort(o.Name, body) {
			d.dead[id] = true
		}
		d.points[id] = !d.dead[id]
	}
	return d, nil
}

// collect does what gc does with places: aborts, decided lists, removals.
func (l *life) collect(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	d, err := l.decisions(ctx)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(d.undecided)) {
		if !l.h.s.quiet && l.h.rnd.IntN(3) > 0 {
			continue
		}
		err := l.putText(ctx, "points/"+id, "abort "+id+" by "+l.h.name, true)
		if err != nil && !errors.Is(err, backend.ErrExist) {
			return err
		}
		l.h.s.count("aborts tried")
	}
	n, begun, decided, err := l.generation(ctx)
	if err != nil {
		return err
	}
	packs, err := l.list(ctx, packsPrefix) // first: a pack that is listed had its session's intent before
	if err != nil {
		return err
	}
	if d, err = l.decisions(ctx); err != nil {
		return err
	}
	list, as := &removal{Packs: []string{}}, map[string]backend.Object{}
	for _, o := range packs {
		as[o.Name] = o
		if o.Partial == o.Rest && l.h.s.garbage(d, o) {
			list.Packs = append(list.Packs, o.Name)
		}
	}
	if !begun && len(list.Packs) == 0 {
		return l.tidy(ctx)
	}
	name := func(part string) string { return fmt.Sprintf("gc/%08d/%s", n, part) }
	if list, err = l.decide(ctx, name("condemned"), list); err != nil {
		return err
	}
	if d, err = l.decisions(ctx); err != nil {
		return err
	}
	final := &removal{Packs: []string{}}
	for _, p := range list.Packs {
		o := as[p]
		o.Name = p // also where it was not listed
		if l.h.s.garbage(d, o) {
			final.Packs = append(final.Packs, p)
		}
	}
	if !decided {
		for _, p := range final.Packs {
			l.h.s.mayGo(p)
		}
	}
	if final, err = l.decide(ctx, name("final"), final); err != nil {
		return err
	}
	for _, p := range final.Packs {
		l.h.s.removing(p)
		if err := l.spread.Delete(ctx, p); err != nil {
			return err
		}
		l.h.s.wasDeleted(p)
		l.h.s.count("packs deleted")
	}
	if err := l.putText(ctx, name("done"), "done", true); err != nil && !errors.Is(err, backend.ErrExist) {
		return err
	}
	return l.tidy(ctx)
}

// generation gives the number of the run of gc that is to be ended, or the
// next.
func (l *life) generation(ctx context.Context) (n int, begun, decided bool, err error) {
	list, err := l.list(ctx, "gc/")
	if err != nil {
		return 0, false, false, err
	}
	n = 1
	for _, o := range list {
		var g int
		var part string
		if _, err := fmt.Sscanf(o.Name, "gc/%08d/%s", &g, &part); err != nil {
			return 0, false, false, err
		}
		if g > n || g == n && !begun {
			n, begun, decided = g, true, false
		}
		switch part {
		case "final":
			decided = true
		case "done":
			n, begun, decided = g+1, false, false
		}
	}
	return n, begun, decided, nil
}

// tidy removes intents of sessions that were decided against, and what is left
// of dropped points.
func (l *life) tidy(ctx context.Context) error {
	d, err := l.decisions(ctx)
	if err != nil {
		return err
	}
	intents, err := l.list(ctx, "sessions/")
	if err != nil {
		return err
	}
	for _, o := range intents {
		if id := strings.TrimPrefix(o.Name, "sessions/"); d.dead[id] {
			l.h.s.goes(o.Name)
			if err := l.spread.Delete(ctx, o.Name); err != nil {
				return err
			}
		}
	}
	points, err := l.list(ctx, "points/")
	if err != nil {
		return err
	}
	for _, o := range points {
		if id := strings.TrimPrefix(o.Name, "points/"); d.dropped[id] {
			l.h.s.goes(o.Name)
			if err := l.spread.Delete(ctx, o.Name); err != nil {
				return err
			}
		}
	}
	if err := l.spread.Tidy(ctx, func(string) bool { return false }); err != nil {
		return err
	}
	l.h.s.count("collections")
	return nil
}

// mending is a repair that runs.
type mending struct {
	since   int             // the step
	removed map[string]bool // packs whose removal was decided before
}

// mend is `repair places`.
func (l *life) mend(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	_, err := l.repair(ctx, l.spread, l.h.rnd.IntN(2) == 0, nil)
	return err
}

func (l *life) repair(ctx context.Context, sp *Spread, readAll bool, old *Member) (*RepairReport, error) {
	s := l.h.s
	l.mends = s.mendBegins()
	defer func() { l.mends = nil }()
	was := l.spread
	l.spread = sp
	defer func() { l.spread = was }()
	r, err := sp.Repair(ctx, RepairOptions{ReadAll: readAll, Condemned: l.removed, Old: old})
	if err == nil {
		s.count("repairs")
		if r.Whole() {
			s.count("whole repairs")
		}
		s.incomplete(r)
	}
	return r, err
}

func (l *life) audit(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	if l.h.rnd.IntN(2) == 0 {
		_, err := l.spread.States(ctx, l.layout)
		return err
	}
	_, err := l.spread.Audit(ctx, l.h.rnd.IntN(2) == 0, Part{}, nil)
	return err
}

// look reads some objects, and a listing.
func (l *life) look(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	for _, t := range l.h.targets {
		was := l.h.s.before(t)
		got, err := l.get(ctx, t.name)
		l.h.s.saw(l, t, was, got, err)
		if len(was.must) > 1 && l.h.rnd.IntN(2) == 0 {
			off := l.h.rnd.IntN(len(was.must))
			p := make([]byte, 1+l.h.rnd.IntN(len(was.must)-off))
			err := l.spread.ReadAt(ctx, t.name, p, int64(off))
			l.h.s.sawRange(l, t, was, p, off, err)
		}
	}
	prefix := []string{"points/", "packs/", "drops/", "gc/", ""}[l.h.rnd.IntN(5)]
	want := l.h.s.listable(prefix)
	list, err := l.list(ctx, prefix)
	if err != nil {
		return err
	}
	l.h.s.sawList(l, prefix, want, list)
	return nil
}

// chooseReplacement decides whether a place is replaced now. It needs s.mu.
func (s *sim) chooseReplacement() deed {
	if s.replaced == nil {
		i := slices.IndexFunc(s.slots, func(d *disk) bool { return d.lost })
		if i < 0 && s.rnd.IntN(200) == 0 && s.gone < 3 {
			if i = s.rnd.IntN(len(s.slots)); !s.survivesLocked(s.slots[i]) {
				return nil
			}
			s.gone++
		}
		if i < 0 || s.rnd.IntN(4) > 0 {
			return nil
		}
		d := s.newDisk()
		d.place.Spec, d.slot = fmt.Sprintf("/p%d", d.n), i
		s.replaced = &replacement{i, s.slots[i], d}
		s.replaced.old.lost = true
		for _, name := range s.names {
			if t := s.things[name]; s.on(t, s.slots[i]) {
				t.hurt++
			}
		}
		for _, name := range s.names {
			s.things[name].moved = true
		}
	}
	return (*life).replace
}

// replace is `place replace`: again with the new name twice where an earlier
// one died behind the list's decision.
func (l *life) replace(ctx context.Context) error {
	s := l.h.s
	x := s.replaced
	l.spread = nil
	if err := l.open(ctx); err != nil {
		return err
	}
	was, old := l.spread, l.layout.Places[x.slot].Spec // as place ls shows it
	var next *Layout
	if l.layout.Places[x.slot].Spec == x.fresh.place.Spec {
		if was.members[x.slot].Place != nil { // it was ended
			next = l.layout
		}
	}
	if next == nil {
		fresh, err := l.at(x.fresh.place.Spec)
		if err != nil {
			return err
		}
		if next, err = l.layout.Replace(ctx, was, old, x.fresh.place.Spec, fresh, s.quiet); err != nil {
			// A put of a dead try came late: "name an empty folder".
			if got := x.fresh.get(identityName); got != nil {
				s.mu.Lock()
				defer s.mu.Unlock()
				d := s.newDisk()
				d.place.Spec, d.slot = fmt.Sprintf("/p%d", d.n), x.slot
				x.fresh = d
			}
			return err
		}
	}
	s.mu.Lock()
	x.fresh.place = next.Places[x.slot]
	s.slots[x.slot] = x.fresh
	s.known = append(s.known, *next)
	s.known[len(s.known)-1].decided = true // as in a door that is no place
	s.replaced = nil
	s.counts["replaced"]++
	s.mu.Unlock()
	l.spread, l.layout = nil, nil
	now, layout, err := Open(ctx, []Layout{*next}, func(_ context.Context, spec string) (backend.Backend, error) { return l.at(spec) }, s.options())
	if err != nil {
		return err
	}
	l.spread, l.layout = now, layout
	var gone *Member
	if m, ok := was.Member(next.Places[x.slot].Slot); ok && m.ID != next.Places[x.slot].ID {
		gone = &m
	}
	_, err = l.repair(ctx, now, false, gone)
	return err
}
