package chunkstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// ErrNoBase: nothing new may be built on a point.
var ErrNoBase = errors.New("nothing new can be built on the last restore point")

// Generation is one run of gc, by what of it is stored: gc/<n>/condemned,
// gc/<n>/final, gc/<n>/done, each made once, in this order.
type Generation struct {
	N                      int
	Condemned, Final, Done bool
}

// Condemned is what a generation means to remove. Part of the on-disk format.
type Condemned struct {
	// Collector made it, and the forwards of Rewritten.
	Collector string `json:"collector"`
	// Packs are names of packs (PackText) that no point needs.
	Packs []string `json:"packs"`
	// Rewritten are packs of which all that is needed was copied, and forwards
	// say where to.
	Rewritten []string `json:"rewritten,omitempty"`
	// Forwards are packs that are gone, and whose forwards nobody needs.
	Forwards []string `json:"forwards,omitempty"`
}

// Final is what a generation does remove: what was condemned without what was
// needed after all. Part of the on-disk format.
type Final struct {
	Packs    []string `json:"packs"`
	Forwards []string `json:"forwards,omitempty"`
}

// maxGenerations bounds what a listing of generations holds.
const maxGenerations = 1_000_000

// GenerationName gives the name of one of a generation's objects.
func GenerationName(n int, part string) string { return fmt.Sprintf("%s%08d/%s", gcPrefix, n, part) }

// Generations lists the generations of gc, oldest first.
func (s *Store) Generations(ctx context.Context) ([]Generation, error) {
	byN := map[int]*Generation{}
	err := s.place.List(ctx, gcPrefix, func(o backend.Object) error {
		number, part, _ := strings.Cut(strings.TrimPrefix(o.Name, gcPrefix), "/")
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || o.Name != GenerationName(n, part) {
			return nil // not ours; check names it
		}
		g := byN[n]
		if g == nil {
			g = &Generation{N: n}
			if byN[n] = g; len(byN) > maxGenerations {
				return fmt.Errorf("more than %d runs of gc", maxGenerations)
			}
		}
		switch part {
		case "condemned":
			g.Condemned = true
		case "final":
			g.Final = true
		case "done":
			g.Done = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the runs of gc: %w", err)
	}
	out := make([]Generation, 0, len(byN))
	for _, g := range byN {
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b Generation) int { return a.N - b.N })
	return out, nil
}

// ReadCondemned gives what a generation condemned.
func (s *Store) ReadCondemned(ctx context.Context, n int) (*Condemned, error) {
	c := new(Condemned)
	return c, s.readJSON(ctx, GenerationName(n, "condemned"), RecordCondemned, c)
}

// ReadFinal gives what a generation decided to remove.
func (s *Store) ReadFinal(ctx context.Context, n int) (*Final, error) {
	f := new(Final)
	return f, s.readJSON(ctx, GenerationName(n, "final"), RecordFinal, f)
}

func (s *Store) putJSON(ctx context.Context, name string, kind RecordKind, v any) error {
	plain, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.PutRecord(ctx, name, kind, plain)
}

func (s *Store) readJSON(ctx context.Context, name string, kind RecordKind, into any) error {
	b, err := s.GetRecord(ctx, name, kind)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w: %v", name, pack.ErrCorrupt, err)
	}
	return nil
}

// condemned are packs that an unfinished run of gc means to remove; the value
// says who copied what is needed of one, if that is so.
type condemned map[PackRef]*SessionID

// readCondemned reads them behind the session's intent (STORE-RULES.md section
// 2): a run that begins later waits for this session, or ends it.
func (s *Store) readCondemned(ctx context.Context) (condemned, error) {
	all, err := s.Generations(ctx)
	if err != nil {
		return nil, err
	}
	out := condemned{}
	for _, g := range all {
		if g.Done || !g.Condemned {
			continue
		}
		err := s.addCondemned(ctx, g.N, out)
		if pack.IsDamage(err) { // no backup fails for it: that run removes nothing, or what it decided
			f, cerr := s.CallOff(ctx, g.N)
			if cerr != nil {
				return nil, fmt.Errorf("read what run %d of gc removes: %w", g.N, errors.Join(err, cerr))
			}
			err = out.add(slices.Concat(f.Packs, f.Forwards), nil)
		}
		if err != nil {
			return nil, fmt.Errorf("read what run %d of gc removes: %w", g.N, err)
		}
	}
	return out, nil
}

func (s *Store) addCondemned(ctx context.Context, n int, out condemned) error {
	c, err := s.ReadCondemned(ctx, n)
	if err != nil {
		return err
	}
	by, err := ParseSessionID(c.Collector)
	if err != nil {
		return fmt.Errorf("%w: %v", pack.ErrCorrupt, err)
	}
	// Of a pack that is gone, and whose forwards go, nothing is to be had either.
	if err := out.add(slices.Concat(c.Packs, c.Forwards), nil); err != nil {
		return err
	}
	return out.add(c.Rewritten, &by)
}

// add takes packs by their names.
func (c condemned) add(list []string, by *SessionID) error {
	for _, text := range list {
		ref, err := ParsePackText(text)
		if err != nil {
			return fmt.Errorf("%w: %v", pack.ErrCorrupt, err)
		}
		c[ref] = by
	}
	return nil
}

// BuildOn tells that the session takes what a committed point has: its maps'
// unchanged nodes and runs, or its catalogue's. It is called before anything is
// taken; trace tells of all that the point needs, and is called only while gc
// has something condemned. ErrNoBase when nothing may be built on the point:
// it was forgotten, or gc is about to remove what it needs because it was not
// there yet when gc looked: gc keeps that for the point, and not for others, so
// that forgetting the point would take it from them; or no host vouches for it.
func (w *Session) BuildOn(ctx context.Context, point SessionID, trace func(chunk.Tracer) error) error {
	dropped, err := w.store.IsDropped(ctx, point)
	switch {
	case err != nil:
		return err
	case dropped:
		return fmt.Errorf("%w: it was forgotten meanwhile (%s)", ErrNoBase, point)
	}
	if w.kind == recordPoint {
		if err := w.trust(ctx, point); err != nil {
			return err
		}
	}
	if len(w.condemned) == 0 {
		return nil
	}
	t := &foundation{ctx: ctx, w: w, entered: map[PackRef]map[int]bool{}, forwards: map[PackRef]*Forward{}}
	err = trace(t) // which may fail by what is removed already
	if t.lost {
		return fmt.Errorf("%w: cairn gc is removing what it shares with forgotten ones (%s)", ErrNoBase, point)
	}
	return errors.Join(err, t.err)
}

// trust makes sure that a host vouches for the point that is built on, and
// remembers what it was.
func (w *Session) trust(ctx context.Context, point SessionID) error {
	if !w.store.Signs() {
		return nil
	}
	_, sig, err := w.store.ReadPoint(ctx, point)
	if err != nil {
		return err
	}
	if sig.Err != nil {
		return fmt.Errorf("%w: %w (%s); see cairn check", ErrNoBase, sig.Err, point)
	}
	w.parent, w.parentHash = point, sig.BodyHash
	return nil
}

// foundation looks whether gc takes away what a point needs.
type foundation struct {
	ctx      context.Context
	w        *Session
	entered  map[PackRef]map[int]bool
	forwards map[PackRef]*Forward // of condemned packs; nil: none
	lost     bool
	err      error
}

// Enter implements chunk.Tracer.
func (t *foundation) Enter(ref PackRef, record int) bool {
	m := t.entered[ref]
	if m == nil {
		m = map[int]bool{}
		t.entered[ref] = m
	}
	first := !m[record]
	m[record] = true
	return first && !t.lost && t.err == nil
}

// Record implements chunk.Tracer.
func (t *foundation) Record(ref PackRef, n int) { t.Chunks(ref, n, 1) }

// Chunks implements chunk.Tracer.
func (t *foundation) Chunks(ref PackRef, first, count int) {
	by, ok := t.w.condemned[ref]
	if !ok || t.lost || t.err != nil {
		return
	}
	if by == nil {
		t.lost = true
		return
	}
	f, ok := t.forwards[ref]
	if !ok {
		var all []*Forward
		if all, t.err = t.w.store.Forwards(t.ctx, ref); t.err != nil {
			return
		}
		if i := slices.IndexFunc(all, func(f *Forward) bool { return f.By == *by }); i >= 0 {
			f = all[i]
		}
		t.forwards[ref] = f
	}
	for f != nil && count > 0 {
		_, _, k, ok := f.Find(first, count)
		if !ok {
			break
		}
		first, count = first+k, count-k
	}
	t.lost = count > 0
}

// Abort decides a session against: it cannot commit any more. Done when it was
// decided, whichever way.
func (s *Store) Abort(ctx context.Context, id SessionID, why string) error {
	err := s.PutRecord(ctx, pointsPrefix+id.String(), recordAbort, []byte(why))
	if errors.Is(err, backend.ErrExist) {
		return nil
	}
	return err
}

// AbortBegun is Abort of a session that has begun here; of another nothing is done.
func (s *Store) AbortBegun(ctx context.Context, id SessionID, why string) error {
	_, err := s.place.Size(ctx, intentsPrefix+id.String())
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.Abort(ctx, id, why)
}
