package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// After the commit a session reads back: a pack that its maps name and that is
// gone, by a place that lost it or a collector that should not have removed it,
// is stored anew while its chunks can still be read where they came from. The
// new pack has a name of its own, and a forward leads to it from the old one:
// what removed the old one may do so again.

// keptMaps bounds the stored map packs that a session keeps for a refill, in
// bytes. A point of little change has one small one.
const keptMaps = 16 << 20

// readBackAtOnce is how many packs are asked for at once.
const readBackAtOnce = 16

// ReadBack gives the packs that the session's maps name and that are neither
// there nor led on from.
func (w *Session) ReadBack(ctx context.Context) ([]PackRef, error) {
	own := map[PackRef]bool{}
	err := w.store.place.List(ctx, packsPrefix+w.id.String()+"/", func(o backend.Object) error {
		if r, err := parsePackName(o.Name); err == nil {
			own[r] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	var ask []PackRef
	for _, s := range w.starts {
		if !own[s.ref] || w.sharded { // a listing shows packs of which too little is left, too
			ask = append(ask, s.ref)
		}
	}
	for i := range w.used {
		ask = append(ask, w.refs[i])
	}
	w.mu.Unlock()
	for _, r := range w.maps.closed {
		if !own[r] || w.sharded {
			ask = append(ask, r)
		}
	}
	gone := make([]bool, len(ask))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readBackAtOnce)
	for i, r := range ask {
		g.Go(func() error {
			there, err := w.covered(gctx, r)
			gone[i] = !there
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("look whether all is there that was stored: %w", err)
	}
	var lost []PackRef
	for i, r := range ask {
		if gone[i] {
			lost = append(lost, r)
		}
	}
	return lost, nil
}

// covered says whether a pack is there, or all that the session needs of it is
// elsewhere: a collector saw to that, or the session itself. What another
// session stored in the place of a lost one is what that one needed.
func (w *Session) covered(ctx context.Context, r PackRef) (bool, error) {
	_, err := w.store.place.Size(ctx, packName(r))
	if !errors.Is(err, backend.ErrNotExist) {
		return err == nil, err
	}
	all, err := w.store.Forwards(ctx, r)
	return slices.ContainsFunc(all, func(f *Forward) bool { return !f.Lost || f.By == w.id }), err
}

// IsMap says whether a pack of the session holds records, not chunks.
func (w *Session) IsMap(r PackRef) bool { return slices.Contains(w.maps.closed, r) }

// Refill stores the chunks of a data pack that is gone anew. ids are the pack's
// chunks; read gives chunk n, or ok false when the session does not need it.
// What is read must be what its ID names: other points may need it, too.
func (w *Session) Refill(ctx context.Context, lost PackRef, ids []chunk.ID, read func(n int, dst []byte) (ok bool, err error)) error {
	r := refill{session: w, kind: pack.KindData}
	f := &Forward{Kind: pack.KindData, Count: len(ids), Lost: true}
	hasher := chunk.NewHasher(w.store.ChunkKey())
	var frame, index []byte
	count := 0
	closeFrame := func() error {
		if count == 0 {
			return nil
		}
		err := r.append(frame, count, index)
		frame, index, count = frame[:0], index[:0], 0
		return err
	}
	buf := make([]byte, chunk.Size)
	for n, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		ok, err := read(n, buf)
		if err != nil {
			return fmt.Errorf("%s, chunk %d: %w", lost, n, err)
		}
		if !ok {
			continue
		}
		if hasher.Sum(buf) != id {
			return fmt.Errorf("%s, chunk %d: %w: what is read now is not what was stored", lost, n, pack.ErrCorrupt)
		}
		frame, index = append(frame, buf...), append(index, id[:]...)
		at := r.count + count
		if k := len(f.Runs) - 1; k >= 0 && f.Runs[k].First+f.Runs[k].Count == n {
			f.Runs[k].Count++
		} else {
			f.Runs = append(f.Runs, ForwardRun{First: n, Count: 1, At: at})
		}
		if count++; count == pack.MaxFrameChunks {
			if err := closeFrame(); err != nil {
				return err
			}
		}
	}
	if err := closeFrame(); err != nil {
		return err
	}
	return r.finish(ctx, lost, f)
}

// RefillMap stores a map pack of the session that is gone anew, if its bytes
// were kept.
func (w *Session) RefillMap(ctx context.Context, lost PackRef) error {
	stored := w.maps.kept[lost]
	if stored == nil {
		return fmt.Errorf("%s: %w: it holds maps, and was too large to be kept until now", lost, backend.ErrNotExist)
	}
	foot, err := pack.ParseFooter(stored, int64(len(stored)), w.store.keys)
	if err != nil {
		return err
	}
	off, n := foot.IndexRange()
	lens, err := foot.OpenRecords(stored[off : off+int64(n)])
	if err != nil {
		return err
	}
	r := refill{session: w, kind: pack.KindMap}
	dec := pack.NewDecoder()
	for i, fr := range foot.Frames {
		size, index := 0, []byte(nil)
		for _, l := range lens[fr.First : int(fr.First)+int(fr.Count)] {
			size += l
			index = appendLength(index, l)
		}
		encoded, err := foot.OpenFrame(nil, w.store.keys, i, slices.Clone(stored[fr.Offset:fr.Offset+int64(fr.Stored)]))
		if err != nil {
			return err
		}
		raw, err := dec.Decode(nil, fr.Enc, encoded, size)
		if err != nil {
			return err
		}
		if err := r.append(raw, int(fr.Count), index); err != nil {
			return err
		}
	}
	return r.finish(ctx, lost, &Forward{Kind: pack.KindMap, Count: foot.Count, Lost: true, Runs: []ForwardRun{{First: 0, Count: foot.Count}}})
}

// refill is the pack that takes the place of a lost one: no larger than it.
type refill struct {
	session *Session
	kind    pack.Kind
	builder *pack.Builder
	encoded []byte
	count   int
}

func (r *refill) append(frame []byte, count int, index []byte) error {
	if r.builder == nil {
		b, err := pack.NewBuilder(r.kind, r.session.store.keys, nil)
		if err != nil {
			return err
		}
		r.builder = b
	}
	encoder := encoders.Get().(*pack.Encoder)
	enc, encoded, err := encoder.Encode(r.encoded, frame)
	encoders.Put(encoder)
	if err != nil {
		return err
	}
	r.encoded = encoded
	r.count += count
	return r.builder.Append(enc, encoded, count, index)
}

// finish stores the new pack, reads it back whole, and then leads to it.
func (r *refill) finish(ctx context.Context, lost PackRef, f *Forward) error {
	if r.builder == nil {
		return fmt.Errorf("internal error: nothing of %s is needed", lost)
	}
	hash, stored, err := r.builder.Close()
	if err != nil {
		return err
	}
	to := PackRef{Session: r.session.id, Hash: hash}
	for i := range f.Runs {
		f.Runs[i].To = to
	}
	s := r.session.store
	if err := s.PutPack(ctx, to, stored); err != nil {
		return err
	}
	if _, err := s.ReadPack(ctx, to); err != nil {
		return fmt.Errorf("read back what was stored in the place of %s: %w", lost, err)
	}
	err = s.PutForward(ctx, lost, r.session.id, f)
	if errors.Is(err, backend.ErrExist) { // an earlier try's, whose pack is gone again
		return fmt.Errorf("%s: %w: it was stored anew before, and is gone again", lost, backend.ErrNotExist)
	}
	if err != nil {
		return err
	}
	r.session.count(func(st *Statistics) { st.BytesStored += int64(len(stored)); st.Packs++ })
	return nil
}
