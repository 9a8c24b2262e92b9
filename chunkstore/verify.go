package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// A Verifier re-reads packs and compares. It is for one goroutine.
type Verifier struct {
	store   *Store
	dec     *pack.Decoder
	hasher  *chunk.Hasher // nil: guest data cannot be read
	encoded []byte
	raw     []byte
}

// NewVerifier gives a Verifier.
func (s *Store) NewVerifier() *Verifier {
	v := &Verifier{store: s, dec: pack.NewDecoder()}
	if s.MayRead() == nil {
		v.hasher = chunk.NewHasher(s.ChunkKey())
	}
	return v
}

// Pack reads every byte of a pack: the stored bytes against its name, each
// frame against its seal, each chunk against its ID. Keys that may not read
// guest data (Store.MayRead) look at all but the latter two of data packs. It
// gives the bytes read. The error is a *Fault that says which chunks cannot be
// had any more, or ctx's.
func (v *Verifier) Pack(ctx context.Context, ref PackRef) (int64, error) {
	name := packName(ref)
	stored, err := backend.Get(ctx, v.store.place, name, pack.MaxSize)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if errors.Is(err, backend.ErrNotExist) {
		return 0, FaultOf(name, err)
	}
	if err != nil {
		return 0, v.piecewise(ctx, ref, FaultOf(name, err))
	}
	f := verifyName(ref, stored)
	inner := v.inside(ref, stored)
	switch {
	case f == nil && inner == nil:
		return int64(len(stored)), ctx.Err()
	case f == nil:
		f = inner
	case f.Kind == FaultExchanged && inner != nil: // the trailer itself was changed
		f.Kind, f.Is, f.Err = FaultChanged, nil, inner.Err
	case !pack.EndNames(stored, ref.Hash): // no reader goes on from there
	case inner != nil:
		f.Whole, f.Frames, f.Chunks = inner.Whole, inner.Frames, inner.Chunks
	default:
		f.Whole = false // the frames are good
	}
	return int64(len(stored)), f
}

// inside holds a whole stored pack against its seals and its chunks' IDs.
func (v *Verifier) inside(ref PackRef, stored []byte) *Fault {
	foot, err := pack.ParseFooter(stored, int64(len(stored)), v.store.keys)
	if err != nil {
		return FaultOf(packName(ref), fmt.Errorf("%s: %w", packName(ref), err))
	}
	off, n := foot.IndexRange()
	return v.contents(ref, foot, stored[off:off+int64(n)], func(fr pack.Frame) ([]byte, error) {
		return stored[fr.Offset : fr.Offset+int64(fr.Stored)], nil
	})
}

// piecewise looks which parts of a pack the place still gives, when it does
// not give all.
func (v *Verifier) piecewise(ctx context.Context, ref PackRef, f *Fault) error {
	foot, err := v.store.ReadFooter(ctx, ref)
	if err != nil {
		return f
	}
	index, err := v.store.readIndex(ctx, ref, foot)
	if err != nil && foot.Kind == pack.KindMap {
		return f // no record can be found
	}
	buf := []byte(nil)
	if inner := v.contents(ref, foot, index, func(fr pack.Frame) ([]byte, error) {
		buf = append(buf[:0], make([]byte, fr.Stored)...)
		return buf, v.store.place.ReadAt(ctx, packName(ref), buf, fr.Offset)
	}); inner != nil {
		f.Whole, f.Frames, f.Chunks = inner.Whole, inner.Frames, inner.Chunks
	} else {
		f.Whole = false
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f
}

// contents opens every frame of a pack. A damaged one does not keep the
// others from being looked at.
func (v *Verifier) contents(ref PackRef, foot *pack.Footer, index []byte, sealed func(pack.Frame) ([]byte, error)) *Fault {
	name := packName(ref)
	f := &Fault{Object: name, Kind: FaultChanged}
	fail := func(err error) {
		if f.Err == nil {
			f.Err = fmt.Errorf("%s: %w", name, err)
		}
	}
	var ids []chunk.ID
	var lens []int
	var err error
	if foot.Kind == pack.KindMap {
		if lens, err = foot.OpenRecords(index); err != nil {
			fail(err)
			f.Whole = true
			return f
		}
	} else if ids, err = foot.OpenIndex(index); err != nil {
		fail(err) // the chunks can be read without
	}
	for i, fr := range foot.Frames {
		if v.hasher == nil && foot.Kind == pack.KindData {
			break // these keys may not read guest data
		}
		size := int(fr.Count) * chunk.Size
		if foot.Kind == pack.KindMap {
			size = 0
			for _, n := range lens[fr.First : int(fr.First)+int(fr.Count)] {
				size += n
			}
		}
		b, err := sealed(fr)
		if err == nil {
			err = v.frame(foot, i, b, size)
		}
		if err != nil {
			fail(err)
			f.Frames = join(f.Frames, i, i+1)
			f.Chunks = join(f.Chunks, int(fr.First), int(fr.First)+int(fr.Count))
			continue
		}
		if ids == nil {
			continue
		}
		for c := range int(fr.Count) {
			if n := int(fr.First) + c; v.hasher.Sum(v.raw[c*chunk.Size:(c+1)*chunk.Size]) != ids[n] {
				fail(fmt.Errorf("%w: chunk %d of frame %d is not what its ID names", pack.ErrCorrupt, c, i))
				f.Frames = join(f.Frames, i, i+1)
				f.Chunks = join(f.Chunks, n, n+1)
			}
		}
	}
	if f.Err == nil {
		return nil
	}
	return f
}

// frame opens and decodes frame i to v.raw, of size bytes.
func (v *Verifier) frame(foot *pack.Footer, i int, sealed []byte, size int) error {
	var err error
	if v.encoded, err = foot.OpenFrame(v.encoded, v.store.keys, i, sealed); err != nil {
		return err
	}
	if v.raw, err = v.dec.Decode(v.raw, foot.Frames[i].Enc, v.encoded, size); err != nil {
		return fmt.Errorf("frame %d: %w", i, err)
	}
	return nil
}

// PackCount gives the number of chunks (or records) of a stored pack, by its
// authenticated footer. Of one that gc rewrote it gives the forwards, any of
// which may say where a chunk lies now.
func (s *Store) PackCount(ctx context.Context, ref PackRef) (int, []*Forward, error) {
	f, err := s.ReadFooter(ctx, ref)
	if errors.Is(err, backend.ErrNotExist) {
		all, ferr := s.Forwards(ctx, ref)
		if len(all) > 0 {
			return all[0].Count, all, nil
		}
		return 0, nil, cmp.Or(ferr, err)
	}
	if err != nil {
		return 0, nil, err
	}
	return f.Count, nil, nil
}
