package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// ErrAuth says that sealed bytes are damaged, were moved from another place,
// or were sealed with another key.
var ErrAuth = errors.New("authentication failed: damaged, or sealed with another key")

// KeySize is the length of every symmetric key in bytes.
const KeySize = 32

// Overhead is what sealing adds, in bytes.
const Overhead = 16

// Key is a symmetric key. It never prints itself.
type Key [KeySize]byte

// String keeps keys out of logs and error texts.
func (Key) String() string { return "(key)" }

// GoString does so for %#v.
func (Key) GoString() string { return "(key)" }

// Domain tells the uses of one key apart; it is part of the nonce.
// Part of the on-disk format, do not change.
type Domain byte

const (
	DomainFrame  Domain = 1
	DomainIndex  Domain = 2
	DomainFrames Domain = 3
	DomainObject Domain = 4
)

// Box seals with one key: AES-256-GCM (NIST SP 800-38D). It may be used by
// many goroutines.
type Box struct{ aead cipher.AEAD }

// NewBox gives a Box for the key.
func NewBox(k Key) Box {
	b, err := aes.NewCipher(k[:])
	if err != nil {
		panic("internal error: " + err.Error())
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return Box{a}
}

// nonce is domain, three zero bytes, then the counter, little-endian.
func nonce(d Domain, counter uint64) (n [12]byte) {
	n[0] = byte(d)
	binary.LittleEndian.PutUint64(n[4:], counter)
	return n
}

// Seal appends the sealed plain to dst. The pair (d, counter) must be used
// once only under this key.
func (b Box) Seal(dst []byte, d Domain, counter uint64, plain, aad []byte) []byte {
	n := nonce(d, counter)
	return b.aead.Seal(dst, n[:], plain, aad)
}

// Open appends the plain text to dst, or gives ErrAuth.
func (b Box) Open(dst []byte, d Domain, counter uint64, sealed, aad []byte) ([]byte, error) {
	n := nonce(d, counter)
	out, err := b.aead.Open(dst, n[:], sealed, aad)
	if err != nil {
		return nil, ErrAuth
	}
	return out, nil
}

// Derive gives the key for one use of k: HKDF-SHA256 (RFC 5869) with the
// object's random salt and a label.
func Derive(k Key, salt []byte, label string) Key {
	out, err := hkdf.Key(sha256.New, k[:], salt, label, KeySize)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return Key(out)
}
