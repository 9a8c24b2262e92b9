package seal

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// hostKeyPrefix begins a host key's text.
const hostKeyPrefix = "CAIRN-HOST-KEY-1 "

// HostID names a host's key: the first 16 bytes of SHA-256 of its public half.
// Part of the on-disk format.
type HostID [16]byte

// String gives 32 hexadecimal digits.
func (h HostID) String() string { return fmt.Sprintf("%x", h[:]) }

// HostIDOf gives the ID of a public key.
func HostIDOf(public []byte) HostID {
	sum := sha256.Sum256(public)
	return HostID(sum[:16])
}

// HostKey is what one host signs its points with (Ed25519). It opens nothing.
type HostKey struct{ key ed25519.PrivateKey }

// NewHostKey makes one.
func NewHostKey() *HostKey {
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // never fails
	return &HostKey{ed25519.NewKeyFromSeed(seed)}
}

// ParseHostKey reads what Text gives.
func ParseHostKey(text string) (*HostKey, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), hostKeyPrefix)
	seed, err := base64.StdEncoding.DecodeString(rest)
	if !ok || err != nil || len(seed) != ed25519.SeedSize {
		return nil, errors.New("not a host key")
	}
	return &HostKey{ed25519.NewKeyFromSeed(seed)}, nil
}

// Text gives the key for a file that only its owner may read.
func (k *HostKey) Text() string {
	return hostKeyPrefix + base64.StdEncoding.EncodeToString(k.key.Seed()) + "\n"
}

// Public gives the public half.
func (k *HostKey) Public() []byte { return k.key.Public().(ed25519.PublicKey) }

// ID names the key.
func (k *HostKey) ID() HostID { return HostIDOf(k.Public()) }

// Sign signs a message.
func (k *HostKey) Sign(message []byte) []byte { return ed25519.Sign(k.key, message) }

// VerifyHost says whether a message was signed with the private half.
func VerifyHost(public, message, signature []byte) bool {
	return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, message, signature)
}
