package spread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrUndecided: a name has different contents on different places, and
	// none on enough of them.
	ErrUndecided = errors.New("not decided")
	// ErrPlacesChanged: a place was replaced since the repository was opened.
	ErrPlacesChanged = errors.New("a place of the repository was replaced meanwhile; run it again")
)

// placesPrefix begins the names of newer lists of places. Part of the on-disk
// format.
const placesPrefix = "places/"

// maxWhole is the size in bytes up to which a copy is compared whole; of a
// larger one its size, its beginning and its end are. A record's salt and seal
// lie there.
const (
	maxWhole = 256 << 10
	endPart  = 4 << 10
)

// A copied is what one place holds under a control object's name.
type copied struct {
	size  int64
	print sum
	body  []byte // of a small one, or its beginning
	whole bool   // body is all of it
	err   error  // backend.ErrNotExist: nothing
	bad   error  // why its bytes are not what was stored; nil: not known
}

func (c copied) absent() bool { return errors.Is(c.err, backend.ErrNotExist) }

// holders gives the places that hold anything, whatever it is.
func (v *view) holders() (on []int) {
	for i, c := range v.copies {
		if c.err == nil {
			on = append(on, i)
		}
	}
	return on
}

// absent gives how many places say that they hold nothing.
func (v *view) absent() (n int) {
	for _, c := range v.copies {
		if c.absent() {
			n++
		}
	}
	return n
}

// view is what all places hold under a name: best is the content that is
// decided, or else the one that most have, on the members that have it. It is
// damaged only where all that can be seen are.
type view struct {
	copies  []copied
	best    copied
	on      []int
	decided bool
	// rival: another content may be the decided one, as far as can be seen.
	rival bool
	// could has one copy of each content that may be decided, if none is known
	// to be.
	could []copied
}

// fetch reads one place's copy.
func (m *member) fetch(ctx context.Context, name string) copied {
	n, err := m.size(ctx, name)
	if err != nil {
		return copied{err: err}
	}
	c := copied{size: n}
	if n <= maxWhole {
		c.body, c.err = m.read(ctx, name, 0, int(n))
		c.print, c.whole = blake3.Sum256(c.body), true
		return c
	}
	head, err := m.read(ctx, name, 0, endPart)
	if err != nil {
		return copied{err: err}
	}
	tail, err := m.read(ctx, name, n-endPart, endPart)
	c.body, c.err = head, err
	c.print = blake3.Sum256(fmt.Appendf(slices.Concat(head, tail), "%d", n))
	return c
}

// compare asks all places for their copies, and looks which are damaged where
// they are not alike.
func (s *Spread) compare(ctx context.Context, name string) *view {
	return s.compareBytes(ctx, name, false)
}

// compareBytes is compare that with all reads every byte, and looks at each
// content.
func (s *Spread) compareBytes(ctx context.Context, name string, all bool) *view {
	v := &view{copies: make([]copied, len(s.members))}
	s.each(func(i int, m *member) { v.copies[i] = m.fetch(ctx, name) })
	if all || s.verifies(name) && v.differ() {
		s.verifyCopies(ctx, name, v)
	}
	s.choose(name, v)
	return v
}

// differ says whether two places hold different things.
func (v *view) differ() bool {
	var first *copied
	for i, c := range v.copies {
		switch {
		case c.err != nil:
		case first == nil:
			first = &v.copies[i]
		case c.print != first.print:
			return true
		}
	}
	return false
}

// verifyCopies says of each copy whether it is damaged. Large ones are read
// whole for it, one after the other, and compared whole.
func (s *Spread) verifyCopies(ctx context.Context, name string, v *view) {
	said := map[sum]error{}
	for i := range v.copies {
		c := &v.copies[i]
		if c.err != nil {
			continue
		}
		body := c.body
		if !c.whole {
			var err error
			if body, err = s.members[i].whole(ctx, name); err != nil {
				*c = copied{err: err}
				continue
			}
			*c = copied{size: int64(len(body)), print: blake3.Sum256(body), body: bytes.Clone(body[:min(len(body), endPart)])}
		}
		bad, known := said[c.print]
		if !known {
			bad = s.verify(name, body)
			said[c.print] = bad
		}
		c.bad = bad
	}
}

// VerifyWith takes the place of Options.Verify, when more can be told: the
// repository's keys are open.
func (s *Spread) VerifyWith(verify func(name string, body []byte) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verifier = verify
}

func (s *Spread) verifies(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verifier != nil || strings.HasPrefix(name, placesPrefix)
}

// verify says why bytes are not those of a control object; nil: not known.
func (s *Spread) verify(name string, body []byte) error {
	if strings.HasPrefix(name, placesPrefix) {
		_, err := readList(name, body)
		return err
	}
	s.mu.Lock()
	f := s.verifier
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(name, body)
}

// body gives the bytes that compare chose. Damaged ones are given only where no
// place that was chosen gives others.
func (s *Spread) body(ctx context.Context, name string, v *view) ([]byte, error) {
	if v.best.whole {
		return v.best.body, nil
	}
	var damaged []byte
	var errs []error
	for _, i := range v.on {
		b, err := s.members[i].whole(ctx, name)
		switch {
		case err != nil:
			errs = append(errs, err)
		case int64(len(b)) != v.best.size:
			errs = append(errs, &placeError{s.members[i].Spec, errShort})
		case s.verify(name, b) == nil:
			return b, nil
		case damaged == nil:
			damaged = b
		}
	}
	if damaged != nil {
		return damaged, nil
	}
	return nil, errors.Join(errs...)
}

// strict says whether a content needs the strict quorum.
func (s *Spread) strict(name string, body []byte) bool {
	for _, p := range []string{"drops/", "gc/", placesPrefix} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return s.opts.Strict != nil && s.opts.Strict(name, body)
}

// quorum is how many places must hold a content so that it is decided.
func (s *Spread) quorum(name string, body []byte) int {
	if s.strict(name, body) {
		return s.strictQuorum()
	}
	return s.commitQuorum()
}

// choose finds the content that is decided. If none is as far as can be seen,
// it takes what most places hold, of equals that of the first, and says
// whether places that cannot be asked might prove another right. A damaged copy
// counts as a vote that cannot be read any more, while there are others.
func (s *Spread) choose(name string, v *view) {
	type group struct {
		on   []int
		need int
	}
	intact := slices.ContainsFunc(v.copies, func(c copied) bool { return c.err == nil && c.bad == nil })
	byPrint := map[sum]*group{}
	var groups []*group
	unknown := 0
	for i, c := range v.copies {
		switch {
		case c.absent():
		case c.err != nil, c.bad != nil && intact:
			unknown++
		case byPrint[c.print] == nil:
			g := &group{[]int{i}, s.quorum(name, c.body)}
			byPrint[c.print] = g
			groups = append(groups, g)
		default:
			byPrint[c.print].on = append(byPrint[c.print].on, i)
		}
	}
	if len(groups) == 0 {
		return
	}
	rank := func(g *group) int {
		if len(g.on) >= g.need {
			return len(g.on) + len(v.copies)
		}
		return len(g.on)
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return rank(b) - rank(a) })
	best := groups[0]
	v.best, v.on, v.decided = v.copies[best.on[0]], best.on, len(best.on) >= best.need
	for i, g := range groups {
		if !v.decided && len(g.on)+unknown >= g.need {
			v.could = append(v.could, v.copies[g.on[0]])
			v.rival = v.rival || i > 0
		}
	}
}

// damaged gives what is wrong with the copies that were not chosen for it.
func (v *view) damaged(s *Spread) []error {
	out := make([]error, len(v.copies))
	for i, c := range v.copies {
		if c.bad != nil && v.best.bad == nil {
			out[i] = &placeError{s.members[i].Spec, c.bad}
		}
	}
	return out
}

// errs gives what went wrong at each place; nothing stored is no error.
func (v *view) errs() []error {
	var out []error
	for _, c := range v.copies {
		if c.err != nil && !c.absent() {
			out = append(out, c.err)
		}
	}
	return out
}

// look gives the content of a name, or ErrNotExist when enough places say so.
func (s *Spread) look(ctx context.Context, name string) (*view, error) {
	v := s.compare(ctx, name)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(v.on) > 0 {
		if len(v.on) < s.settledQuorum() && mustSettle(name) {
			s.unsettle(name)
		}
		damaged := v.damaged(s)
		s.spoilt(name, damaged)
		if errs := slices.DeleteFunc(append(v.errs(), damaged...), func(err error) bool { return err == nil }); v.rival && len(errs) > 0 {
			return nil, fmt.Errorf("%s: %w: the places that can be asked hold different things: %w", name, ErrUndecided, s.awayError("telling which is right", len(s.members), errs))
		}
		return v, nil
	}
	absent := v.absent()
	if absent < s.leastQuorum() {
		return nil, s.awayError("looking for "+name, s.leastQuorum(), v.errs())
	}
	s.sawOnly(absent)
	if err := s.unchanged(ctx); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", name, backend.ErrNotExist)
}

func (s *Spread) readControl(ctx context.Context, name string, p []byte, off int64) error {
	v, err := s.look(ctx, name)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > v.best.size {
		return fmt.Errorf("%s: %w", name, errShort)
	}
	if v.best.whole {
		copy(p, v.best.body[off:])
		return nil
	}
	if off == 0 && int64(len(p)) == v.best.size {
		b, err := s.body(ctx, name, v)
		copy(p, b)
		return err
	}
	var errs []error
	for _, i := range v.on {
		b, err := s.members[i].read(ctx, name, off, len(p))
		if err == nil {
			copy(p, b)
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// putControl stores a copy on every place: it is decided when need of them
// hold our bytes. The first place in the name's order is asked alone, so that
// of several creators all but one find the other's bytes there; those then
// help that one, so that the name is decided whoever dies.
func (s *Spread) putControl(ctx context.Context, name string, data []byte, need int, strict bool) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if err := s.enough("storing "+name, need); err != nil {
		return err
	}
	guarded := !strings.HasPrefix(name, notesPrefix)
	if strict && guarded {
		if err := s.unchanged(ctx); err != nil {
			return err
		}
	}
	t := s.vote(ctx, name, data)
	if err := t.result(s, need); err != nil {
		if ctx.Err() != nil && t.ours == 0 {
			return ctx.Err()
		}
		return err
	}
	if guarded {
		s.missed(name, t.errs)
		return s.unchanged(ctx)
	}
	return nil
}

// enough refuses, before anything is stored, what cannot be decided.
func (s *Spread) enough(what string, need int) error {
	n := 0
	errs := make([]error, len(s.members))
	for i, m := range s.members {
		if m.away() {
			errs[i] = m.reason()
		} else {
			n++
		}
	}
	if n < need {
		return s.awayError(what, need, errs)
	}
	return nil
}

// tally counts the places by what they hold under a name.
type tally struct {
	name        string
	ours, other int
	taken       bool    // other bytes are decided
	errs        []error // by member; nil where our bytes are
}

// result says whether our bytes are decided.
func (t *tally) result(s *Spread, need int) error {
	n := len(s.members)
	switch {
	case t.ours >= need:
		return nil
	case n-t.other < need && t.taken:
		return fmt.Errorf("%s: %w", t.name, backend.ErrExist)
	case n-t.other < need && t.ours+t.other == n:
		// Of two that did not see the same places. ErrExist would be taken for
		// an answer, and what is read back for what was decided.
		return fmt.Errorf("%s: %w: %d places hold it, and %d something else: cairn repair places decides it", t.name, ErrUndecided, t.ours, t.other)
	case t.other > 0:
		return fmt.Errorf("%s: %w: %d places hold it, %d hold something else, and %d cannot be asked: %w", t.name, ErrUndecided, t.ours, t.other, n-t.ours-t.other,
			s.awayError("storing it", need, t.errs))
	}
	return s.awayError("storing "+t.name, need, t.errs)
}

// vote puts data on all places, or what it finds on the first. If that is
// damaged it is passed over: what another place holds intact is helped.
func (s *Spread) vote(ctx context.Context, name string, data []byte) *tally {
	return s.voteWithout(ctx, name, data, make([]error, len(s.members)))
}

// voteWithout is vote without the places for which shun has an error.
func (s *Spread) voteWithout(ctx context.Context, name string, data []byte, shun []error) *tally {
	body := bytes.Clone(data) // a put that hangs reads it for as long
	errs := slices.Clone(shun)
	asked := make([]bool, len(s.members))
	push := body
	for _, i := range s.order(name) {
		m := s.members[i]
		asked[i] = true
		if errs[i] != nil {
			continue
		}
		if errs[i] = m.put(ctx, name, body); errs[i] == nil {
			break
		}
		if errors.Is(errs[i], backend.ErrExist) {
			there, err := m.whole(ctx, name)
			if err == nil && s.verify(name, there) != nil {
				there = s.intact(ctx, name)
			}
			if err == nil && there != nil {
				push = there
				break
			}
		}
	}
	s.each(func(i int, m *member) {
		if !asked[i] {
			errs[i] = m.put(ctx, name, push)
		}
	})
	return s.count(ctx, name, body, push, errs)
}

// intact gives what is known to lie undamaged under a name; nil: nothing.
func (s *Spread) intact(ctx context.Context, name string) []byte {
	v := s.compareBytes(ctx, name, true)
	if len(v.on) == 0 || v.best.bad != nil {
		return nil
	}
	b, err := s.body(ctx, name, v)
	if err != nil {
		return nil
	}
	return b
}

// count makes a tally of what the puts of push gave.
func (s *Spread) count(ctx context.Context, name string, body, push []byte, errs []error) *tally {
	t := &tally{name: name, errs: errs}
	ours := bytes.Equal(body, push)
	holds := make([]int, len(errs)) // 1 ours, 2 another's
	others := make([][]byte, len(errs))
	s.each(func(i int, m *member) {
		switch {
		case errs[i] == nil && ours:
			holds[i] = 1
		case errs[i] == nil:
			holds[i], others[i] = 2, push
		case errors.Is(errs[i], backend.ErrExist):
			there, err := m.whole(ctx, name)
			if err != nil {
				errs[i] = err
			} else if bytes.Equal(there, body) {
				holds[i], errs[i] = 1, nil
			} else {
				holds[i], others[i] = 2, there
			}
		}
	})
	same := map[string]int{}
	for i, h := range holds {
		switch h {
		case 1:
			t.ours++
		case 2:
			t.other++
			same[string(others[i])]++
			t.taken = t.taken || same[string(others[i])] >= s.quorum(name, others[i])
		}
	}
	return t
}

// maxControl bounds a control object in bytes.
const maxControl = 80 << 20

// whole reads one place's copy of a control object.
func (m *member) whole(ctx context.Context, name string) ([]byte, error) {
	n, err := m.size(ctx, name)
	if err != nil {
		return nil, err
	}
	if n > maxControl {
		return nil, fmt.Errorf("place %s: %s has %d bytes, more than such an object can have", m.Spec, name, n)
	}
	return m.read(ctx, name, 0, int(n))
}

// mustSettle says whether what is decided next may rest on an object.
func mustSettle(name string) bool {
	for _, p := range []string{"points/", "drops/", "gc/"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

func (s *Spread) unsettle(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsettled[name] = true
}

func (s *Spread) noteUnsettled(seen *table) {
	for o := range seen.all() {
		if !o.pack && mustSettle(o.name) && bits.OnesCount32(o.on) < s.settledQuorum() {
			s.unsettle(o.name)
		}
	}
}

// settle decides what was seen undecided: whoever reads an abort, a drop or a
// list of gc that too few places hold must not build on it, for it may vanish
// with them. So it is copied to the others first, or nothing is put.
func (s *Spread) settle(ctx context.Context) error {
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.unsettled))
	s.mu.Unlock()
	for _, name := range names {
		if err := s.settleOne(ctx, name, false); err != nil {
			return fmt.Errorf("what is stored under %s must be decided first: %w", name, err)
		}
		s.mu.Lock()
		delete(s.unsettled, name)
		s.mu.Unlock()
	}
	return nil
}

// settleOne decides one name; with all every byte of large copies counts.
func (s *Spread) settleOne(ctx context.Context, name string, all bool) error {
	var t *tally
	for range 2 {
		v := s.compareBytes(ctx, name, all)
		n := len(v.on)
		if n >= s.settledQuorum() || n == 0 && len(v.errs()) == 0 {
			return ctx.Err()
		}
		if n == 0 {
			return s.awayError("deciding it", s.settledQuorum(), v.errs())
		}
		body, err := s.body(ctx, name, v)
		if err != nil {
			return err
		}
		t = s.vote(ctx, name, body)
		if t.ours >= s.settledQuorum() {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", ErrUndecided, s.awayError("deciding it", s.settledQuorum(), t.errs))
}

// unchanged makes sure that the places are those that the repository has now:
// that no newer list of them is decided (doc.go).
func (s *Spread) unchanged(ctx context.Context) error {
	if s.opts.Next == "" {
		return nil
	}
	errs := make([]error, len(s.members))
	s.each(func(i int, m *member) { _, errs[i] = m.size(ctx, s.opts.Next) })
	absent := 0
	var holders []int
	for i, err := range errs {
		switch {
		case err == nil:
			holders = append(holders, i)
		case errors.Is(err, backend.ErrNotExist):
			absent++
			errs[i] = nil
		}
	}
	if s.neverDecided(absent) {
		s.stray(s.opts.Next, holders)
		return ctx.Err()
	}
	if len(holders) > 0 {
		return fmt.Errorf("%w (%s)", ErrPlacesChanged, s.opts.Next)
	}
	if need := len(s.members) - s.strictQuorum() + 1; absent < need {
		return s.awayError("making sure that no place was replaced", need, errs)
	}
	return ctx.Err()
}

// neverDecided says whether a list of places, which so many places say they do not
// hold, cannot have been decided: each of its ways (Replace, also with others that
// are lost) leaves it on all but m places at least, and a strict quorum is more
// than m. What the others hold then is of a replacement that died early, or goes on
// and is not decided yet, or a place made it up: it counts for nobody, or one place
// that lies could change the list, or stop all writers.
func (s *Spread) neverDecided(absent int) bool { return absent >= s.strictQuorum() }

var errNeverDecided = errors.New("a list of places that was never decided: a cairn place replace runs, or died, or the place made it up")

// stray notes which members hold a list of places that was never decided.
func (s *Spread) stray(name string, on []int) {
	for _, i := range on {
		s.blame(s.members[i], name, errNeverDecided, func(t *trouble) *trial { return &t.stray })
	}
}
