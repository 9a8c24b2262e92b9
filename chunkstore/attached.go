package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// A catalogue is a commit that belongs to another session's: what was made of
// a point after it was committed, and can be made again. Its session's id is
// derived, so that it is found by name, so that two hosts that make it at the
// same time end with one, and so that a listing tells it from a point without
// reading it.

// MaxAttempts is how many catalogues one point may have, one after the other:
// an aborted or damaged one is never replaced, the next takes its place. Part
// of the on-disk format.
const MaxAttempts = 16

// attachedLabel is the context of BLAKE3's key derivation. Part of the on-disk
// format.
const attachedLabel = "cairn 2026 catalogue session v1"

// CatalogueSession gives the session of a point's catalogue, by attempt from
// 0: the first 16 bytes of BLAKE3's key derivation over the point's id and one
// byte. Part of the on-disk format.
func CatalogueSession(point SessionID, attempt int) SessionID {
	var id SessionID
	h := attachedHashers.Get().(*blake3.Hasher)
	defer attachedHashers.Put(h)
	h.Reset()
	_, _ = h.Write(append(point[:], byte(attempt))) // never fails
	_, _ = h.Digest().Read(id[:])
	return id
}

// attachedHashers have the label in them: that is most of the work, and a
// listing asks for each point.
var attachedHashers = sync.Pool{New: func() any { return blake3.NewDeriveKey(attachedLabel) }}

// ErrDecided: a session was decided by somebody else, who was first.
var ErrDecided = errors.New("another run was first")

// ErrNotPoint: a commit is a catalogue of a point, and no point.
var ErrNotPoint = errors.New("not a restore point")

// BeginCatalogue starts the session of a point's catalogue. It takes records
// only. What an earlier try with the same attempt left is no hindrance.
func (s *Store) BeginCatalogue(ctx context.Context, point SessionID, attempt int, intent []byte) (*Session, error) {
	if attempt < 0 || attempt >= MaxAttempts {
		return nil, fmt.Errorf("%d catalogues of this point were made, which is as many as there may be", attempt)
	}
	return s.begin(ctx, CatalogueSession(point, attempt), recordCatalogue, nil, intent)
}

// CatalogueAttempt is one catalogue that was decided.
type CatalogueAttempt struct {
	Attempt int
	Session SessionID
}

// decisions is what a listing of all decisions shows, without what is
// forgotten.
type decisions struct {
	own      []SessionID
	attached map[SessionID][]CatalogueAttempt // by point
	made     map[SessionID]time.Time          // by the place's clock
}

// listDecisions tells points from catalogues by their names alone. The
// catalogue of a point that is gone counts as own: only reading tells. What is
// forgotten is left out, and its catalogues are.
func (s *Store) listDecisions(ctx context.Context) (*decisions, error) {
	var all []SessionID
	made := map[SessionID]time.Time{}
	err := s.place.List(ctx, pointsPrefix, func(o backend.Object) error {
		id, err := ParseSessionID(strings.TrimPrefix(o.Name, pointsPrefix))
		if err == nil { // else not ours; check names it
			all = append(all, id)
			made[id] = o.Modified
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Listed after the decisions: of what is listed no older drop is missed.
	dropped, err := s.dropped(ctx, func(id SessionID) bool { _, ok := made[id]; return ok })
	if err != nil {
		return nil, err
	}
	there := make(map[SessionID]bool, len(all))
	for _, id := range all {
		there[id] = true
	}
	d := &decisions{attached: map[SessionID][]CatalogueAttempt{}, made: made}
	of := map[SessionID]bool{}
	for _, id := range all {
		for attempt := range MaxAttempts { // made one after the other: no gaps
			c := CatalogueSession(id, attempt)
			if !there[c] {
				break
			}
			of[c] = true
			if !dropped[id] {
				d.attached[id] = append(d.attached[id], CatalogueAttempt{attempt, c})
			}
		}
	}
	for _, id := range all {
		if !of[id] && !dropped[id] {
			d.own = append(d.own, id)
		}
	}
	return d, nil
}

// Committed calls fn for each session that has a decision and is not
// forgotten, in the order of their names; the decision may be an abort.
// Catalogues of points are left out.
func (s *Store) Committed(ctx context.Context, fn func(SessionID) error) error {
	d, err := s.listDecisions(ctx)
	if err != nil {
		return err
	}
	for _, id := range d.own {
		if err := fn(id); err != nil {
			return err
		}
	}
	return nil
}

// Catalogues gives the catalogues of all points that are not forgotten and have any, aborted and
// damaged ones included, by point and in the order of attempts.
func (s *Store) Catalogues(ctx context.Context) (map[SessionID][]CatalogueAttempt, error) {
	d, err := s.listDecisions(ctx)
	if err != nil {
		return nil, err
	}
	return d.attached, nil
}

// ReadCommit gives what a session committed; ErrAborted when it was decided
// against, ErrNotPoint when it is a point's catalogue, backend.ErrNotExist
// when it is undecided or unknown. Whose it is ReadPoint tells.
func (s *Store) ReadCommit(ctx context.Context, id SessionID) ([]byte, error) {
	body, _, err := s.ReadPoint(ctx, id)
	return body, err
}

// ReadCatalogue gives a committed catalogue of a point, with ReadCommit's
// errors.
func (s *Store) ReadCatalogue(ctx context.Context, point chunk.SessionID, attempt int) ([]byte, error) {
	return s.readDecision(ctx, CatalogueSession(point, attempt), recordCatalogue)
}

// LastCatalogue gives the body and the attempt of a point's newest catalogue;
// backend.ErrNotExist when there is none that was committed. next is the
// attempt that another one would be. With another error the newest is
// damaged.
func (s *Store) LastCatalogue(ctx context.Context, point SessionID) (body []byte, attempt, next int, err error) {
	err = fmt.Errorf("%s has no catalogue: %w", point, backend.ErrNotExist)
	for ; next < MaxAttempts; next++ {
		b, rerr := s.ReadCatalogue(ctx, point, next)
		switch {
		case errors.Is(rerr, backend.ErrNotExist):
			return body, attempt, next, err
		case errors.Is(rerr, ErrAborted): // and what was good before stays it
		case rerr != nil && !pack.IsDamage(rerr):
			return nil, 0, next, rerr
		default:
			body, attempt, err = b, next, rerr
		}
	}
	return body, attempt, next, err
}

func (s *Store) readDecision(ctx context.Context, id SessionID, want RecordKind) ([]byte, error) {
	name := pointsPrefix + id.String()
	kind, plain, err := s.readRecord(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case kind == want:
		return plain, nil
	case kind == recordAbort:
		return nil, fmt.Errorf("%s: %w", name, ErrAborted)
	case kind == recordCatalogue:
		return nil, fmt.Errorf("%s: %w: a catalogue", name, ErrNotPoint)
	}
	return nil, fmt.Errorf("%s: %w: record of kind %d", name, pack.ErrCorrupt, kind)
}
