package gc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// targetPack is the stored size at which a new pack is closed, in bytes;
// recordFrame the decoded size at which a frame of records is.
const (
	targetPack  = 16 << 20
	recordFrame = 32 << 10
)

// rewriter copies what is live of nearly empty packs into new ones. It is for
// one kind of packs.
type rewriter struct {
	c       *collector
	kind    pack.Kind
	builder *pack.Builder
	encoder *pack.Encoder
	reader  *chunkstore.Reader
	hasher  *chunk.Hasher

	frame   []byte // decoded, of the open frame
	index   []byte // its index
	count   int    // chunks or records in it
	encoded []byte
	buf     []byte

	packs    []chunk.PackRef // closed
	forwards map[chunk.PackRef]*movedPack
	bytes    int64 // stored
}

// movedPack is a forward whose new packs have no names yet: To is meaningless,
// to the number of the new pack of each run.
type movedPack struct {
	forward chunkstore.Forward
	to      []int
}

// rewrite copies packs, stores the copies, and then the forwards. Those that
// cannot be read whole are left as they are.
func (c *collector) rewrite(ctx context.Context, kind pack.Kind, refs []chunk.PackRef, m *marks) ([]chunk.PackRef, error) {
	w := &rewriter{c: c, kind: kind, encoder: pack.NewEncoder(), reader: c.store.NewReader(8 << 20), forwards: map[chunk.PackRef]*movedPack{}}
	if kind == pack.KindData {
		w.hasher = chunk.NewHasher(c.store.ChunkKey())
	}
	var done []chunk.PackRef
	for _, ref := range refs {
		live, _ := m.need.of(ref)
		err := w.copy(ctx, ref, live)
		if errors.Is(err, backend.ErrNotExist) { // another collector is ahead of this one
			delete(w.forwards, ref)
			continue
		}
		if pack.IsDamage(err) {
			delete(w.forwards, ref) // what was copied of it is rubbish
			c.result.Damaged = append(c.result.Damaged, ref)
			continue
		}
		if err != nil {
			return nil, err
		}
		done = append(done, ref)
	}
	if err := w.close(ctx); err != nil {
		return nil, err
	}
	for _, ref := range done {
		f := w.forwards[ref]
		for i := range f.forward.Runs {
			f.forward.Runs[i].To = w.packs[f.to[i]]
		}
		if err := c.store.PutForward(ctx, ref, c.id, &f.forward); err != nil {
			return nil, err
		}
	}
	c.result.BytesCopied += w.bytes
	return done, nil
}

// copy copies what is live of one pack.
func (w *rewriter) copy(ctx context.Context, ref chunk.PackRef, live *set) error {
	count, _, err := w.c.store.PackCount(ctx, ref)
	if err != nil {
		return err
	}
	f := &movedPack{forward: chunkstore.Forward{Kind: w.kind, Count: count}}
	w.forwards[ref] = f
	var ids []chunk.ID
	if w.kind == pack.KindData {
		if ids, err = w.c.store.ChunkIDs(ctx, ref); err != nil {
			return err
		}
	}
	live.each(func(first, n int) bool {
		for ; n > 0 && err == nil; first, n = first+1, n-1 {
			if err = ctx.Err(); err != nil {
				return false
			}
			if first >= count {
				err = fmt.Errorf("%s: %w: a point wants chunk %d of %d", ref, pack.ErrCorrupt, first, count)
				return false
			}
			if w.kind == pack.KindData {
				err = w.chunk(ctx, ref, first, ids[first])
			} else {
				err = w.record(ctx, ref, first)
			}
			if err == nil {
				f.add(first, len(w.packs), w.at()-1)
			}
		}
		return err == nil
	})
	return err
}

// add tells where a chunk went: it may lengthen the last run.
func (f *movedPack) add(n, to, at int) {
	if k := len(f.to) - 1; k >= 0 && f.to[k] == to {
		if r := &f.forward.Runs[k]; r.First+r.Count == n && r.At+r.Count == at {
			r.Count++
			return
		}
	}
	f.forward.Runs = append(f.forward.Runs, chunkstore.ForwardRun{First: n, Count: 1, At: at})
	f.to = append(f.to, to)
}

// at is how many chunks the open pack has.
func (w *rewriter) at() int {
	if w.builder == nil {
		return w.count
	}
	return w.builder.Count() + w.count
}

func (w *rewriter) chunk(ctx context.Context, ref chunk.PackRef, n int, id chunk.ID) error {
	if w.count == pack.MaxFrameChunks {
		if err := w.closeFrame(ctx); err != nil {
			return err
		}
	}
	at := len(w.frame)
	w.frame = append(w.frame, make([]byte, chunk.Size)...)
	if err := w.reader.ReadChunks(ctx, ref, n, w.frame[at:]); err != nil {
		w.frame = w.frame[:at]
		return err
	}
	if w.hasher.Sum(w.frame[at:]) != id {
		w.frame = w.frame[:at]
		return fmt.Errorf("%s: %w: chunk %d is not what its ID names", ref, pack.ErrCorrupt, n)
	}
	w.index = append(w.index, id[:]...)
	w.count++
	return nil
}

func (w *rewriter) record(ctx context.Context, ref chunk.PackRef, n int) error {
	b, err := w.reader.ReadRecord(ctx, ref, n)
	if err != nil {
		return err
	}
	if w.count > 0 && len(w.frame)+len(b) > recordFrame {
		if err := w.closeFrame(ctx); err != nil {
			return err
		}
	}
	w.frame = append(w.frame, b...)
	w.index = binary.LittleEndian.AppendUint32(w.index, uint32(len(b)))
	w.count++
	return nil
}

// closeFrame ends the open frame, and the pack if that is large enough.
func (w *rewriter) closeFrame(ctx context.Context) error {
	if w.count == 0 {
		return nil
	}
	if w.builder == nil {
		b, err := pack.NewBuilder(w.kind, w.c.store.Keys(), w.buf)
		if err != nil {
			return err
		}
		w.builder = b
	}
	enc, encoded, err := w.encoder.Encode(w.encoded, w.frame)
	if err != nil {
		return err
	}
	w.encoded = encoded
	if err := w.builder.Append(enc, encoded, w.count, w.index); err != nil {
		return err
	}
	w.frame, w.index, w.count = w.frame[:0], w.index[:0], 0
	if w.builder.Len() >= targetPack || w.builder.Count() >= pack.MaxChunks/2 {
		return w.closePack(ctx)
	}
	return nil
}

func (w *rewriter) close(ctx context.Context) error {
	if err := w.closeFrame(ctx); err != nil {
		return err
	}
	return w.closePack(ctx)
}

// closePack stores the open pack, reads it back whole, and compares.
func (w *rewriter) closePack(ctx context.Context) error {
	if w.builder == nil {
		return nil
	}
	hash, stored, err := w.builder.Close()
	if err != nil {
		return err
	}
	w.builder, w.buf = nil, stored
	ref := chunk.PackRef{Session: w.c.id, Hash: hash}
	if err := w.c.store.PutPack(ctx, ref, stored); err != nil {
		return err
	}
	if _, err := w.c.store.NewVerifier().Pack(ctx, ref); err != nil {
		return fmt.Errorf("a copy cannot be read back; nothing is removed: %w", err)
	}
	w.packs = append(w.packs, ref)
	w.bytes += int64(len(stored))
	return nil
}
