package chunk

import (
	"bytes"
	"encoding/hex"

	"github.com/zeebo/blake3"
)

// Size of every chunk in bytes. Part of the on-disk format, do not change.
const Size = 4096

// IDSize is the length of an ID in bytes. Part of the on-disk format, do not change.
const IDSize = 16

// ID names a chunk by its content.
type ID [IDSize]byte

// String gives the ID as 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsHook says whether the ID is one of the 1 in 8 that the index samples
// (sparse indexing: Lillibridge et al., FAST '09). An index made with another
// rule only finds fewer duplicates, so the rule may change.
func (id ID) IsHook() bool { return id[0]&7 == 0 }

var zeros [Size]byte

// IsZero says whether p, at most Size bytes, holds only zeros.
func IsZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// A Hasher computes IDs. It is for one goroutine.
type Hasher struct {
	h   *blake3.Hasher
	sum [32]byte
}

// NewHasher gives a Hasher for a repository's chunk-ID key.
func NewHasher(key [32]byte) *Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil { // only a wrong key length, which the type rules out
		panic("internal error: " + err.Error())
	}
	return &Hasher{h: h}
}

// Sum gives the ID of one chunk of exactly Size bytes.
func (h *Hasher) Sum(p []byte) ID {
	if len(p) != Size {
		panic("internal error: a chunk of the wrong size")
	}
	h.h.Reset()
	_, _ = h.h.Write(p) // never fails
	h.h.Sum(h.sum[:0])
	return ID(h.sum[:IDSize])
}
