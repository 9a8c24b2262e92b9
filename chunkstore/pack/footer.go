package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"sync"

	"cairn/chunkstore/chunk"
	"cairn/chunkstore/seal"
)

// TailSize is how much of a pack's end is worth reading at first, in bytes:
// it holds the trailer and nearly every frame table.
const TailSize = 16 << 10

// Frame is one frame's place in a pack.
type Frame struct {
	Offset int64  // of the sealed bytes in the pack
	Stored int32  // sealed length in bytes
	First  int32  // first chunk (or record) in it
	Count  uint16 // chunks (or records)
	Enc    Encoding
}

// Footer is a pack's frame table, opened and checked. It may be used by many
// goroutines.
type Footer struct {
	Kind   Kind
	Name   Hash // of the pack whose end was read, by its trailer: who asked for another got a wrong one
	Frames []Frame
	Count  int // chunks or records in the pack

	head      []byte
	wrapped   []byte
	footerKey seal.Key
	indexOff  int64
	indexLen  int

	keyOnce sync.Once
	key     seal.Box
	keyErr  error
}

// NeedMore says that the tail given to ParseFooter is too short: at least
// this many bytes of the pack's end are needed.
type NeedMore int

// Error makes NeedMore an error.
func (n NeedMore) Error() string {
	return fmt.Sprintf("the last %d bytes of the pack are needed", int(n))
}

// ParseFooter reads a footer from tail, the last bytes of a pack of size
// bytes. It gives NeedMore when the tail is too short, ErrCorrupt or
// seal.ErrAuth when the bytes are not what was written. The caller compares
// Name: it covers the header, which every seal in the pack covers in turn, so
// that what opens under the footer is of the pack of that name.
func ParseFooter(tail []byte, size int64, keys *seal.Keyring) (*Footer, error) {
	if size < headerSize+trailerSize || size > MaxSize || int64(len(tail)) > size {
		return nil, fmt.Errorf("%w: an object of %d bytes is no pack", ErrCorrupt, size)
	}
	if len(tail) < trailerSize {
		return nil, NeedMore(trailerSize)
	}
	t, err := parseTrailer(tail[len(tail)-trailerSize:], size)
	if err != nil {
		return nil, err
	}
	kind, salt, err := parseHeader(t.header)
	if err != nil {
		return nil, err
	}
	need := trailerSize + int(t.framesLen)
	if len(tail) < need {
		return nil, NeedMore(need)
	}
	f := &Footer{Kind: kind, Name: t.name, head: append([]byte(nil), t.header...), indexLen: int(t.indexLen)}
	f.indexOff = size - int64(need) - int64(t.indexLen)
	f.footerKey = seal.Derive(keys.Structure, salt[:], labelFooter)
	sealed := tail[len(tail)-need : len(tail)-trailerSize]
	table, err := seal.NewBox(f.footerKey).Open(nil, seal.DomainFrames, 0, sealed, f.head)
	if err != nil {
		return nil, fmt.Errorf("pack footer: %w", err)
	}
	if err := f.parseTable(table); err != nil {
		return nil, err
	}
	if kind == KindMap {
		k := seal.Derive(keys.Structure, salt[:], labelMap)
		f.keyOnce.Do(func() { f.key = seal.NewBox(k) })
	}
	return f, nil
}

// parseTable reads wrapped key and frame table and holds them against the
// pack's size.
func (f *Footer) parseTable(b []byte) error {
	if len(b) < 2 {
		return fmt.Errorf("%w: pack footer too short", ErrCorrupt)
	}
	n := int(binary.LittleEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return fmt.Errorf("%w: pack footer cut short", ErrCorrupt)
	}
	f.wrapped, b = b[:n:n], b[n:]
	if len(b)%frameEntrySize != 0 || len(b)/frameEntrySize > maxFrames {
		return fmt.Errorf("%w: pack frame table of %d bytes", ErrCorrupt, len(b))
	}
	f.Frames = make([]Frame, 0, len(b)/frameEntrySize)
	off := int64(headerSize)
	for ; len(b) > 0; b = b[frameEntrySize:] {
		stored := binary.LittleEndian.Uint32(b)
		fr := Frame{Offset: off, Stored: int32(min(stored, MaxSize)), First: int32(f.Count),
			Count: binary.LittleEndian.Uint16(b[4:]), Enc: Encoding(b[6])}
		if fr.Stored <= seal.Overhead || int(fr.Stored) > maxFrame(f.Kind)+seal.Overhead || fr.Count == 0 ||
			f.Kind == KindData && fr.Count > MaxFrameChunks {
			return fmt.Errorf("%w: pack frame table: frame %d out of bounds", ErrCorrupt, len(f.Frames))
		}
		off += int64(fr.Stored)
		f.Count += int(fr.Count)
		f.Frames = append(f.Frames, fr)
		if f.Count > MaxChunks {
			return fmt.Errorf("%w: a pack of more than %d chunks", ErrCorrupt, MaxChunks)
		}
	}
	if off != f.indexOff {
		return fmt.Errorf("%w: pack frame table does not fit the pack", ErrCorrupt)
	}
	return nil
}

// FrameOf gives the frame that holds a chunk (or record) of the pack.
func (f *Footer) FrameOf(n int) (int, error) {
	if n < 0 || n >= f.Count {
		return 0, fmt.Errorf("%w: chunk %d of a pack of %d", ErrCorrupt, n, f.Count)
	}
	return sort.Search(len(f.Frames), func(i int) bool { return int(f.Frames[i].First) > n }) - 1, nil
}

// IndexRange is where the sealed index lies in the pack: offset and length
// in bytes.
func (f *Footer) IndexRange() (int64, int) { return f.indexOff, f.indexLen }

// OpenIndex opens the sealed index of a data pack: its chunk IDs in order.
func (f *Footer) OpenIndex(sealed []byte) ([]chunk.ID, error) {
	b, err := f.openIndex(sealed, KindData, chunk.IDSize)
	if err != nil {
		return nil, err
	}
	ids := make([]chunk.ID, f.Count)
	for i := range ids {
		ids[i] = chunk.ID(b[i*chunk.IDSize:])
	}
	return ids, nil
}

// OpenRecords opens the sealed index of a map pack: its records' lengths.
func (f *Footer) OpenRecords(sealed []byte) ([]int, error) {
	b, err := f.openIndex(sealed, KindMap, recordEntrySize)
	if err != nil {
		return nil, err
	}
	lens := make([]int, f.Count)
	for i := range lens {
		n := binary.LittleEndian.Uint32(b[i*recordEntrySize:])
		if n > MaxMapFrameSize {
			return nil, fmt.Errorf("%w: a record of %d bytes", ErrCorrupt, n)
		}
		lens[i] = int(n)
	}
	return lens, nil
}

func (f *Footer) openIndex(sealed []byte, k Kind, entry int) ([]byte, error) {
	if f.Kind != k {
		return nil, fmt.Errorf("%w: a pack of another kind", ErrCorrupt)
	}
	b, err := seal.NewBox(f.footerKey).Open(nil, seal.DomainIndex, 0, sealed, f.head)
	if err != nil {
		return nil, fmt.Errorf("pack index: %w", err)
	}
	if len(b) != f.Count*entry {
		return nil, fmt.Errorf("%w: pack index of %d bytes for %d entries", ErrCorrupt, len(b), f.Count)
	}
	return b, nil
}

// OpenKey unwraps the pack's own key now rather than at the first OpenFrame,
// which gives its error.
func (f *Footer) OpenKey(keys *seal.Keyring) {
	f.keyOnce.Do(func() {
		k, err := keys.UnwrapPackKey(f.wrapped)
		f.key, f.keyErr = seal.NewBox(k), err
	})
}

// OpenFrame opens frame n's sealed bytes in place and appends the encoded
// bytes to dst[:0].
func (f *Footer) OpenFrame(dst []byte, keys *seal.Keyring, n int, sealed []byte) ([]byte, error) {
	f.OpenKey(keys)
	if f.keyErr != nil {
		return nil, f.keyErr
	}
	b, err := f.key.Open(dst[:0], seal.DomainFrame, uint64(n), sealed, frameAAD(f.head, f.Frames[n].Enc))
	if err != nil {
		return nil, fmt.Errorf("frame %d: %w", n, err)
	}
	return b, nil
}

// IsDamage says whether an error means that stored bytes are not what was
// written (as against: could not be read).
func IsDamage(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, seal.ErrAuth) }
