package chunkstoretest

import (
	"bytes"

	"cairn/chunkstore/seal"
)

// PackKeys are seal.PackKeys that hide nothing and cost nothing.
type PackKeys struct{}

var plain = []byte("a key that is not wrapped ")

// Wrap gives the key behind a few words.
func (PackKeys) Wrap(pack seal.Key) []byte { return append(bytes.Clone(plain), pack[:]...) }

// Unwrap reads what Wrap gave.
func (PackKeys) Unwrap(wrapped []byte) (seal.Key, error) {
	key, ok := bytes.CutPrefix(wrapped, plain)
	if !ok || len(key) != seal.KeySize {
		return seal.Key{}, seal.ErrAuth
	}
	return seal.Key(key), nil
}
