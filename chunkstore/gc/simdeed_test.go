package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// simBlock says where a chunk or a record lies.
type simBlock struct {
	ref chunk.PackRef
	n   int
}

const simBlockSize = len(chunk.SessionID{}) + len(chunk.PackHash{}) + 1

// encodeBlocks is the body of a point (its leaves) and of a leaf (its chunks).
func encodeBlocks(list []simBlock) []byte {
	b := make([]byte, 0, len(list)*simBlockSize)
	for _, x := range list {
		b = append(append(append(b, x.ref.Session[:]...), x.ref.Hash[:]...), byte(x.n))
	}
	return b
}

func decodeBlocks(b []byte) ([]simBlock, error) {
	if len(b)%simBlockSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes of blocks", pack.ErrCorrupt, len(b))
	}
	list := make([]simBlock, len(b)/simBlockSize)
	for i := range list {
		x := b[i*simBlockSize:]
		list[i] = simBlock{chunk.PackRef{Session: chunk.SessionID(x), Hash: chunk.PackHash(x[16:])}, int(x[simBlockSize-1])}
	}
	return list, nil
}

func collectOnce(ctx context.Context, a *actor) error {
	r, err := Collect(ctx, a.store, a.s.options(a))
	if err == nil {
		a.s.counts["collections"]++
	}
	for what, n := range map[string]int{"packs removed": r.PacksRemoved, "packs copied": r.PacksCopied, "fenced": r.Fenced, "rescued": r.Rescued, "taken over": r.Taken} {
		a.s.counts[what] += n
	}
	return err
}

func (s *sim) options(a *actor) Options {
	return Options{Trace: simTrace(a.reader), RewriteBelow: 0.7, About: a.name, sets: s.sets,
		dead:  func(chunk.SessionID, time.Duration) bool { return s.rnd.IntN(12) == 0 },
		sleep: func(context.Context) bool { return a.turn() == nil }}
}

func simTrace(r *chunkstore.Reader) Trace {
	return func(ctx context.Context, p chunkstore.Commit, t chunk.Tracer) error {
		leaves, err := decodeBlocks(p.Body)
		if err != nil {
			return err
		}
		for _, l := range leaves {
			if !t.Enter(l.ref, l.n) {
				continue
			}
			t.Record(l.ref, l.n)
			blocks, err := readLeaf(ctx, r, l)
			if err != nil {
				return err
			}
			for _, b := range blocks {
				t.Chunks(b.ref, b.n, 1)
			}
		}
		return nil
	}
}

func readLeaf(ctx context.Context, r *chunkstore.Reader, leaf simBlock) ([]simBlock, error) {
	b, err := r.ReadRecord(ctx, leaf.ref, leaf.n)
	if err != nil {
		return nil, err
	}
	return decodeBlocks(b)
}

// standing gives the points that were not dropped, and how many were that gc
// has not come to.
func (s *sim) standing(ctx context.Context) (live []*simPoint, waiting int) {
	for _, p := range s.points {
		if !p.dropped {
			live = append(live, p)
		} else if _, err := s.place.Size(ctx, "points/"+p.id.String()); err == nil {
			waiting++
		}
	}
	return live, waiting
}

// forget drops one point, perhaps.
func forget(ctx context.Context, a *actor) error {
	s := a.s
	live, waiting := s.standing(ctx)
	if len(live) < simKept || waiting > simWaiting || s.rnd.IntN(2) > 0 {
		return a.turn()
	}
	p := live[s.rnd.IntN(len(live))]
	if len(s.hurt) == 0 {
		if err := s.readable(s.reading(), p); err != nil && s.problem == nil {
			s.problem = fmt.Errorf("before it was dropped: %w", err)
		}
	}
	p.dropped = true
	s.counts["dropped"]++
	return a.store.Drop(ctx, p.id, chunkstore.Note{Host: a.name})
}

// backup makes one point of a VM, on its last one.
func (a *actor) backup(ctx context.Context, vm int) error {
	if live, waiting := a.s.standing(ctx); len(live) > simKept+waiting && a.s.rnd.IntN(4) > 0 {
		return a.turn() // a collection reads all points: few are enough
	}
	w, err := a.store.Begin(ctx, a.s.index, []byte(a.name))
	if err != nil {
		return err
	}
	defer w.Close()
	err = a.backUp(ctx, w, vm)
	if errors.Is(err, backend.ErrNotExist) {
		if _, derr := a.s.place.Size(ctx, "points/"+w.ID().String()); derr == nil {
			return chunkstore.ErrAborted // nothing is kept for a session that was decided against
		}
	}
	return err
}

func (a *actor) backUp(ctx context.Context, w *chunkstore.Session, vm int) error {
	s, store := a.s, a.store
	p := &simPoint{id: w.ID()}
	var parent *simPoint
	var base []simBlock // the parent's leaves
	if n := len(s.by[vm]); n > 0 && s.rnd.IntN(5) > 0 {
		parent = s.by[vm][n-1]
		err := w.BuildOn(ctx, parent.id, func(t chunk.Tracer) error {
			body, err := parent.read(ctx, store)
			if err != nil {
				return err
			}
			return simTrace(a.reader)(ctx, chunkstore.Commit{ID: parent.id, Body: body}, t)
		})
		if errors.Is(err, chunkstore.ErrNoBase) {
			parent = nil
		} else if err != nil {
			return err
		}
	}
	if parent != nil {
		p.content = parent.content
		body, err := parent.read(ctx, store)
		if err != nil {
			return err
		}
		if base, err = decodeBlocks(body); err != nil {
			return err
		}
	}
	leaves := make([]simBlock, s.leaves)
	var fresh []chunk.RecordLoc
	var at []int
	for leaf := range s.leaves {
		if parent != nil && s.rnd.IntN(2) == 0 {
			leaves[leaf] = base[leaf]
			continue
		}
		var old []chunk.Loc
		if parent != nil {
			blocks, err := readLeaf(ctx, a.reader, base[leaf])
			if err != nil {
				return err
			}
			for _, b := range blocks {
				old = append(old, w.Loc(b.ref, b.n))
			}
		}
		for i := range simBlocks {
			if parent == nil || s.rnd.IntN(2) == 0 {
				p.content[leaf*simBlocks+i] = s.rnd.IntN(simContents)
			}
		}
		loc, err := a.writeLeaf(ctx, w, p.content[leaf*simBlocks:(leaf+1)*simBlocks], old)
		if err != nil {
			return err
		}
		fresh, at = append(fresh, loc), append(at, leaf)
	}
	if err := w.FlushRecords(ctx); err != nil {
		return err
	}
	for i, loc := range fresh {
		leaves[at[i]] = simBlock{w.MapPack(loc.Pack), loc.Record}
	}
	if err := w.Commit(ctx, encodeBlocks(leaves)); err != nil {
		return err
	}
	s.counts["commits"]++
	s.points = append(s.points, p)
	s.by[vm] = append(s.by[vm], p)
	return nil
}

// read gives what a point committed. That it is gone is no fault if it was
// dropped since it was built on: the run fails, and the next one is another.
func (p *simPoint) read(ctx context.Context, store *chunkstore.Store) ([]byte, error) {
	body, err := store.ReadCommit(ctx, p.id)
	if p.dropped && errors.Is(err, backend.ErrNotExist) {
		err = chunkstore.ErrNoBase
	}
	return body, err
}

func (a *actor) writeLeaf(ctx context.Context, w *chunkstore.Session, contents []int, old []chunk.Loc) (chunk.RecordLoc, error) {
	data, err := w.Buffer(ctx)
	if err != nil {
		return chunk.RecordLoc{}, err
	}
	data = data[:simBlocks*chunk.Size]
	for i, c := range contents {
		copy(data[i*chunk.Size:], a.s.chunks[c])
	}
	var locs []chunk.Loc
	if err := w.Append(ctx, &chunkstore.Batch{Data: data, Parent: old, Placed: func(l []chunk.Loc) error {
		locs = slices.Clone(l)
		return nil
	}}); err != nil {
		return chunk.RecordLoc{}, err
	}
	if err := w.Flush(ctx); err != nil {
		return chunk.RecordLoc{}, err
	}
	var blocks []simBlock
	for _, l := range locs {
		ref, n, _, ok := w.Resolve(l, 1)
		if !ok {
			return chunk.RecordLoc{}, errors.New("a chunk has no pack")
		}
		blocks = append(blocks, simBlock{ref, n})
	}
	return w.AddRecord(func(int) ([]byte, error) { return encodeBlocks(blocks), nil })
}
