package chunkstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// Forward says where the chunks (or records) of a pack lie now that gc copied
// those which were needed and removed the pack. Maps that name the old pack
// stay valid: readers follow the forward.
type Forward struct {
	By   SessionID // who made it; not stored in it
	Kind pack.Kind
	// Count is how many chunks (or records) the old pack had.
	Count int
	Runs  []ForwardRun // sorted by First, apart from each other
	// Lost says that the place lost the pack, and that a session stored what it
	// needs of it anew (a refill): it stays as long as the pack is needed, even if
	// something of that is listed still. Such a forward has a name of its own
	// kind: it makes nobody delete, so that every host may store one.
	Lost bool
}

// ForwardRun is consecutive chunks of the old pack that lie consecutively in
// another one.
type ForwardRun struct {
	First, Count int
	To           PackRef
	At           int // first chunk in To
}

// storedForward is a Forward's record. Part of the on-disk format.
type storedForward struct {
	Kind  pack.Kind `json:"kind"`
	Count int       `json:"count"`
	Packs []string  `json:"packs"` // "session/hash"
	// Runs are: first, count, number in Packs, first there.
	Runs [][4]int `json:"runs"`
}

// PackText gives a pack's name in records: "session/hash". Part of the on-disk
// format.
func PackText(r PackRef) string { return r.Session.String() + "/" + r.Hash.String() }

// ParsePackText reads what PackText gives.
func ParsePackText(s string) (PackRef, error) { return parsePackName(packsPrefix + s) }

func (f *Forward) encode() ([]byte, error) {
	s := storedForward{Kind: f.Kind, Count: f.Count, Runs: [][4]int{}}
	number := map[PackRef]int{}
	for _, r := range f.Runs {
		n, ok := number[r.To]
		if !ok {
			n = len(s.Packs)
			number[r.To] = n
			s.Packs = append(s.Packs, PackText(r.To))
		}
		s.Runs = append(s.Runs, [4]int{r.First, r.Count, n, r.At})
	}
	return json.Marshal(s)
}

func decodeForward(b []byte) (*Forward, error) {
	var s storedForward
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%w: a forward: %v", pack.ErrCorrupt, err)
	}
	f := &Forward{Kind: s.Kind, Count: s.Count, Runs: make([]ForwardRun, 0, len(s.Runs))}
	if s.Kind != pack.KindData && s.Kind != pack.KindMap || s.Count < 1 || s.Count > pack.MaxChunks {
		return nil, fmt.Errorf("%w: a forward of %d chunks of kind %d", pack.ErrCorrupt, s.Count, s.Kind)
	}
	packs := make([]PackRef, len(s.Packs))
	for i, text := range s.Packs {
		var err error
		if packs[i], err = ParsePackText(text); err != nil {
			return nil, fmt.Errorf("%w: a forward: %v", pack.ErrCorrupt, err)
		}
	}
	end := 0
	for _, r := range s.Runs {
		if r[0] < end || r[0] >= s.Count || r[1] < 1 || r[1] > s.Count-r[0] || r[2] < 0 || r[2] >= len(packs) || r[3] < 0 || r[3] > pack.MaxChunks-r[1] {
			return nil, fmt.Errorf("%w: a forward's run is out of bounds", pack.ErrCorrupt)
		}
		end = r[0] + r[1]
		f.Runs = append(f.Runs, ForwardRun{r[0], r[1], packs[r[2]], r[3]})
	}
	return f, nil
}

// Find gives where chunk n lies, and how many from there on lie behind each
// other, at most count; ok is false when it was not copied.
func (f *Forward) Find(n, count int) (to PackRef, at, k int, ok bool) {
	lo, hi := 0, len(f.Runs)
	for lo < hi {
		if mid := (lo + hi) / 2; f.Runs[mid].First+f.Runs[mid].Count <= n {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(f.Runs) || f.Runs[lo].First > n {
		return PackRef{}, 0, 0, false
	}
	r := f.Runs[lo]
	skip := n - r.First
	return r.To, r.At + skip, min(count, r.Count-skip), true
}

func forwardsOf(r PackRef) string { return forwardsPrefix + PackText(r) + "/" }

func refillsOf(r PackRef) string { return refillsPrefix + PackText(r) + "/" }

// PutForward stores a forward. by names who made it: two collectors that copy
// the same pack do not meet.
func (s *Store) PutForward(ctx context.Context, r PackRef, by SessionID, f *Forward) error {
	body, err := f.encode()
	if err != nil {
		return err
	}
	of := forwardsOf(r)
	if f.Lost {
		of = refillsOf(r)
	}
	return s.PutRecord(ctx, of+by.String(), RecordForward, body)
}

// Forwards gives the forwards of a pack, in the order of their makers; none is
// no error. Damaged ones are left out unless all are.
func (s *Store) Forwards(ctx context.Context, r PackRef) ([]*Forward, error) {
	var names []string
	for _, of := range []string{forwardsOf(r), refillsOf(r)} {
		err := s.place.List(ctx, of, func(o backend.Object) error {
			names = append(names, o.Name)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	out := make([]*Forward, 0, len(names))
	var bad error
	for _, name := range names {
		by, err := ParseSessionID(name[strings.LastIndexByte(name, '/')+1:])
		if err != nil {
			continue // not ours; check names it
		}
		f, err := s.readForward(ctx, name)
		switch {
		case errors.Is(err, backend.ErrNotExist): // went away since
		case pack.IsDamage(err):
			bad = err
		case err != nil:
			return nil, err
		default:
			f.By, f.Lost = by, strings.HasPrefix(name, refillsPrefix)
			out = append(out, f)
		}
	}
	if len(out) == 0 && bad != nil {
		return nil, bad
	}
	return out, nil
}

func (s *Store) readForward(ctx context.Context, name string) (*Forward, error) {
	body, err := s.GetRecord(ctx, name, RecordForward)
	if err != nil {
		return nil, err
	}
	f, err := decodeForward(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// maxHops bounds how often a chunk may have moved: gc folds longer ways.
const maxHops = 64

// moved calls read for each piece of count chunks from n on of a pack that is
// gone, with where it lies now and how many pieces were given before. Where
// there is no forward the error is missing.
func (s *Store) moved(ctx context.Context, r PackRef, n, count, hops int, missing error, read func(to PackRef, at, k, done int) error) error {
	all, err := s.Forwards(ctx, r)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return missing
	}
	if hops >= maxHops {
		return fmt.Errorf("%s: %w: it moved more than %d times", packName(r), pack.ErrCorrupt, maxHops)
	}
	for done := 0; done < count; {
		err := fmt.Errorf("%s: chunk %d was not kept when gc moved the others: %w", packName(r), n+done, missing)
		step := 0
		for _, f := range all { // any that reads is right: a copy was verified when it was made
			to, at, k, ok := f.Find(n+done, count-done)
			if !ok {
				continue
			}
			rerr := read(to, at, k, done)
			if rerr == nil {
				step = k
				break
			}
			if ctx.Err() != nil {
				return rerr
			}
			if elsewhere(err) { // else a copy could not be asked for: that one is gone does not say that all are
				err = rerr
			}
		}
		if step == 0 {
			return err
		}
		done += step
	}
	return nil
}

// movedIDs gives the chunk IDs of a pack that is gone: those of chunks that
// were not kept are zero, which no chunk's ID is.
func (s *Store) movedIDs(ctx context.Context, r PackRef, hops int, missing error) ([]chunk.ID, error) {
	all, err := s.Forwards(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, missing
	}
	if hops >= maxHops {
		return nil, fmt.Errorf("%s: %w: it moved more than %d times", packName(r), pack.ErrCorrupt, maxHops)
	}
	var ids []chunk.ID
	lists := map[PackRef][]chunk.ID{}
	for _, f := range all {
		if f.Kind != pack.KindData {
			return nil, fmt.Errorf("%s: %w: not a data pack", packName(r), pack.ErrCorrupt)
		}
		if len(ids) < f.Count {
			ids = append(ids, make([]chunk.ID, f.Count-len(ids))...)
		}
		for _, run := range f.Runs {
			list, ok := lists[run.To]
			if !ok {
				list, _, err = s.chunkIDs(ctx, run.To, hops+1)
				if err != nil && !errors.Is(err, backend.ErrNotExist) && !pack.IsDamage(err) {
					return nil, err
				}
				lists[run.To] = list
			}
			if run.At+run.Count > len(list) {
				continue
			}
			for i, id := range list[run.At : run.At+run.Count] {
				if id != (chunk.ID{}) { // else it moved on from there and was not kept; another's copy may have been
					ids[run.First+i] = id
				}
			}
		}
	}
	return ids, nil
}
