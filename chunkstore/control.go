package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/pack"
)

// A control object says something about a committed session: that it is
// forgotten (a drop), or that it must not be (a pin). Like all objects they are
// created once and never changed, so each is decided once whoever asks for it.

// Errors of Drop and Pin that callers branch on with errors.Is.
var (
	// ErrDropped: the session is forgotten, and that is final.
	ErrDropped = errors.New("the point is forgotten")
	// ErrPinned: the session must be unpinned before it can be forgotten.
	ErrPinned = errors.New("the point is pinned")
)

// Note is what a drop or a pin tells people; nothing is decided by it. Part of
// the on-disk format: fields are only added.
type Note struct {
	Time   time.Time `json:"time"` // of the host's clock
	Host   string    `json:"host"`
	Reason string    `json:"reason,omitempty"`
}

// Pin is the state of a session that is pinned.
type Pin struct {
	Note
	// Damaged is why the newest record of the pin cannot be read. Such a session
	// counts as pinned: that loses nothing.
	Damaged error
}

const (
	// maxReason bounds Note.Reason in bytes.
	maxReason = 4 << 10
	// maxPins bounds how often one session is pinned and unpinned.
	maxPins = 1000
	// controlReaders is how many control objects are read at once.
	controlReaders = 16
)

// controls is what a Store has read of control objects. They never change, so
// what was read once is known.
type controls struct {
	mu    sync.Mutex
	drops map[SessionID]bool
}

func (c *controls) known(id SessionID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.drops[id]
}

func (c *controls) learn(id SessionID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drops == nil {
		c.drops = map[SessionID]bool{}
	}
	c.drops[id] = true
}

// writeControl seals a note and stores it.
func (s *Store) writeControl(ctx context.Context, name string, kind RecordKind, n Note) error {
	if len(n.Reason) > maxReason {
		return fmt.Errorf("a reason of %d bytes is over the limit of %d", len(n.Reason), maxReason)
	}
	return s.putJSON(ctx, name, kind, n)
}

// readControl reads a note back.
func (s *Store) readControl(ctx context.Context, name string, want RecordKind) (n Note, err error) {
	err = s.readJSON(ctx, name, want, &n)
	return n, err
}

// Drop forgets a committed session: from now on it is in no listing, and what
// only it needs is garbage. That is final. Dropping what is dropped is no
// error; ErrPinned when it is pinned, ErrAborted, ErrNotPoint and
// backend.ErrNotExist when there is nothing to drop. A session whose commit is
// damaged can be dropped.
func (s *Store) Drop(ctx context.Context, id SessionID, n Note) error {
	if _, err := s.ReadCommit(ctx, id); err != nil && !pack.IsDamage(err) {
		return err
	}
	if err := s.notPinned(ctx, id); err != nil {
		return err
	}
	name := dropsPrefix + id.String()
	err := s.writeControl(ctx, name, recordDrop, n)
	if errors.Is(err, backend.ErrExist) {
		if _, err := s.readControl(ctx, name, recordDrop); err != nil {
			return fmt.Errorf("forget a point that was forgotten before, by a record that cannot be read: %w", err)
		}
		err = nil
	}
	if err != nil {
		return fmt.Errorf("forget a point: %w", err)
	}
	s.controls.learn(id)
	// Somebody may have pinned it since it was looked at: say so, at least.
	if err := s.notPinned(ctx, id); errors.Is(err, ErrPinned) {
		return fmt.Errorf("%w by somebody at the same moment, and forgotten all the same", err)
	}
	return nil
}

func (s *Store) notPinned(ctx context.Context, id SessionID) error {
	_, p, err := s.pin(ctx, id)
	if err == nil && p != nil {
		err = ErrPinned
	}
	return err
}

// Dropped gives the sessions that are forgotten, also those whose commits are
// gone already. A drop that is damaged is none: see DamagedControls.
func (s *Store) Dropped(ctx context.Context) (map[SessionID]bool, error) {
	return s.dropped(ctx, func(SessionID) bool { return true })
}

// IsDropped says whether one session is forgotten.
func (s *Store) IsDropped(ctx context.Context, id SessionID) (bool, error) {
	if s.controls.known(id) {
		return true, nil
	}
	_, err := s.readControl(ctx, dropsPrefix+id.String(), recordDrop)
	switch {
	case err == nil:
		s.controls.learn(id)
		return true, nil
	case errors.Is(err, backend.ErrNotExist), pack.IsDamage(err):
		return false, nil
	}
	return false, err
}

// dropped is Dropped for the sessions that are asked for. Each drop is read
// once by a Store.
func (s *Store) dropped(ctx context.Context, asked func(SessionID) bool) (map[SessionID]bool, error) {
	out := map[SessionID]bool{}
	var unread []SessionID
	err := s.place.List(ctx, dropsPrefix, func(o backend.Object) error {
		id, err := ParseSessionID(strings.TrimPrefix(o.Name, dropsPrefix))
		switch {
		case err != nil, !asked(id):
		case s.controls.known(id):
			out[id] = true
		default:
			unread = append(unread, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list what is forgotten: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(controlReaders)
	for _, id := range unread {
		g.Go(func() error {
			if _, err := s.IsDropped(gctx, id); err != nil {
				return fmt.Errorf("read what is forgotten: %w", err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, id := range unread {
		if s.controls.known(id) {
			out[id] = true
		}
	}
	return out, nil
}

// CommitTimes gives when each session that has a decision and is not forgotten
// was decided, by the place's clock. Catalogues are left out.
func (s *Store) CommitTimes(ctx context.Context) (map[SessionID]time.Time, error) {
	d, err := s.listDecisions(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[SessionID]time.Time, len(d.own))
	for _, id := range d.own {
		out[id] = d.made[id]
	}
	return out, nil
}

// pinName is the name of a session's nth pin (n even) or unpinning (n odd).
// Part of the on-disk format.
func pinName(id SessionID, n int) string {
	return pinsPrefix + id.String() + "." + strconv.Itoa(n)
}

// parsePinName reads what pinName gives.
func parsePinName(name string) (id SessionID, n int, ok bool) {
	session, number, _ := strings.Cut(strings.TrimPrefix(name, pinsPrefix), ".")
	id, err := ParseSessionID(session)
	n, err2 := strconv.Atoi(number)
	return id, n, err == nil && err2 == nil && n >= 0 && pinName(id, n) == name
}

// Pin keeps a committed session from being forgotten. Pinning what is pinned
// is no error, and changes nothing. ErrDropped when it is forgotten.
func (s *Store) Pin(ctx context.Context, id SessionID, n Note) error {
	if _, err := s.ReadCommit(ctx, id); err != nil {
		return err
	}
	if err := s.setPin(ctx, id, true, n); err != nil {
		return err
	}
	// Looked at last: whoever forgets it now sees the pin.
	gone, err := s.IsDropped(ctx, id)
	if gone {
		return ErrDropped
	}
	return err
}

// Unpin lets a session be forgotten again; one that is not pinned is no error.
func (s *Store) Unpin(ctx context.Context, id SessionID, n Note) error {
	return s.setPin(ctx, id, false, n)
}

// setPin adds to a session's chain of pins until it ends as wanted. Somebody
// else may do the same at the same time: then the chain is read again.
func (s *Store) setPin(ctx context.Context, id SessionID, want bool, n Note) error {
	for range maxPins {
		length, p, err := s.pin(ctx, id)
		if err != nil {
			return err
		}
		if (p != nil) == want { // perhaps by somebody who was killed right then
			return backend.Sync(ctx, s.place, pinsPrefix)
		}
		if length >= maxPins {
			break
		}
		if err := s.writeControl(ctx, pinName(id, length), recordPin, n); err != nil && !errors.Is(err, backend.ErrExist) {
			return fmt.Errorf("pin or unpin a point: %w", err)
		}
	}
	return fmt.Errorf("a point cannot be pinned and unpinned more than %d times", maxPins)
}

// pin gives the length of a session's chain of pins, and its pin; nil when it
// is not pinned.
func (s *Store) pin(ctx context.Context, id SessionID) (length int, _ *Pin, err error) {
	for ; ; length++ {
		_, err := s.place.Size(ctx, pinName(id, length))
		if errors.Is(err, backend.ErrNotExist) {
			break
		}
		if err != nil {
			return 0, nil, fmt.Errorf("look for a pin: %w", err)
		}
	}
	p, err := s.readPin(ctx, id, length)
	return length, p, err
}

// readPin reads the end of a chain of pins.
func (s *Store) readPin(ctx context.Context, id SessionID, length int) (*Pin, error) {
	if length == 0 {
		return nil, nil
	}
	n, err := s.readControl(ctx, pinName(id, length-1), recordPin)
	switch {
	case pack.IsDamage(err):
		return &Pin{Damaged: err}, nil
	case err != nil:
		return nil, fmt.Errorf("read a pin: %w", err)
	case length%2 == 0:
		return nil, nil
	}
	return &Pin{Note: n}, nil
}

// Pins gives the sessions that are pinned.
func (s *Store) Pins(ctx context.Context) (map[SessionID]Pin, error) {
	there := map[SessionID]map[int]bool{}
	err := s.place.List(ctx, pinsPrefix, func(o backend.Object) error {
		if id, n, ok := parsePinName(o.Name); ok { // else not ours
			if there[id] == nil {
				there[id] = map[int]bool{}
			}
			there[id][n] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the pins: %w", err)
	}
	out := map[SessionID]Pin{}
	for id, chain := range there {
		length := 0
		for chain[length] {
			length++
		}
		p, err := s.readPin(ctx, id, length)
		if err != nil {
			return nil, err
		}
		if p != nil {
			out[id] = *p
		}
	}
	return out, nil
}

// DamagedControls gives the drops and pins that cannot be read, by name. A
// drop of these is none, and the session of a pin counts as pinned.
func (s *Store) DamagedControls(ctx context.Context) (map[string]error, error) {
	out := map[string]error{}
	for _, controls := range []struct {
		prefix string
		kind   RecordKind
	}{{dropsPrefix, recordDrop}, {pinsPrefix, recordPin}} {
		var names []string
		err := s.place.List(ctx, controls.prefix, func(o backend.Object) error {
			names = append(names, o.Name)
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			_, err := s.readControl(ctx, name, controls.kind)
			switch {
			case pack.IsDamage(err):
				out[name] = err
			case err != nil && !errors.Is(err, backend.ErrNotExist):
				return nil, err
			}
		}
	}
	return out, nil
}
