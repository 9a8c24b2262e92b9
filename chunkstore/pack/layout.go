package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/seal"
)

// All of this file is part of the on-disk format, do not change: bump
// formatVersion instead. Numbers are little-endian.

const (
	headerMagic   = "CAIRNPK1"
	trailerMagic  = "CAIRNEND"
	formatVersion = 2

	saltSize    = 32
	headerSize  = 8 + 1 + 1 + 2 + saltSize // magic, version, kind, zero, salt
	trailerSize = 8 + 8 + 4 + 4 + headerSize + 32

	// MaxSize bounds a pack in bytes.
	MaxSize = 128 << 20
	// MaxChunks bounds the chunks (or records) of a pack.
	MaxChunks = 1 << 20
	maxFrames = 1 << 20
)

// The trailer is the tail that proves a pack's name: this does not compile else.
var _ = [1]struct{}{}[trailerSize-backend.TailSize]

// Hash names a pack: backend.PackName of its stored bytes.
type Hash = chunk.PackHash

// Kind tells guest bytes from maps.
type Kind byte

const (
	KindData Kind = 1 // chunks
	KindMap  Kind = 2 // disk-map and catalogue nodes
)

// header gives the first bytes of a pack. They are also the additional data
// of every seal in it, and the random salt makes them unique, so that frames
// cannot be moved from pack to pack.
func header(k Kind, salt [saltSize]byte) []byte {
	b := append(make([]byte, 0, headerSize), headerMagic...)
	b = append(b, formatVersion, byte(k), 0, 0)
	return append(b, salt[:]...)
}

func parseHeader(b []byte) (Kind, [saltSize]byte, error) {
	var salt [saltSize]byte
	if len(b) < headerSize || string(b[:8]) != headerMagic {
		return 0, salt, fmt.Errorf("%w: not a pack", ErrCorrupt)
	}
	if b[8] != formatVersion {
		return 0, salt, fmt.Errorf("pack format %d is not known to this cairn, which knows %d: use the cairn that wrote it, or a newer one", b[8], formatVersion)
	}
	k := Kind(b[9])
	if k != KindData && k != KindMap || b[10] != 0 || b[11] != 0 {
		return 0, salt, fmt.Errorf("%w: unknown kind of pack", ErrCorrupt)
	}
	return k, [saltSize]byte(b[12:headerSize]), nil
}

// trailer is the end of every pack.
type trailer struct {
	total     uint64 // length of the whole object
	indexLen  uint32 // stored length of the sealed index
	framesLen uint32 // stored length of the sealed frame table
	header    []byte
	body      [32]byte // BLAKE3-256 of all bytes before the trailer
	name      Hash     // that such a pack has; not stored
}

func (t trailer) append(b []byte) []byte {
	b = append(b, trailerMagic...)
	b = binary.LittleEndian.AppendUint64(b, t.total)
	b = binary.LittleEndian.AppendUint32(b, t.indexLen)
	b = binary.LittleEndian.AppendUint32(b, t.framesLen)
	b = append(b, t.header...)
	return append(b, t.body[:]...)
}

// parseTrailer reads the last trailerSize bytes of an object of size bytes.
func parseTrailer(b []byte, size int64) (trailer, error) {
	if len(b) != trailerSize || string(b[:8]) != trailerMagic {
		if len(b) == trailerSize && binary.LittleEndian.Uint64(b[8:]) == uint64(size) {
			return trailer{}, fmt.Errorf("%w: the trailer's first bytes", ErrCorrupt)
		}
		return trailer{}, fmt.Errorf("%w: no trailer: %w, or no pack", ErrCorrupt, ErrShort)
	}
	t := trailer{
		total: binary.LittleEndian.Uint64(b[8:]), indexLen: binary.LittleEndian.Uint32(b[16:]),
		framesLen: binary.LittleEndian.Uint32(b[20:]), header: b[24 : 24+headerSize], body: [32]byte(b[24+headerSize:]),
	}
	t.name = backend.PackNameOf(t.body, b)
	sections := int64(t.indexLen) + int64(t.framesLen)
	if t.total != uint64(size) || size > MaxSize || headerSize+sections+trailerSize > size ||
		t.indexLen < seal.Overhead || t.framesLen < seal.Overhead {
		return trailer{}, fmt.Errorf("%w: trailer's lengths do not fit the object's %d bytes", ErrCorrupt, size)
	}
	return t, nil
}

// What Verify tells apart, besides ErrCorrupt, which both wrap or come with.
var (
	// ErrShort: the object ends before its end.
	ErrShort = errors.New("cut short")
	// ErrOtherName: the pack is whole by its own hash, but is another one.
	ErrOtherName = fmt.Errorf("%w: the stored bytes do not match the pack's name", ErrCorrupt)
)

// HashOf gives the name of a pack with these stored bytes.
func HashOf(stored []byte) Hash { return backend.PackName(stored) }

// EndNames says whether the end of a stored pack is that of the pack of a name:
// if it is not, no reader takes anything from it.
func EndNames(stored []byte, name Hash) bool {
	if len(stored) < trailerSize {
		return false
	}
	t, err := parseTrailer(stored[len(stored)-trailerSize:], int64(len(stored)))
	return err == nil && t.name == name
}

// Verify checks a whole stored pack without any key: its trailer, the hash
// in it, and its name. A version that is not known is damage unless the name
// proves every byte: then a newer cairn wrote it.
func Verify(stored []byte, name Hash) error {
	err := verify(stored, name)
	if err != nil && !IsDamage(err) && HashOf(stored) != name {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func verify(stored []byte, name Hash) error {
	if len(stored) < headerSize+trailerSize {
		return fmt.Errorf("%w: %w: %d bytes are too few for a pack", ErrCorrupt, ErrShort, len(stored))
	}
	if _, _, err := parseHeader(stored); err != nil {
		return err
	}
	cut := len(stored) - trailerSize
	t, err := parseTrailer(stored[cut:], int64(len(stored)))
	if err != nil {
		return err
	}
	if !bytes.Equal(t.header, stored[:headerSize]) {
		return fmt.Errorf("%w: the header is not the one that the trailer repeats", ErrCorrupt)
	}
	if blake3.Sum256(stored[:cut]) != t.body {
		return fmt.Errorf("%w: the stored bytes do not match the hash in the trailer", ErrCorrupt)
	}
	if t.name != name {
		return ErrOtherName
	}
	return nil
}
