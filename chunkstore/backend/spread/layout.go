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
