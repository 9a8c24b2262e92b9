package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// Errors of key slots.
var (
	// ErrWrongSecret: no slot opens with the secret given.
	ErrWrongSecret = errors.New("wrong passphrase or key")
	// ErrNoContentKey: these keys can write and list but not read guest data.
	ErrNoContentKey = errors.New("this key cannot read guest data (it holds no content identity)")
)

// Keyring is a repository's opened keys.
type Keyring struct {
	ChunkID   Key
	Structure Key
	recipient *age.X25519Recipient
	identity  *age.X25519Identity // nil for a key that only writes
}

// NewKeyring makes the random roots of a new repository.
func NewKeyring() (*Keyring, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make content identity: %w", err)
	}
	k := &Keyring{recipient: id.Recipient(), identity: id, ChunkID: RandomKey(), Structure: RandomKey()}
	return k, nil
}

// CanRead says whether these keys open guest data.
func (k *Keyring) CanRead() bool { return k.identity != nil }

// RandomKey gives a fresh key.
func RandomKey() (k Key) {
	_, _ = rand.Read(k[:]) // never fails (crypto/rand since Go 1.24)
	return k
}

// WrapPackKey seals a data pack's key for the content recipient.
func (k *Keyring) WrapPackKey(pack Key) ([]byte, error) { return encrypt(pack[:], k.recipient) }

// UnwrapPackKey opens what WrapPackKey sealed; ErrNoContentKey when these
// keys only write, ErrAuth when the bytes are not ours.
func (k *Keyring) UnwrapPackKey(wrapped []byte) (Key, error) {
	if k.identity == nil {
		return Key{}, ErrNoContentKey
	}
	b, err := decrypt(wrapped, k.identity)
	if err != nil || len(b) != KeySize {
		return Key{}, ErrAuth
	}
	return Key(b), nil
}

// slotBody is what a key slot holds. Part of the on-disk format: fields are
// only added.
type slotBody struct {
	Version   int    `json:"version"`
	ChunkID   []byte `json:"chunk_id_key"`
	Structure []byte `json:"structure_key"`
	Recipient string `json:"content_recipient"`
	Identity  string `json:"content_identity,omitempty"`
}

// Marshal gives the keys as the body of a key slot, unprotected.
func (k *Keyring) Marshal() []byte {
	s := slotBody{Version: 1, ChunkID: k.ChunkID[:], Structure: k.Structure[:], Recipient: k.recipient.String()}
	if k.identity != nil {
		s.Identity = k.identity.String()
	}
	b, err := json.Marshal(s)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return b
}

// Unmarshal reads what Marshal wrote.
func Unmarshal(b []byte) (*Keyring, error) {
	var s slotBody
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, errors.New("key slot: not a key document") // the cause could quote key bytes
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("key slot: version %d is not known to this cairn: use a newer one", s.Version)
	}
	if len(s.ChunkID) != KeySize || len(s.Structure) != KeySize {
		return nil, errors.New("key slot: keys of the wrong length")
	}
	k := &Keyring{ChunkID: Key(s.ChunkID), Structure: Key(s.Structure)}
	var err error
	if k.recipient, err = age.ParseX25519Recipient(s.Recipient); err != nil {
		return nil, errors.New("key slot: the content recipient cannot be parsed")
	}
	if s.Identity != "" {
		if k.identity, err = age.ParseX25519Identity(s.Identity); err != nil {
			return nil, errors.New("key slot: the content identity cannot be parsed")
		}
	}
	return k, nil
}

// scryptWork is log2 of scrypt's N (RFC 7914; r=8, p=1): 64 MiB and about
// 0.2 s. age stores it in the slot. scryptWorkMax bounds what a hostile slot
// may ask for (1 GiB).
const (
	scryptWork    = 16
	scryptWorkMax = 20
)

// identityPrefix marks a secret that is an age identity, not a passphrase.
const identityPrefix = "AGE-SECRET-KEY-1"

// IsIdentity says whether a secret is an age identity, which needs no slow
// key derivation.
func IsIdentity(secret string) bool { return strings.HasPrefix(secret, identityPrefix) }

// Slot wraps the keys for a secret: a passphrase, or an age identity
// ("AGE-SECRET-KEY-1…"), which needs no slow key derivation as nobody can
// guess it.
func (k *Keyring) Slot(secret string) ([]byte, error) {
	var to age.Recipient
	if IsIdentity(secret) {
		id, err := age.ParseX25519Identity(secret)
		if err != nil {
			return nil, errors.New("the secret begins like an age identity but cannot be parsed: check that the file is complete")
		}
		to = id.Recipient()
	} else {
		r, err := age.NewScryptRecipient(secret)
		if err != nil {
			return nil, errors.New("the passphrase is empty")
		}
		r.SetWorkFactor(scryptWork)
		to = r
	}
	return encrypt(k.Marshal(), to)
}

// OpenSlot opens a slot with a secret, or gives ErrWrongSecret.
func OpenSlot(slot []byte, secret string) (*Keyring, error) {
	var id age.Identity
	if IsIdentity(secret) {
		x, err := age.ParseX25519Identity(secret)
		if err != nil {
			return nil, ErrWrongSecret
		}
		id = x
	} else {
		s, err := age.NewScryptIdentity(secret)
		if err != nil {
			return nil, ErrWrongSecret
		}
		s.SetMaxWorkFactor(scryptWorkMax)
		id = s
	}
	b, err := decrypt(slot, id)
	if err != nil {
		return nil, ErrWrongSecret
	}
	return Unmarshal(b)
}

// NewRecoveryKey makes an age identity as a secret for Slot.
func NewRecoveryKey() (string, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", fmt.Errorf("make recovery key: %w", err)
	}
	return id.String(), nil
}

func encrypt(plain []byte, to age.Recipient) ([]byte, error) {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("wrap key: %w", err)
	}
	return b.Bytes(), nil
}

// maxWrapped bounds what decrypt reads, in bytes: a slot is under 1 KiB.
const maxWrapped = 64 << 10

func decrypt(b []byte, id age.Identity) ([]byte, error) {
	if len(b) > maxWrapped {
		return nil, ErrAuth
	}
	r, err := age.Decrypt(bytes.NewReader(b), id)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxWrapped))
}
