package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
)

// ErrWrongSecret: no slot opens with the secret given.
var ErrWrongSecret = errors.New("wrong passphrase or key")

// Keyring is a repository's opened keys: those that its kind needs.
type Keyring struct {
	ChunkID   Key // none of a key for housekeeping: see HasChunkID
	Structure Key
	kind      Kind
	recipient *age.X25519Recipient // nil for housekeeping
	identity  *age.X25519Identity  // nil for a key that cannot read guest data
	otherwise PackKeys             // nil but in a simulation
	opened    unwrapped
}

// PackKeys wraps the keys of data packs. Unwrap gives ErrAuth for what Wrap did
// not make.
type PackKeys interface {
	Wrap(pack Key) []byte
	Unwrap(wrapped []byte) (Key, error)
}

// WithPackKeys gives keys like these whose data packs' keys are wrapped by w
// and not by age. It is for simulations, which make packs by the million and
// would spend a quarter of their time on age's curve; no other keys open such a
// pack, and no slot can hold these.
func (k *Keyring) WithPackKeys(w PackKeys) *Keyring {
	return &Keyring{ChunkID: k.ChunkID, Structure: k.Structure, kind: k.kind, recipient: k.recipient, identity: k.identity, otherwise: w}
}

// NewKeyring makes the random roots of a new repository.
func NewKeyring() (*Keyring, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make content identity: %w", err)
	}
	k := &Keyring{kind: KindAll, recipient: id.Recipient(), identity: id, ChunkID: RandomKey(), Structure: RandomKey()}
	return k, nil
}

// CanRead says whether these keys open guest data.
func (k *Keyring) CanRead() bool { return k.identity != nil }

// RandomKey gives a fresh key.
func RandomKey() (k Key) {
	_, _ = rand.Read(k[:]) // never fails (crypto/rand since Go 1.24)
	return k
}

// WrapPackKey seals a data pack's key for the content recipient;
// ErrNoBackupKey when these keys know none.
func (k *Keyring) WrapPackKey(pack Key) ([]byte, error) {
	if k.recipient == nil {
		return nil, k.may(ErrNoBackupKey, KindWrite, KindAll)
	}
	if k.otherwise != nil {
		return k.otherwise.Wrap(pack), nil
	}
	return encrypt(pack[:], k.recipient)
}

// UnwrapPackKey opens what WrapPackKey sealed; ErrNoContentKey when these
// keys cannot read guest data, ErrAuth when the bytes are not ours.
func (k *Keyring) UnwrapPackKey(wrapped []byte) (Key, error) {
	if k.identity == nil {
		return Key{}, k.may(ErrNoContentKey, KindRestore, KindAll)
	}
	if k.otherwise != nil {
		return k.otherwise.Unwrap(wrapped)
	}
	if key, ok := k.opened.get(wrapped); ok {
		return key, nil
	}
	b, err := decrypt(wrapped, k.identity)
	if err != nil || len(b) != KeySize {
		return Key{}, ErrAuth
	}
	k.opened.add(wrapped, Key(b))
	return Key(b), nil
}

// unwrapped are pack keys that were opened: every Reader opens those of the
// packs it meets, and that is two multiplications on a curve each.
type unwrapped struct {
	mu   sync.Mutex
	keys map[string]Key // by what was opened
}

// maxUnwrapped bounds them; one takes some 300 bytes.
const maxUnwrapped = 4096

func (u *unwrapped) get(wrapped []byte) (Key, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key, ok := u.keys[string(wrapped)]
	return key, ok
}

func (u *unwrapped) add(wrapped []byte, key Key) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.keys == nil || len(u.keys) >= maxUnwrapped {
		u.keys = map[string]Key{}
	}
	u.keys[string(wrapped)] = key
}

// slotBody is what the age file of a key slot holds. Part of the on-disk
// format: fields are only added.
type slotBody struct {
	Version   int    `json:"version"`
	Kind      Kind   `json:"kind,omitempty"` // none: made before there were kinds
	ChunkID   []byte `json:"chunk_id_key,omitempty"`
	Structure []byte `json:"structure_key"`
	Recipient string `json:"content_recipient,omitempty"`
	Identity  string `json:"content_identity,omitempty"`
}

// Marshal gives the keys as the body of a key slot, unprotected.
func (k *Keyring) Marshal() []byte {
	s := slotBody{Version: 1, Kind: k.kind, Structure: k.Structure[:]}
	if k.HasChunkID() {
		s.ChunkID = k.ChunkID[:]
	}
	if k.recipient != nil {
		s.Recipient = k.recipient.String()
	}
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
	k := &Keyring{kind: s.Kind}
	var err error
	if s.Recipient != "" {
		if k.recipient, err = age.ParseX25519Recipient(s.Recipient); err != nil {
			return nil, errors.New("key slot: the content recipient cannot be parsed")
		}
	}
	if s.Identity != "" {
		if k.identity, err = age.ParseX25519Identity(s.Identity); err != nil {
			return nil, errors.New("key slot: the content identity cannot be parsed")
		}
	}
	if k.kind == "" {
		if k.kind = KindWrite; k.identity != nil {
			k.kind = KindAll
		}
	}
	if err := k.complete(s); err != nil {
		return nil, err
	}
	return k, nil
}

// complete takes the symmetric keys and holds what is there against the kind.
func (k *Keyring) complete(s slotBody) error {
	if _, err := ParseKind(string(k.kind)); err != nil {
		return fmt.Errorf("key slot: %w: use a newer cairn", err)
	}
	if len(s.Structure) != KeySize || k.HasChunkID() && len(s.ChunkID) != KeySize {
		return errors.New("key slot: keys of the wrong length")
	}
	k.Structure = Key(s.Structure)
	if k.HasChunkID() {
		k.ChunkID = Key(s.ChunkID)
	}
	reads := k.kind == KindAll || k.kind == KindRestore
	if (k.identity != nil) != reads || (k.recipient != nil) != k.HasChunkID() {
		return fmt.Errorf("key slot: it does not hold what a key of kind %s needs", k.kind)
	}
	return nil
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
