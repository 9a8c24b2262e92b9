package spread

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
)

// Place is one place of a repository, as its config names it. Part of the
// on-disk format.
type Place struct {
	ID   string `json:"id"`             // 32 hexadecimal digits, of this place alone
	Slot string `json:"slot,omitempty"` // whose shards it took over; "": its own
	Spec string `json:"spec"`           // a folder or URL
}

func (p Place) slot() string { return cmp.Or(p.Slot, p.ID) }

// Layout says where a repository lies: generation 0 in its config, a newer
// one in the object places/<generation>. Part of the on-disk format.
type Layout struct {
	Repository string `json:"repository"`
	Generation int    `json:"generation"`
	Shards     Shards `json:"shards"`
	// Sum is the object's (backend.WithSum). Those made before there were sums
	// have none.
	Sum    string  `json:"sum,omitempty"`
	Places []Place `json:"places"`

	// decided: it was noted in a door that is no place, which Save does only
	// with what was decided.
	decided bool
}

// identity is the object that a place holds of itself. Part of the on-disk
// format.
type identity struct {
	Repository string `json:"repository"`
	Place      string `json:"place"`
}

// configName is the repository's config, which holds generation 0.
const configName = "config"

// limits of what is read from outside.
const (
	maxIdentity    = 4 << 10
	maxLayout      = 64 << 10
	maxGenerations = 10000
)

// NewPlace gives a place a name.
func NewPlace(spec string) Place {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return Place{ID: hex.EncodeToString(b[:]), Spec: spec}
}

// Check refuses what cannot be.
func (l *Layout) Check() error {
	if err := l.Shards.Check(); err != nil {
		return err
	}
	if n := len(l.Places); n != 1 && n != l.Shards.Total() {
		return fmt.Errorf("%s shards need %d places, or 1, and there are %d", l.Shards, l.Shards.Total(), n)
	}
	ids, slots, specs := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, p := range l.Places {
		if p.ID == "" || p.Spec == "" || ids[p.ID] || slots[p.slot()] || specs[p.Spec] {
			return fmt.Errorf("the list of places names %q twice, or without an id", p.Spec)
		}
		ids[p.ID], slots[p.slot()], specs[p.Spec] = true, true, true
	}
	return nil
}

func (l *Layout) identity(p Place) []byte {
	b, err := json.Marshal(identity{l.Repository, p.ID})
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return b
}

func layoutName(generation int) string { return placesPrefix + strconv.Itoa(generation) }

// Identify gives a place its identity object. It is the last step of making
// one: a place without it does not count.
func (l *Layout) Identify(ctx context.Context, b backend.Backend, p Place) error {
	return b.Put(ctx, identityName, l.identity(p))
}

// PlaceID says which place of which repository a backend is;
// backend.ErrNotExist when it is none.
func PlaceID(ctx context.Context, b backend.Backend) (repository, place string, err error) {
	body, err := backend.Get(ctx, b, identityName, maxIdentity)
	if err != nil {
		return "", "", err
	}
	var id identity
	if err := json.Unmarshal(body, &id); err != nil {
		return "", "", fmt.Errorf("the object %q is damaged: %w", identityName, err)
	}
	return id.Repository, id.Place, nil
}

// OpenPlace opens a place by its spec.
type OpenPlace func(ctx context.Context, spec string) (backend.Backend, error)

// Known gives the lists of places that a door (a folder by which a repository
// is named: one of its places, or a copy of its config) holds, newest last.
// zero is generation 0, from the config.
func Known(ctx context.Context, door backend.Backend, zero Layout) ([]Layout, error) {
	lists := []Layout{zero}
	_, _, err := PlaceID(ctx, door)
	decided := errors.Is(err, backend.ErrNotExist)
	err = door.List(ctx, placesPrefix, func(o backend.Object) error {
		body, err := backend.Get(ctx, door, o.Name, maxLayout)
		if err != nil {
			return err
		}
		l, err := zero.parse(o.Name, body)
		if err != nil {
			return nil // the other places say the same, or better
		}
		l.decided = decided
		lists = append(lists, *l)
		return nil
	})
	slices.SortFunc(lists, func(a, b Layout) int { return a.Generation - b.Generation })
	return lists, err
}

// encode gives the object. Part of the on-disk format.
func (l *Layout) encode() ([]byte, error) {
	c := *l
	c.Sum = backend.BlankSum
	body, err := json.Marshal(c)
	return backend.WithSum(body), err
}

// parse reads a list that belongs to the same repository.
func (l *Layout) parse(name string, body []byte) (*Layout, error) {
	n, err := readList(name, body)
	if err != nil {
		return nil, err
	}
	if n.Repository != l.Repository || n.Shards != l.Shards || len(n.Places) != len(l.Places) {
		return nil, fmt.Errorf("%s is no list of this repository's places: it is damaged, or a place lies", name)
	}
	return n, nil
}

// readList reads a list, or says why bytes are none of that name. Of one without
// a sum a changed character in an id or a spec is not seen.
func readList(name string, body []byte) (*Layout, error) {
	if len(body) > maxLayout {
		return nil, fmt.Errorf("%s has %d bytes, more than such an object can have", name, len(body))
	}
	n := new(Layout)
	if err := json.Unmarshal(body, n); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := n.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if layoutName(n.Generation) != name {
		return nil, fmt.Errorf("%s is the list of places number %d: it is damaged", name, n.Generation)
	}
	if n.Sum == "" {
		if back, err := json.Marshal(n); err != nil || !bytes.Equal(back, body) {
			return nil, fmt.Errorf("%s has no sum, and is not as a list of places was written before there were sums: it is damaged", name)
		}
	} else if !backend.SumHolds(body, n.Sum) {
		return nil, fmt.Errorf("%s is not what its sum says: it is damaged", name)
	}
	return n, nil
}

// Open opens a repository's places as the newest of the lists that its door
// knows says, and as newer ones in the places say. Places that cannot be
// opened are away; which ones Warnings tells.
func Open(ctx context.Context, known []Layout, open OpenPlace, o Options) (*Spread, *Layout, error) {
	l := known[0]
	for _, n := range slices.Backward(known) {
		if n.Generation == 0 || n.decided || n.begun(ctx, known, open, o) {
			l = n
			break
		}
	}
	for range maxGenerations {
		s, err := l.open(ctx, open, o)
		if err != nil {
			return nil, nil, err
		}
		next, err := l.next(ctx, s, open)
		if err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		if next == nil {
			return s, &l, nil
		}
		if err := s.Close(); err != nil { // only looked at
			return nil, nil, err
		}
		l = *next
	}
	return nil, nil, errors.New("the list of places was replaced too often to be true")
}

// begun says whether a list was decided as far as its new places tell: those
// that the newest older list which is known does not have. One gets its
// identity only when a list with it was decided, so with all of them the last
// one is. A door need not know each list: a replacement that died before it
// was noted there was ended by the next one.
func (l *Layout) begun(ctx context.Context, known []Layout, open OpenPlace, o Options) bool {
	o.defaults()
	var before *Layout
	for i, n := range known {
		if n.Generation < l.Generation && (before == nil || n.Generation > before.Generation) {
			before = &known[i]
		}
	}
	if before == nil {
		return false
	}
	fresh := 0
	for i, p := range l.Places {
		if p.ID == before.Places[i].ID {
			continue
		}
		m := l.openOne(ctx, p, open, o)
		if c, ok := m.Place.(io.Closer); ok {
			_ = c.Close() // only looked at
		}
		if m.Place == nil {
			return false
		}
		fresh++
	}
	return fresh > 0
}

// open opens the places of one generation, at once.
func (l *Layout) open(ctx context.Context, open OpenPlace, o Options) (*Spread, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	o.defaults()
	members := make([]Member, len(l.Places))
	done := make(chan struct{}, len(l.Places))
	for i, p := range l.Places {
		go func() { // a place that hangs is waited for no longer than ReadLimit
			members[i] = l.openOne(ctx, p, open, o)
			done <- struct{}{}
		}()
	}
	for range l.Places {
		<-done
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(members) > 1 {
		o.Next = layoutName(l.Generation + 1)
	}
	return New(members, l.Shards, o)
}

// openOne opens a place and makes sure that it is the one.
func (l *Layout) openOne(ctx context.Context, p Place, open OpenPlace, o Options) Member {
	m := Member{ID: p.ID, Slot: p.slot(), Spec: p.Spec, Identity: l.identity(p)}
	opened := make(chan backend.Backend, 1)
	spec := cmp.Or(o.Moved[p.ID], p.Spec)
	probe := &member{Member: Member{Spec: p.Spec, Place: noPlace{}}, o: &o}
	err := probe.do(ctx, o.ReadLimit, func(ctx context.Context, _ func()) error {
		b, err := open(ctx, spec)
		if err != nil {
			return err
		}
		if err := l.verify(ctx, b, p); err != nil {
			if c, ok := b.(io.Closer); ok {
				_ = c.Close() // only looked at
			}
			return err
		}
		opened <- b
		return nil
	})
	if err != nil {
		m.Why = root(err)
		return m
	}
	m.Place = <-opened
	return m
}

// noPlace stands for a place that is not open yet.
type noPlace struct{ backend.Backend }

// verify makes sure that an opened place is p.
func (l *Layout) verify(ctx context.Context, b backend.Backend, p Place) error {
	repository, id, err := PlaceID(ctx, b)
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return fmt.Errorf("it holds no place of this repository: is its disk mounted; if the disk is new: cairn place replace %s %s", p.Spec, p.Spec)
	case err != nil:
		return err
	case repository != l.Repository:
		return fmt.Errorf("it belongs to another repository (%.8s)", repository)
	case id != p.ID:
		for _, q := range l.Places {
			if q.ID == id {
				return fmt.Errorf("it is the place that should be %s: the two are swapped", q.Spec)
			}
		}
		return fmt.Errorf("it is another place of this repository (%.8s), one that was replaced", id)
	}
	return nil
}

// next gives the next generation, if one is decided; one that was begun is
// brought to its end.
func (l *Layout) next(ctx context.Context, s *Spread, open OpenPlace) (*Layout, error) {
	if s.opts.Next == "" {
		return nil, nil
	}
	v := s.compare(ctx, s.opts.Next)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(v.on) == 0 {
		return nil, nil // none, as far as can be seen; unchanged tells before anything counts
	}
	if s.neverDecided(v.absent()) {
		s.stray(s.opts.Next, v.holders())
		return nil, nil
	}
	body, err := s.body(ctx, s.opts.Next, v)
	if err != nil {
		return nil, err
	}
	n, err := l.parse(s.opts.Next, body)
	if err != nil && !v.decided {
		s.stray(s.opts.Next, v.holders())
		return nil, nil // as below
	}
	if err != nil {
		return nil, err
	}
	if !v.decided && !n.begun(ctx, []Layout{*l}, open, s.opts) {
		if t := s.vote(ctx, s.opts.Next, body); t.ours < s.strictQuorum() {
			// Perhaps never decided, perhaps its holders are away: reading is
			// right either way, and whoever stores anything is refused.
			return nil, nil
		}
	}
	return n, nil
}

// find gives the number of the place that spec or an id's beginning names.
func (l *Layout) find(spec string) (int, error) {
	found := -1
	for i, p := range l.Places {
		if p.Spec == spec {
			return i, nil
		}
		if len(spec) >= 8 && strings.HasPrefix(p.ID, spec) {
			found = i
		}
	}
	if found >= 0 {
		return found, nil
	}
	var specs []string
	for _, p := range l.Places {
		specs = append(specs, p.Spec)
	}
	return -1, fmt.Errorf("%s is no place of this repository; its places are: %s", spec, strings.Join(specs, ", "))
}

// Replace puts a new, empty place into the slot of an old one: it decides the
// next generation of the list, copies what is decided, and last gives the new
// place its identity. The shards are Repair's to make. old may be away. A
// crash before the list is decided changes nothing; after it the new place
// does not count until Replace with both names equal, or again, ends it.
//
// The list needs the strict quorum. Where so many places are not left, old
// counts as one that agrees when it is away, for the caller says that it is
// lost; with lost all others that are away do, too.
func (l *Layout) Replace(ctx context.Context, s *Spread, old, spec string, fresh backend.Backend, lost bool) (*Layout, error) {
	if len(l.Places) == 1 {
		return nil, errors.New("a repository with one place has none to take its bytes from: copy the folder, it is complete in itself")
	}
	i, err := l.find(old)
	if err != nil {
		return nil, err
	}
	if err := l.mayBecome(ctx, fresh, spec, i); err != nil {
		return nil, err
	}
	next := &Layout{Repository: l.Repository, Generation: l.Generation + 1, Shards: l.Shards, Places: slices.Clone(l.Places)}
	p := l.successor(i, spec)
	next.Places[i] = p
	body, err := next.encode()
	if err != nil {
		return nil, err
	}
	if n, tried := l.tried(ctx, s, i, spec); n != nil {
		next, body, p = n, tried, n.Places[i] // as it was written: perhaps without a sum
	}
	if err := next.Check(); err != nil {
		return nil, err
	}
	need := s.agreeing(i, lost)
	err = s.patient(ctx, func() error { return s.putList(ctx, layoutName(next.Generation), body, need) })
	if errors.Is(err, backend.ErrExist) {
		return nil, ErrPlacesChanged
	}
	if err != nil && !lost {
		err = fmt.Errorf("%w\nif the others that are away are lost for good, too, add --others-lost", err)
	}
	if err != nil {
		return nil, fmt.Errorf("store the new list of places: %w", err)
	}
	// From here on no writer that does not know the list can commit: what is
	// decided now, and copied, is all there is from before.
	if err := s.copyControl(ctx, fresh); err != nil {
		return nil, fmt.Errorf("copy to %s: %w; the list of places is stored; run it again: cairn place replace %s %s", spec, err, spec, spec)
	}
	if err := next.Identify(ctx, fresh, p); err != nil {
		return nil, fmt.Errorf("make %s a place: %w", spec, err)
	}
	return next, nil
}

// putList stores the next list. Places that hold another one, which was never
// decided, have no vote, and are not helped: of two that replace a place in the
// same moment perhaps none gets through.
func (s *Spread) putList(ctx context.Context, name string, body []byte, need int) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if err := s.enough("storing "+name, need); err != nil {
		return err
	}
	v := s.compare(ctx, name)
	shun := make([]error, len(s.members))
	if s.neverDecided(v.absent()) {
		for i, c := range v.copies {
			if c.err == nil && !bytes.Equal(c.body, body) {
				shun[i] = &placeError{s.members[i].Spec, errNeverDecided}
			}
		}
	}
	err := s.voteWithout(ctx, name, body, shun).result(s, need)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// successor gives the place that replaces place i in the next generation. Its
// ID is the same for each try: where two tries died that did not see each other,
// lists that differ could split the places that are left, so that no list is
// ever decided. Only one list of a generation is, so it names no other place.
func (l *Layout) successor(i int, spec string) Place {
	slot := l.Places[i].slot()
	h := blake3.Sum256(fmt.Appendf(nil, "cairn place\x00%s\x00%d\x00%s\x00%s", l.Repository, l.Generation+1, slot, spec))
	return Place{ID: hex.EncodeToString(h[:16]), Slot: slot, Spec: spec}
}

// tried gives the next list as an earlier try to put spec where place i is left
// it on some place; nil: none. Where that was decided by fewer places than
// Open asks for, since others were lost, another list would never be.
func (l *Layout) tried(ctx context.Context, s *Spread, i int, spec string) (*Layout, []byte) {
	name := layoutName(l.Generation + 1)
	v := s.compare(ctx, name)
	if len(v.on) == 0 || !v.best.whole {
		return nil, nil
	}
	n, err := l.parse(name, v.best.body)
	if err != nil || n.Places[i].Spec != spec || n.Places[i].slot() != l.Places[i].slot() || n.Places[i].ID == l.Places[i].ID {
		return nil, nil
	}
	for j, p := range n.Places {
		if j != i && p != l.Places[j] {
			return nil, nil // a place made it up
		}
	}
	return n, v.best.body
}

// mayBecome makes sure that a folder may become a place: it is empty, or what
// an earlier try left.
func (l *Layout) mayBecome(ctx context.Context, b backend.Backend, spec string, slot int) error {
	if _, id, err := PlaceID(ctx, b); err == nil {
		return fmt.Errorf("%s is a place already (%.8s): name an empty folder", spec, id)
	} else if !errors.Is(err, backend.ErrNotExist) {
		return err
	}
	for i, p := range l.Places {
		if p.Spec == spec && i != slot {
			return fmt.Errorf("%s is another place of this repository: name an empty folder", spec)
		}
	}
	body, err := backend.Get(ctx, b, configName, maxLayout)
	if err == nil {
		var c struct{ ID string }
		if json.Unmarshal(body, &c) == nil && c.ID == l.Repository {
			return nil
		}
		return fmt.Errorf("%s holds another repository: name an empty folder", spec)
	}
	if !errors.Is(err, backend.ErrNotExist) {
		return err
	}
	stop := errors.New("not empty")
	if err := b.List(ctx, "", func(backend.Object) error { return stop }); errors.Is(err, stop) {
		return fmt.Errorf("%s is not empty: name an empty folder", spec)
	} else if err != nil {
		return err
	}
	return nil
}

// agreeing is how many places must take a new list that replaces member i.
func (s *Spread) agreeing(i int, lost bool) int {
	alive, away := 0, 0
	for j, m := range s.members {
		if !m.away() {
			alive++
		} else if j == i || lost {
			away++
		}
	}
	if need := s.strictQuorum(); alive < need {
		return max(1, need-away)
	}
	return s.strictQuorum()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// copyControl copies every control object that any place holds to a new one.
// What is decided is on one of those that survey demands, whether the place
// that leaves is among them or not.
func (s *Spread) copyControl(ctx context.Context, to backend.Backend) error {
	seen, err := s.surveyUnguarded(ctx, "")
	if err != nil {
		return err
	}
	all := seen.list()
	// The config is first: by it a later try knows what an earlier one left.
	slices.SortStableFunc(all, func(a, b *object) int { return cmp.Compare(btoi(b.name == configName), btoi(a.name == configName)) })
	for _, o := range all {
		if isPack(o.name) {
			continue
		}
		v := s.compare(ctx, o.name)
		if len(v.on) == 0 {
			for i, c := range v.copies {
				if o.on>>i&1 > 0 && c.err != nil && !c.absent() {
					return fmt.Errorf("read %s: %w", o.name, c.err)
				}
			}
			continue // deleted since
		}
		if strings.HasPrefix(o.name, placesPrefix) && s.neverDecided(v.absent()) {
			continue
		}
		body, err := s.body(ctx, o.name, v)
		if err != nil {
			return err
		}
		if err := to.Put(ctx, o.name, body); err != nil && !errors.Is(err, backend.ErrExist) {
			return err
		}
	}
	return ctx.Err()
}

// Member gives the place that is in the slot of another, as it is open now.
func (s *Spread) Member(slot string) (Member, bool) {
	for _, m := range s.members {
		if m.Slot == slot {
			return m.Member, true
		}
	}
	return Member{}, false
}

// Save puts the list into a door that is no place itself.
func (l *Layout) Save(ctx context.Context, door backend.Backend) error {
	body, err := l.encode()
	if err != nil {
		return err
	}
	if err := door.Put(ctx, layoutName(l.Generation), body); err != nil && !errors.Is(err, backend.ErrExist) {
		return err
	}
	return nil
}

// PlaceState is one line of `cairn place ls`.
type PlaceState struct {
	Place
	State   string `json:"state"` // "ok", "away", "read-only", "behind"
	Why     string `json:"why,omitempty"`
	Missing int    `json:"objects_missing"` // that it should hold
	Held    int    `json:"objects"`
}

// States gives the state of each place, by listing all of them.
func (s *Spread) States(ctx context.Context, l *Layout) ([]PlaceState, error) {
	out := make([]PlaceState, len(s.members))
	errs := make([]error, len(s.members))
	s.each(func(i int, m *member) {
		if errs[i] = m.there(ctx); errs[i] == nil {
			errs[i] = m.tryWrite(ctx)
		}
	})
	seen, err := s.surveyUnguarded(ctx, "")
	if err != nil && !errors.Is(err, ErrAway) {
		return nil, err
	}
	all := slices.DeleteFunc(seen.list(), func(o *object) bool { // what nobody misses
		if !strings.HasPrefix(o.name, placesPrefix) {
			return false
		}
		absent := 0
		for i, err := range errs {
			if o.on>>i&1 == 0 && (err == nil || errors.Is(err, errReadOnly)) {
				absent++
			}
		}
		return s.neverDecided(absent)
	})
	ended := endedSessions(all)
	for i, m := range s.members {
		out[i] = PlaceState{Place: l.Places[i], State: "ok"}
		for _, o := range all {
			if o.pack && !ended[sessionOf(o.name)] {
				continue // of a run that goes on, or that died
			}
			held, missing := s.holds(o, i)
			out[i].Held += held
			out[i].Missing += missing
		}
		switch {
		case errors.Is(errs[i], errReadOnly):
			out[i].State, out[i].Why = "read-only", root(errs[i]).Error()
		case errs[i] != nil:
			out[i].State, out[i].Why = "away", root(errs[i]).Error()
		case out[i].Missing > 0:
			out[i].State = "behind"
		}
		if m.Place == nil {
			out[i].Why = m.Why.Error()
		}
	}
	return out, ctx.Err()
}

// holds counts what member i holds and misses of an object.
func (s *Spread) holds(o *object, i int) (held, missing int) {
	if strings.HasPrefix(o.name, notesPrefix) {
		return 0, 0
	}
	if !o.pack {
		if o.on&(1<<i) != 0 {
			return 1, 0
		}
		return 0, 1
	}
	order := s.order(o.name)
	for n := range s.shards.Total() {
		if order[n%len(order)] != i {
			continue
		}
		if o.on&(1<<n) != 0 {
			held++
		} else {
			missing++
		}
	}
	return held, missing
}

var errReadOnly = errors.New("it takes no writes")

// probeName is put and deleted to see whether a place takes writes.
const probeName = "repair/probe"

func (m *member) tryWrite(ctx context.Context) error {
	err := m.put(ctx, probeName, []byte("cairn looks whether this place takes writes"))
	if err == nil || errors.Is(err, backend.ErrExist) {
		err = m.remove(ctx, probeName)
	}
	if err != nil && !errors.Is(err, errGone) {
		return &placeError{m.Spec, fmt.Errorf("%w: %w", errReadOnly, root(err))}
	}
	return err
}
