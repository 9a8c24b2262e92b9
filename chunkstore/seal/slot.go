package seal

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A key slot is one object. Part of the on-disk format, do not change:
//
//	magic "CAIRNKEY" (8) · version 1 (1) · zero (3) · salt (32)
//	length of the info (4) · info, JSON in the clear · age file · MAC (32)
//
// The MAC is HMAC-SHA256 under HKDF(structure key, salt, slotLabel) over the
// length of the object's name (4), the name, and all bytes before it. Whoever
// has opened any slot can so check the info of all. Slots of before are a bare
// age file, without info; they stay readable.
const (
	slotMagic   = "CAIRNKEY"
	slotVersion = 1
	slotHeader  = 48 // with the length of the info
	slotLabel   = "cairn key slot v1"
	bareMagic   = "age-encryption.org/"
)

// Bounds of a slot in bytes. A reader refuses more.
const (
	MaxSlot  = 64 << 10
	maxInfo  = 4 << 10
	maxLabel = 128
	maxAge   = 32 << 10
)

// ErrSlot: bytes that are no key slot, or a damaged one.
var ErrSlot = errors.New("not a key slot, or a damaged one")

// ErrSlotInfo: what stands beside a slot's keys in the clear is not what was
// written. Its keys, if they open, are good all the same.
var ErrSlotInfo = errors.New("what the key slot says of itself was changed in the place")

// Info is what a key slot says of itself in the clear. Part of the on-disk
// format: fields are only added.
type Info struct {
	Kind        Kind      `json:"kind"`
	Label       string    `json:"label,omitempty"`
	Opens       Method    `json:"opens"`
	Fingerprint string    `json:"fingerprint,omitempty"` // of a public key; none of a passphrase
	Created     time.Time `json:"created"`
}

// Slot is a parsed key slot.
type Slot struct {
	// Info is not to be believed before Check.
	Info Info
	// Bare slots were made before slots had an Info: only Opens is known.
	Bare bool

	raw []byte
	age []byte
}

// CheckLabel refuses labels that no slot can have.
func CheckLabel(label string) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) }
	if len(label) > maxLabel || !utf8.ValidString(label) || strings.ContainsFunc(label, bad) {
		return fmt.Errorf("a label has at most %d bytes, all of them printable", maxLabel)
	}
	return nil
}

// NewSlot seals the keys that a kind needs for a recipient, as the object of
// the name given.
func (k *Keyring) NewSlot(name string, kind Kind, label string, to Recipient, created time.Time) ([]byte, error) {
	if err := CheckLabel(label); err != nil {
		return nil, err
	}
	keys, err := k.Only(kind)
	if err != nil {
		return nil, err
	}
	info, err := json.Marshal(Info{Kind: kind, Label: label, Opens: to.method, Fingerprint: to.fingerprint, Created: created.UTC().Truncate(time.Second)})
	if err != nil {
		return nil, err
	}
	file, err := encrypt(keys.Marshal(), to.to)
	if err != nil {
		return nil, err
	}
	salt := RandomKey()
	b := append([]byte(slotMagic), slotVersion, 0, 0, 0)
	b = append(b, salt[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(info)))
	b = append(append(b, info...), file...)
	b = append(b, k.slotMAC(name, b)...)
	return b, k.checkNew(name, b, keys, to)
}

// checkNew reads a new slot as it will be read.
func (k *Keyring) checkNew(name string, b []byte, keys *Keyring, to Recipient) error {
	s, err := ParseSlot(b)
	if err == nil {
		err = s.Check(name, k)
	}
	if err == nil && to.check != nil {
		var body []byte
		if body, err = decrypt(s.age, to.check); err == nil && !bytes.Equal(body, keys.Marshal()) {
			err = ErrSlot
		}
	}
	if err != nil {
		return fmt.Errorf("a new key slot does not open again: %w", err)
	}
	return nil
}

func (k *Keyring) slotMAC(name string, b []byte) []byte {
	key := Derive(k.Structure, b[12:slotHeader-4], slotLabel)
	h := hmac.New(sha256.New, key[:])
	h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(name))))
	h.Write([]byte(name))
	h.Write(b)
	return h.Sum(nil)
}

// ParseSlot reads a slot of either form. It keeps b.
func ParseSlot(b []byte) (*Slot, error) {
	if len(b) > MaxSlot {
		return nil, fmt.Errorf("%w: %d bytes", ErrSlot, len(b))
	}
	if bytes.HasPrefix(b, []byte(bareMagic)) {
		s := &Slot{Bare: true, raw: b, age: b}
		s.Info.Opens = stanza(b)
		return s, nil
	}
	if len(b) < slotHeader+sha256.Size || string(b[:8]) != slotMagic {
		return nil, fmt.Errorf("%w: no such beginning", ErrSlot)
	}
	if b[8] != slotVersion {
		return nil, fmt.Errorf("key slot: version %d is not known to this cairn: use a newer one", b[8])
	}
	n := binary.LittleEndian.Uint32(b[slotHeader-4:])
	rest := b[slotHeader : len(b)-sha256.Size]
	if n > maxInfo || int(n) > len(rest) {
		return nil, fmt.Errorf("%w: its info is longer than it can be", ErrSlot)
	}
	s := &Slot{raw: b, age: rest[n:]}
	if err := json.Unmarshal(rest[:n], &s.Info); err != nil || len(s.Info.Kind) > maxLabel || len(s.Info.Opens) > maxLabel ||
		len(s.Info.Fingerprint) > maxLabel || CheckLabel(s.Info.Label) != nil {
		// The keys do not depend on it; Check will say that it was changed.
		s.Info = Info{}
	}
	if len(s.age) > maxAge || !bytes.HasPrefix(s.age, []byte(bareMagic)) {
		return nil, fmt.Errorf("%w: no age file in it", ErrSlot)
	}
	return s, nil
}

// Check says whether the slot's info, as the object of the name given, is what
// a holder of the structure key wrote: ErrSlotInfo if not. Of a bare slot
// nothing can be said.
func (s *Slot) Check(name string, k *Keyring) error {
	if s.Bare {
		return nil
	}
	body, mac := s.raw[:len(s.raw)-sha256.Size], s.raw[len(s.raw)-sha256.Size:]
	if !hmac.Equal(mac, k.slotMAC(name, body)) {
		return ErrSlotInfo
	}
	return nil
}

// Open opens the slot with a secret, or gives ErrWrongSecret. The kind is that
// of the keys inside, whatever the info says.
func (s *Slot) Open(secret string) (*Keyring, error) {
	id, err := identity(secret)
	if err != nil {
		return nil, err
	}
	b, err := decrypt(s.age, id)
	if err != nil {
		return nil, ErrWrongSecret
	}
	return Unmarshal(b)
}

// OpenSlot parses and opens a slot.
func OpenSlot(b []byte, secret string) (*Keyring, error) {
	s, err := ParseSlot(b)
	if err != nil {
		return nil, err
	}
	return s.Open(secret)
}
