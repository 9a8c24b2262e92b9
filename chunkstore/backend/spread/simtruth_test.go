package spread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/chunkstore/backend"
)

// thing is an object, and what is true of it.
type thing struct {
	name   string
	pack   bool
	bodies [][]byte                // that somebody tried to put
	shards [][]byte                // of a pack
	acked  []byte                  // what was acknowledged; nil: nothing
	took   map[string]map[int]bool // of a small one: the slots whose places ever took a content
	fixed  []byte                  // what enough places took
	busy   int                     // puts that run

	going   bool // somebody may delete it
	removed bool // its removal was decided
	deleted bool // a deletion was acknowledged
	hurt    int  // copies or shards that a fault destroyed
	moved   bool // a place was replaced since
	excused bool // acknowledged, and faults had destroyed too much of it by then
	late    bool // a put arrived once more, or of the dead
}

func (s *sim) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

func (s *sim) wrong(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail(format, args...)
}

// attempt notes that a content is about to be put.
func (s *sim) attempt(name string, body []byte) *thing {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.things[name]
	if t == nil {
		t = &thing{name: name, pack: isPack(name), took: map[string]map[int]bool{}}
		s.things[name] = t
		i, _ := slices.BinarySearch(s.names, name)
		s.names = slices.Insert(s.names, i, name)
		if t.pack {
			var err error
			t.shards, err = s.ref.encodeShards(name, body)
			s.must(err)
		}
	}
	if !slices.ContainsFunc(t.bodies, func(b []byte) bool { return bytes.Equal(b, body) }) {
		t.bodies = append(t.bodies, body)
	}
	t.busy++
	return t
}

// thingOf gives the thing of an object's or shard's name; nil: none.
func (s *sim) thingOf(name string) *thing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.thingLocked(name)
}

func (s *sim) thingLocked(name string) *thing {
	if pack, _, ok := parseShardName(name); ok {
		name = pack
	}
	return s.things[name]
}

func (s *sim) mark(name string, f func(*thing)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.things[name]; t != nil {
		f(t)
	}
}

// goes: from now on somebody may delete it.
func (s *sim) goes(name string)       { s.mark(name, func(t *thing) { t.going = true }) }
func (s *sim) removing(name string)   { s.mark(name, func(t *thing) { t.going, t.removed = true, true }) }
func (s *sim) wasDeleted(name string) { s.mark(name, func(t *thing) { t.deleted = true }) }

// mayGo: gc decides to remove a pack.
func (s *sim) mayGo(pack string) {
	s.goes(pack)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.things["points/"+sessionOf(pack)]; t != nil && t.promised() != nil && !simAbort(t.name, t.acked) {
		s.fail("%s: its point was acknowledged, and gc decides to remove it", pack)
	}
}

// whole looks whether gc has left a session its packs that commits now. It needs
// s.mu.
func (s *sim) whole(t *thing) {
	id, ok := strings.CutPrefix(t.name, "points/")
	if intent := s.things["sessions/"+id]; !ok || t.going || simAbort(t.name, t.acked) || intent.excused || intent.hurt > 0 {
		return
	}
	for _, name := range s.names {
		if p := s.things[name]; p.pack && sessionOf(name) == id && p.removed {
			s.fail("%s: it was removed, and its point is acknowledged", name)
		}
	}
}

// has says whether a disk holds the part of a thing that belongs into its slot.
func (s *sim) has(t *thing, body []byte, d *disk) bool {
	if !t.pack {
		got := d.get(t.name)
		return got != nil && bytes.Equal(got, body)
	}
	i := slices.Index(s.ref.order(t.name), d.slot)
	return bytes.Equal(d.get(shardName(t.name, i)), t.shards[i])
}

// on says whether a disk holds anything of a thing.
func (s *sim) on(t *thing, d *disk) bool {
	return slices.ContainsFunc(t.bodies, func(b []byte) bool { return s.has(t, b, d) })
}

// held counts the places that hold it right, without one of them.
func (s *sim) held(t *thing, body []byte, without *disk) (n int) {
	for _, d := range s.slots {
		if d != without && !d.lost && s.has(t, body, d) {
			n++
		}
	}
	return n
}

// usable counts those of them that answer.
func (s *sim) usable(t *thing, body []byte, without *disk) (n int) {
	for _, d := range s.slots {
		if d != without && !d.lost && d.down == 0 && d.lies == 0 && s.has(t, body, d) {
			n++
		}
	}
	return n
}

// promised gives what must be readable, nil if nothing must.
func (t *thing) promised() []byte {
	if t.going || t.excused {
		return nil
	}
	return t.acked
}

// spare says whether all that is promised can be read without a place.
func (s *sim) spare(d *disk) bool {
	return s.every(func(t *thing) int { return s.usable(t, t.acked, d) })
}

// survives says whether it can be without a place for good.
func (s *sim) survives(d *disk) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.survivesLocked(d)
}

func (s *sim) survivesLocked(d *disk) bool {
	return s.every(func(t *thing) int { return s.sound(t, d) })
}

// sound counts the places that hold what was acknowledged and tell it.
func (s *sim) sound(t *thing, without *disk) (n int) {
	for _, d := range s.slots {
		if d != without && !d.lost && d.lies == 0 && s.has(t, t.acked, d) {
			n++
		}
	}
	return n
}

func (s *sim) every(n func(*thing) int) bool {
	for _, name := range s.names {
		t := s.things[name]
		if t.acked == nil || t.excused || t.going && s.held(t, t.acked, nil) < s.shards.K {
			continue // a drop that was tried need not have been stored: what is still there is spared
		}
		if n(t) < s.shards.K {
			return false
		}
	}
	return true
}

// ack notes that a host was told that an object is stored.
func (s *sim) ack(l *life, t *thing, body []byte, strict bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.dead.Load() {
		return
	}
	if t.acked != nil && !bytes.Equal(t.acked, body) && !s.gaveUp(t) {
		s.fail("%s: %q was acknowledged to %s, and %q before", t.name, body, l.h.name, t.acked)
		return
	}
	if t.fixed != nil && !bytes.Equal(t.fixed, body) && t.hurt == 0 && !t.going {
		s.fail("%s: %q was acknowledged to %s, and enough places had taken %q", t.name, body, l.h.name, t.fixed)
		return
	}
	need := s.ref.leastShards()
	if !t.pack {
		need = s.ref.commitQuorum()
	}
	if strict {
		need = s.ref.strictQuorum()
	}
	got := map[int]bool{}
	for _, d := range s.disks {
		if s.has(t, body, d) {
			got[d.slot] = true
		}
	}
	if ever := len(t.took[string(body)]); !t.pack && ever < need {
		s.fail("%s was acknowledged to %s, and %d places ever took it", t.name, l.h.name, ever)
		return
	}
	if len(got) < need && t.hurt == 0 && !t.going {
		s.fail("%s was acknowledged to %s, and %d places hold it", t.name, l.h.name, len(got))
		return
	}
	if t.acked == nil && s.held(t, body, nil) < s.shards.K {
		t.excused = true
		s.counts["excused"]++
	}
	t.acked = body
	s.whole(t)
}

// gaveUp says whether a content that was acknowledged may be followed by
// another: more than m places had lost it, or never took it, when its
// acknowledgement came, some by a fault that destroyed a copy (enough took it
// once: ack), and no more of it has come back. That is beyond the promise: seed 40487, where a mirror's
// disk is lost between its put and the acknowledgement, while the other takes no
// writes.
func (s *sim) gaveUp(t *thing) bool {
	if !t.excused || t.hurt == 0 || t.pack || s.held(t, t.acked, nil) >= s.shards.K {
		return false
	}
	s.counts["excused, and decided anew"]++
	return true
}

// putDone looks at a put that a place took.
func (s *sim) putDone(c *call, err error) {
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.thingLocked(c.name)
	if t == nil {
		return
	}
	if !t.pack {
		if t.took[string(c.data)] == nil {
			t.took[string(c.data)] = map[int]bool{}
		}
		t.took[string(c.data)][c.disk.slot] = true
	}
	if c.disk.lost {
		t.hurt++
		return
	}
	if m := c.life.mends; m != nil && c.came >= m.since && m.removed[t.name] && !s.quiet {
		s.fail("%s: %s makes a shard of what was decided to be removed before it began", t.name, c.life.h.name)
	}
	if t.pack {
		return
	}
	for _, body := range t.bodies {
		if t.hurt > 0 || t.going || s.held(t, body, nil) < s.ref.quorum(t.name, body) {
			continue
		}
		if t.fixed != nil && !bytes.Equal(t.fixed, body) {
			s.fail("%s: enough places took %q, and %q before", t.name, body, t.fixed)
		}
		t.fixed = body
	}
}

func (s *sim) mendBegins() *mending {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &mending{since: s.steps, removed: map[string]bool{}}
	for name, t := range s.things {
		if t.removed {
			m.removed[name] = true
		}
	}
	return m
}

// incomplete looks at what a repair says that it could not mend.
func (s *sim) incomplete(r *RepairReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range r.Incomplete {
		for _, name := range s.names {
			t := s.things[name]
			if t.pack && strings.Contains(text, name) && t.acked == nil && t.hurt == 0 && !t.moved && !t.going {
				s.counts["incomplete, never stored"]++
			}
		}
	}
}

// truth is what was true of a thing when a reader began.
type truth struct {
	must, fixed []byte
	deleted     bool
}

func (s *sim) before(t *thing) truth {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := truth{must: t.promised(), deleted: t.deleted && !t.late}
	if !t.going && t.hurt == 0 {
		b.fixed = t.fixed
	}
	return b
}

// saw looks at what a reader got.
func (s *sim) saw(l *life, t *thing, b truth, got []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case l.dead.Load() || t.going && b.must != nil:
	case err == nil && !t.pack && simVerify(t.name, got) != nil: // the seals tell; check looks whether there was an intact copy
	case err == nil && b.must != nil && !bytes.Equal(got, b.must):
		s.fail("%s: %s reads %.60q, and %.60q was acknowledged", t.name, l.h.name, got, b.must)
	case err == nil && b.fixed != nil && t.hurt == 0 && !t.going && !bytes.Equal(got, b.fixed) && s.honest():
		s.fail("%s: %s reads %.60q, and enough places had taken %.60q", t.name, l.h.name, got, b.fixed)
	case err == nil && t.pack && !bytes.Equal(got, t.bodies[0]):
		s.fail("%s: %s reads other bytes", t.name, l.h.name)
	case err == nil && b.deleted && !t.late && t.pack && s.shards.K > s.shards.M:
		s.fail("%s: %s reads what was deleted", t.name, l.h.name)
	case errors.Is(err, backend.ErrNotExist) && b.must != nil && t.promised() != nil && (s.shards.K > s.shards.M || t.pack):
		s.fail("%s: %s does not find what was acknowledged: %v", t.name, l.h.name, err)
	}
}

// untouched says that no fault changed what places hold, or say that they hold,
// under a name.
func (s *sim) untouched(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.things[name].hurt == 0 && s.counts["place lies"] == 0
}

// honest says whether no place lies.
func (s *sim) honest() bool {
	return !slices.ContainsFunc(s.slots, func(d *disk) bool { return d.lies > 0 })
}

func (s *sim) sawRange(l *life, t *thing, b truth, got []byte, off int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !t.pack && t.hurt > 0 {
		return // of a control object the seals tell
	}
	if err == nil && !l.dead.Load() && !t.going && s.counts["place lies"] == 0 && !bytes.Equal(got, b.must[off:off+len(got)]) {
		s.fail("%s: %s reads other bytes in the middle", t.name, l.h.name)
	}
}

func (s *sim) listable(prefix string) (out []*thing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.names {
		if t := s.things[name]; t.promised() != nil && strings.HasPrefix(name, prefix) {
			out = append(out, t)
		}
	}
	return out
}

// sawList looks at a listing: it shows all that was acknowledged before.
func (s *sim) sawList(l *life, prefix string, want []*thing, list []backend.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.dead.Load() || s.shards.K <= s.shards.M {
		return
	}
	by := map[string]backend.Object{}
	for _, o := range list {
		by[o.Name] = o
	}
	for _, t := range want {
		if t.promised() == nil {
			continue
		}
		o, ok := by[t.name]
		switch n := int64(len(t.acked)); {
		case !ok:
			s.fail("%s: %s lists %q, and it is not there", t.name, l.h.name, prefix)
		case o.Partial:
			s.fail("%s: %s lists it as one of which too little is there", t.name, l.h.name)
		case !t.pack && t.hurt == 0 && !slices.ContainsFunc(t.bodies, func(b []byte) bool { return int64(len(b)) == o.Size }):
			s.fail("%s: %s lists %d bytes, and nobody put so many", t.name, l.h.name, o.Size)
		case t.pack && t.hurt == 0 && (o.Size < n || o.Size >= n+int64(s.shards.K)):
			s.fail("%s: %s lists %d bytes of %d", t.name, l.h.name, o.Size, n)
		}
	}
}

// checker opens the repository outside of the schedule.
func (s *sim) checker(ctx context.Context, h *host) (*life, error) {
	l := newLife(ctx, h)
	l.atOnce = true
	return l, l.open(ctx)
}

// check reads some of what is promised, as a host that opens the repository
// now and whose calls go through at once.
func (s *sim) check(when string) {
	ctx := context.Background()
	l, err := s.checker(ctx, s.hosts[5])
	if err != nil {
		return
	}
	for range 4 {
		s.checkOne(ctx, l, s.things[s.names[s.rnd.IntN(len(s.names))]], when)
	}
}

func (s *sim) checkOne(ctx context.Context, l *life, t *thing, when string) {
	body := t.promised()
	if body == nil {
		return
	}
	can := s.usable(t, body, nil)
	if can == 0 || t.pack && can < s.shards.K {
		return
	}
	got, err := l.get(ctx, t.name)
	switch {
	case err != nil && can < s.shards.K: // but what is read is right, if one place alone has it
	case errors.Is(err, ErrUndecided) && s.shards.K <= s.shards.M:
	case err != nil:
		s.wrong("%s: %s cannot be read: %v", when, t.name, err)
	case !bytes.Equal(got, body):
		s.wrong("%s: %s reads as %.60q, and %.60q was acknowledged", when, t.name, got, body)
	}
	s.counts["checks"]++
}

// end lets all places come back, repairs, collects, and looks at what is there.
func (s *sim) end(ctx context.Context) error {
	for _, d := range s.disks {
		d.down, d.readOnly, d.full, d.lies = 0, false, false, 0
	}
	for tries := 0; slices.ContainsFunc(s.slots, func(d *disk) bool { return d.lost }); tries++ {
		var do deed
		for do == nil {
			s.mu.Lock()
			do = s.chooseReplacement()
			s.mu.Unlock()
		}
		err := do(newLife(ctx, s.hosts[6]), ctx)
		if errors.Is(err, ErrPlacesChanged) {
			s.counts["a list too many"]++
			return nil
		}
		if err != nil && (tries > 9 || s.replaced == nil) {
			return fmt.Errorf("replace a place: %w", err)
		}
	}
	l, err := s.checker(ctx, s.hosts[5])
	if err != nil {
		return err
	}
	if slices.ContainsFunc(l.spread.members, func(m *member) bool { return m.Place == nil }) {
		s.counts["a list too many"]++ // see sim_test.go
		return nil
	}
	if err := s.repairAll(ctx); err != nil {
		return err
	}
	for _, name := range s.names {
		t := s.things[name]
		if body := t.promised(); body != nil && s.held(t, body, nil) < len(s.slots) {
			return fmt.Errorf("%s is right on %d places after a repair", name, s.held(t, body, nil))
		}
	}
	if err := s.agree(); err != nil {
		return err
	}
	if err := s.readDegraded(ctx); err != nil {
		return err
	}
	for range 2 {
		l, err := s.checker(ctx, s.hosts[2])
		if err != nil {
			return err
		}
		if err := l.collect(ctx); err != nil {
			return fmt.Errorf("a quiet collection: %w", err)
		}
	}
	if err := s.repairAll(ctx); err != nil {
		return fmt.Errorf("after a collection: %w", err)
	}
	if l, err = s.checker(ctx, s.hosts[5]); err != nil {
		return err
	}
	found, err := l.spread.Audit(ctx, true, Part{}, nil)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(f Finding) bool { t := s.thingOf(f.Object); return t != nil && s.lostFor(t.name) })
	if len(found) > 0 {
		return fmt.Errorf("audit: %+v", found)
	}
	if err := s.agree(); err != nil {
		return err
	}
	for _, name := range s.names {
		s.checkOne(ctx, l, s.things[name], "at the end")
	}
	return s.nothingLeft()
}

// repairAll repairs twice: then all is whole, and the second one found nothing
// to do.
func (s *sim) repairAll(ctx context.Context) error {
	for i := range 2 {
		l, err := s.checker(ctx, s.hosts[4])
		if err != nil {
			return err
		}
		r, err := l.repair(ctx, l.spread, true, nil)
		if err != nil {
			return fmt.Errorf("a quiet repair: %w", err)
		}
		if len(r.Away)+len(r.Undecided)+len(r.Failed) > 0 {
			return fmt.Errorf("a quiet repair: %+v", r)
		}
		for _, text := range r.Incomplete {
			if !slices.ContainsFunc(s.names, func(n string) bool { return strings.Contains(text, n) && s.lostFor(n) }) {
				return fmt.Errorf("a quiet repair says of what is not lost: %s", text)
			}
		}
		if i == 1 && r.Copied+r.Rebuilt+r.Replaced+r.Removed > 0 {
			return fmt.Errorf("a second quiet repair: %+v", r)
		}
	}
	return nil
}

// lostFor says whether a pack may be damage: faults destroyed more of it than
// was promised, or it is half deleted.
func (s *sim) lostFor(name string) bool {
	t := s.things[name]
	return t.pack && (t.excused || t.going || t.hurt > 0 && t.acked == nil)
}

// onDisks gives all names that any place holds.
func (s *sim) onDisks() map[string][]*disk {
	out := map[string][]*disk{}
	for _, d := range s.slots {
		_ = d.mem.List(context.Background(), "", func(o backend.Object) error {
			out[o.Name] = append(out[o.Name], d)
			return nil
		})
	}
	return out
}

// agree: all places hold the same under each control object's name.
func (s *sim) agree() error {
	for name, on := range s.onDisks() {
		if isPack(name) || name == identityName || strings.HasPrefix(name, notesPrefix) { // notes are hints
			continue
		}
		if len(on) < len(s.slots) {
			return fmt.Errorf("%s is on %d places", name, len(on))
		}
		for _, d := range on[1:] {
			if !bytes.Equal(d.get(name), on[0].get(name)) {
				return fmt.Errorf("%s: the places hold %.60q and %.60q", name, on[0].get(name), d.get(name))
			}
		}
	}
	return nil
}

// readDegraded reads all with m places away.
func (s *sim) readDegraded(ctx context.Context) error {
	for range s.shards.M {
		s.slots[s.rnd.IntN(len(s.slots))].down = 1
	}
	l, err := s.checker(ctx, s.hosts[5])
	if err != nil {
		return err
	}
	for _, name := range s.names {
		s.checkOne(ctx, l, s.things[name], "degraded")
	}
	for _, d := range s.slots {
		d.down = 0
	}
	return nil
}

// lostIntent says whether a session's intent is gone that fewer than k places
// held when it was acknowledged, since more than m had lost it or missed it
// (excused): without it hosts here do not know of the session (seed 202642).
func (s *sim) lostIntent(session string) bool {
	t := s.things["sessions/"+session]
	if t == nil || !t.excused || t.hurt == 0 || t.going || s.held(t, t.acked, nil) > 0 {
		return false
	}
	s.counts["excused, and an intent lost"]++
	return true
}

// nothingLeft: every object belongs to something.
func (s *sim) nothingLeft() error {
	all := s.onDisks()
	live := map[string]bool{}
	for name := range all {
		if id, ok := strings.CutPrefix(name, "points/"); ok && !simAbort(name, s.slots[0].get(name)) {
			live[id] = true
		}
	}
	for name := range all {
		kind, rest, _ := strings.Cut(name, "/")
		switch kind {
		case identityName, configName, "places", "gc", "drops", "keys":
		case "points":
			if _, dropped := all["drops/"+rest]; dropped {
				return fmt.Errorf("%s is left of what was dropped", name)
			}
		case "sessions":
			if !live[rest] {
				return fmt.Errorf("%s is left", name)
			}
		case "packs":
			pack, i, ok := parseShardName(name)
			if ok && s.lostIntent(sessionOf(pack)) {
				continue
			}
			if !ok || !live[sessionOf(pack)] {
				return fmt.Errorf("%s is left", name)
			}
			t := s.things[pack]
			if s.held(t, t.bodies[0], nil) < len(s.slots) && !s.lostFor(pack) {
				return fmt.Errorf("%s: of a committed session, shard %d, and not all is there", pack, i)
			}
		default:
			if pack := packsPrefix + strings.TrimPrefix(name, notesPrefix); s.things[pack] != nil && s.lostFor(pack) {
				continue // a note of a pack that cannot be made whole stays
			}
			return fmt.Errorf("%s is left", name)
		}
	}
	return nil
}
