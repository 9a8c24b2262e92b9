package chunkstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// The names of sessions, packs and places are chunk's, so that maps need not
// know the store.
type (
	SessionID = chunk.SessionID
	PackRef   = chunk.PackRef
	Loc       = chunk.Loc
	RecordLoc = chunk.RecordLoc
)

// Hole is the Loc of a chunk of zeros.
const Hole = chunk.Hole

// ParseSessionID reads what String gives.
func ParseSessionID(s string) (SessionID, error) {
	var id SessionID
	if !parseHex(id[:], s) {
		return SessionID{}, fmt.Errorf("%q is not an id of 32 hexadecimal digits", s)
	}
	return id, nil
}

// parseHex fills b from lower-case digits: an object has one name.
func parseHex(b []byte, s string) bool {
	if len(s) != hex.EncodedLen(len(b)) || strings.ContainsAny(s, "ABCDEF") {
		return false
	}
	_, err := hex.Decode(b, []byte(s))
	return err == nil
}

// packName is a pack's object name. Part of the on-disk format.
func packName(r PackRef) string { return packsPrefix + r.Session.String() + "/" + r.Hash.String() }

// parsePackName reads what packName gives.
func parsePackName(name string) (PackRef, error) {
	var r PackRef
	session, hash, ok := strings.Cut(strings.TrimPrefix(name, packsPrefix), "/")
	if !ok || !parseHex(r.Session[:], session) || !parseHex(r.Hash[:], hash) {
		return PackRef{}, fmt.Errorf("%s is not a pack's name", name)
	}
	return r, nil
}

// Store is an opened repository.
type Store struct {
	Config *Config
	place  backend.Backend
	keys   *seal.Keyring

	controls controls
	signers  signers
	decoders sync.Pool // of *zstd.Decoder, for records: a listing opens thousands
}

// NewStore gives the Store of a repository whose keys are open.
func NewStore(place backend.Backend, c *Config, keys *seal.Keyring) *Store {
	return &Store{Config: c, place: place, keys: keys}
}

// ChunkKey is the key of chunk.NewHasher for this repository. Who only keeps
// house has none and must not ask: MayRead or MayBackUp comes first.
func (s *Store) ChunkKey() [32]byte {
	if !s.keys.HasChunkID() {
		panic("internal error: chunk IDs are computed with a key that has no chunk-ID key")
	}
	return s.keys.ChunkID
}

// IndexKey is a key for checksums of what is cached about this repository on
// a host.
func (s *Store) IndexKey() [32]byte {
	return seal.Derive(s.keys.Structure, []byte(s.Config.ID), "cairn index checksum v1")
}

// Packs calls fn for each stored pack that something new may rest on, with its
// stored size.
func (s *Store) Packs(ctx context.Context, fn func(PackRef, int64) error) error {
	return s.place.List(ctx, packsPrefix, func(o backend.Object) error {
		r, err := parsePackName(o.Name)
		if err != nil || o.Partial || o.Unsure {
			return nil // not ours, or not stored as it should be; check names it
		}
		return fn(r, o.Size)
	})
}

// Unknown gives the names of objects in the place that no cairn of this
// format made.
func (s *Store) Unknown(ctx context.Context) ([]string, error) {
	o, err := s.Objects(ctx)
	if err != nil {
		return nil, err
	}
	return o.Unknown, nil
}

// HasPack says whether a pack is there, or what was needed of it elsewhere.
func (s *Store) HasPack(ctx context.Context, r PackRef) (bool, error) {
	_, err := s.place.Size(ctx, packName(r))
	if errors.Is(err, backend.ErrNotExist) {
		all, err := s.Forwards(ctx, r)
		return len(all) > 0, err
	}
	return err == nil, err
}

// ReadPack gives a pack's stored bytes, verified without a key.
func (s *Store) ReadPack(ctx context.Context, r PackRef) ([]byte, error) {
	b, err := backend.Get(ctx, s.place, packName(r), pack.MaxSize)
	if err != nil {
		return nil, err
	}
	if err := pack.Verify(b, r.Hash); err != nil {
		return nil, fmt.Errorf("%s: %w", packName(r), err)
	}
	return b, nil
}

// ReadFooter reads and opens a pack's footer, and holds it against the pack's name.
func (s *Store) ReadFooter(ctx context.Context, r PackRef) (*pack.Footer, error) {
	size, err := s.place.Size(ctx, packName(r))
	if err != nil {
		return nil, err
	}
	first := tails.Get().(*[pack.TailSize]byte)
	defer tails.Put(first) // a footer keeps nothing of it
	for want := int64(pack.TailSize); ; {
		var tail []byte
		if n := min(want, size); n <= pack.TailSize {
			tail = first[:n]
		} else {
			tail = make([]byte, n)
		}
		if err := s.place.ReadAt(ctx, packName(r), tail, size-int64(len(tail))); err != nil {
			return nil, err
		}
		f, err := pack.ParseFooter(tail, size, s.keys)
		var more pack.NeedMore
		if errors.As(err, &more) && int64(more) > int64(len(tail)) {
			want = int64(more)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", packName(r), err)
		}
		if f.Name != r.Hash { // the place gave another pack
			return nil, fmt.Errorf("%s: %w", packName(r), pack.ErrOtherName)
		}
		return f, nil
	}
}

var tails = sync.Pool{New: func() any { return new([pack.TailSize]byte) }}

// readIndex reads a pack's sealed index.
func (s *Store) readIndex(ctx context.Context, r PackRef, f *pack.Footer) ([]byte, error) {
	off, n := f.IndexRange()
	b := make([]byte, n)
	return b, s.place.ReadAt(ctx, packName(r), b, off)
}
