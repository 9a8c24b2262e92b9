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
// gives the bytes read.
func (v *Verifier) Pack(ctx context.Context, ref PackRef) (int64, error) {
	stored, err := v.store.ReadPack(ctx, ref)
	if err != nil {
		return 0, err
	}
	size := int64(len(stored))
	foot, err := pack.ParseFooter(stored, size, v.store.keys)
	if err != nil {
		return size, fmt.Errorf("%s: %w", packName(ref), err)
	}
	off, n := foot.IndexRange()
	if foot.Kind == pack.KindMap {
		err = v.records(foot, stored, stored[off:off+int64(n)])
	}
	if err == nil && foot.Kind == pack.KindData {
		var ids []chunk.ID
		if ids, err = foot.OpenIndex(stored[off : off+int64(n)]); err == nil && v.hasher != nil {
			err = v.frames(foot, stored, ids)
		}
	}
	if err != nil {
		return size, fmt.Errorf("%s: %w", packName(ref), err)
	}
	return size, ctx.Err()
}

// records opens every frame of a map pack and holds it against the lengths of
// its records.
func (v *Verifier) records(foot *pack.Footer, stored, index []byte) error {
	lens, err := foot.OpenRecords(index)
	if err != nil {
		return err
	}
	for i, fr := range foot.Frames {
		size := 0
		for _, n := range lens[fr.First : int(fr.First)+int(fr.Count)] {
			size += n
		}
		if err := v.frame(foot, stored, i, size); err != nil {
			return err
		}
	}
	return nil
}

// frame opens and decodes frame i to v.raw, of size bytes.
func (v *Verifier) frame(foot *pack.Footer, stored []byte, i, size int) error {
	fr := foot.Frames[i]
	var err error
	if v.encoded, err = foot.OpenFrame(v.encoded, v.store.keys, i, stored[fr.Offset:fr.Offset+int64(fr.Stored)]); err != nil {
		return err
	}
	if v.raw, err = v.dec.Decode(v.raw, fr.Enc, v.encoded, size); err != nil {
		return fmt.Errorf("frame %d: %w", i, err)
	}
	return nil
}

func (v *Verifier) frames(foot *pack.Footer, stored []byte, ids []chunk.ID) error {
	for i, fr := range foot.Frames {
		if err := v.frame(foot, stored, i, int(fr.Count)*chunk.Size); err != nil {
			return err
		}
		for c := range int(fr.Count) {
			if v.hasher.Sum(v.raw[c*chunk.Size:(c+1)*chunk.Size]) != ids[int(fr.First)+c] {
				return fmt.Errorf("%w: chunk %d of frame %d is not what its ID names", pack.ErrCorrupt, c, i)
			}
		}
	}
	return nil
}

// PackCount gives the number of chunks (or records) of a stored pack, by its
// authenticated footer, or those of one that gc rewrote.
func (s *Store) PackCount(ctx context.Context, ref PackRef) (int, error) {
	f, err := s.ReadFooter(ctx, ref)
	if errors.Is(err, backend.ErrNotExist) {
		all, ferr := s.Forwards(ctx, ref)
		for _, f := range all {
			return f.Count, nil
		}
		return 0, cmp.Or(ferr, err)
	}
	if err != nil {
		return 0, err
	}
	return f.Count, nil
}
