package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/seal"
)

// slotIDSize is the length of a key slot's ID in bytes; its object is
// keys/<hexadecimal ID>. Part of the on-disk format.
const slotIDSize = 8

// RecoveryLabel is the label of the slots of recovery keys.
const RecoveryLabel = "recovery key"

// Errors of key slots.
var (
	// ErrNoSlot: no key slot has that ID, or several begin with it.
	ErrNoSlot = errors.New("no such key")
	// ErrUnprotected: the repository has no secrets.
	ErrUnprotected = errors.New("the repository is not encrypted: its keys lie open in it, and none can be added or removed")
)

// KeySlot is a stored key slot.
type KeySlot struct {
	ID string
	// Slot is nil when Err says why it cannot be read.
	*seal.Slot
	Err    error
	Stored time.Time // by the place's clock
}

func (s KeySlot) name() string { return keysPrefix + s.ID }

// Check says whether the slot is what was written; of a bare one nothing is
// known.
func (s KeySlot) Check(keys *seal.Keyring) error {
	if s.Err != nil {
		return s.Err
	}
	return s.Slot.Check(s.name(), keys)
}

// KeySlots gives all key slots, by ID. One that is damaged does not hide the
// others. It needs no key.
func KeySlots(ctx context.Context, b backend.Backend) ([]KeySlot, error) {
	var list []KeySlot
	err := b.List(ctx, keysPrefix, func(o backend.Object) error {
		if len(list) == maxSlots {
			return fmt.Errorf("more than %d key slots", maxSlots)
		}
		list = append(list, KeySlot{ID: strings.TrimPrefix(o.Name, keysPrefix), Stored: o.Modified})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list key slots: %w", err)
	}
	present := list[:0]
	for _, s := range list {
		body, err := backend.Get(ctx, b, s.name(), seal.MaxSlot)
		if errors.Is(err, backend.ErrNotExist) {
			continue // removed meanwhile
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil {
			s.Slot, err = seal.ParseSlot(body)
		}
		if err != nil {
			s.Err = fmt.Errorf("key slot %s: %w", s.ID, err)
		}
		present = append(present, s)
	}
	return present, nil
}

// Unlock opens the repository's keys with a secret; seal.ErrWrongSecret when
// no slot opens. The secret is not asked of an unprotected repository.
func Unlock(ctx context.Context, b backend.Backend, c *Config, secret string) (*seal.Keyring, error) {
	if c.Protection == ProtectionNone {
		return openKeys(ctx, b)
	}
	list, err := KeySlots(ctx, b)
	if err != nil {
		return nil, err
	}
	keys, _, err := UnlockSlots(list, secret)
	return keys, err
}

// UnlockSlots opens the first slot that the secret opens, and gives its ID.
func UnlockSlots(list []KeySlot, secret string) (*seal.Keyring, string, error) {
	var damaged []error
	for _, s := range list {
		if s.Err != nil {
			damaged = append(damaged, s.Err)
			continue
		}
		keys, err := s.Open(secret)
		if err == nil {
			return keys, s.ID, nil
		}
		if !errors.Is(err, seal.ErrWrongSecret) {
			return nil, "", err
		}
	}
	if len(list) == 0 {
		return nil, "", errors.New("the repository has no key slot: without one nothing in it can be read; restore the keys/ folder from a copy")
	}
	err := fmt.Errorf("%w: it opens none of the %s; list them with: cairn key ls", seal.ErrWrongSecret, countSlots(list))
	return nil, "", errors.Join(append([]error{err}, damaged...)...)
}

// countSlots says how slots open: whoever has the wrong kind of secret sees it.
func countSlots(list []KeySlot) string {
	n := map[seal.Method]int{}
	for _, s := range list {
		if s.Err == nil {
			n[s.Info.Opens]++
		}
	}
	var parts []string
	for _, m := range []seal.Method{seal.MethodPassphrase, seal.MethodAge, seal.MethodSSH} {
		if n[m] > 0 {
			parts = append(parts, fmt.Sprintf("%d with %s", n[m], m.Words()))
		}
	}
	text := fmt.Sprintf("%d keys", len(list))
	if len(parts) > 0 {
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	return text
}

// openKeys reads the keys of an unprotected repository.
func openKeys(ctx context.Context, b backend.Backend) (*seal.Keyring, error) {
	name := ""
	err := b.List(ctx, keysPrefix, func(o backend.Object) error {
		if name == "" {
			name = o.Name
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list key slots: %w", err)
	}
	if name == "" {
		return nil, errors.New("the repository has no key slot: without one nothing in it can be read; restore the keys/ folder from a copy")
	}
	body, err := backend.Get(ctx, b, name, seal.MaxSlot)
	if err != nil {
		return nil, fmt.Errorf("read key slot: %w", err)
	}
	return seal.Unmarshal(body)
}

// NewSlot says what key slot to add.
type NewSlot struct {
	Kind  seal.Kind
	Label string
	For   seal.Recipient
	Now   time.Time
}

// AddSlot stores the keys that a kind needs for a recipient, reads the slot
// back, and gives its ID. Data is not touched: it is the same keys.
func AddSlot(ctx context.Context, b backend.Backend, keys *seal.Keyring, n NewSlot) (string, error) {
	id := randomHex(slotIDSize)
	name := keysPrefix + id
	body, err := keys.NewSlot(name, n.Kind, n.Label, n.For, n.Now)
	if err != nil {
		return "", err
	}
	if err := b.Put(ctx, name, body); err != nil {
		return "", fmt.Errorf("store key slot: %w", err)
	}
	back, err := backend.Get(ctx, b, name, seal.MaxSlot)
	if err == nil && !bytes.Equal(back, body) {
		err = seal.ErrSlot
	}
	if err != nil {
		return "", fmt.Errorf("read key slot %s back: %w", id, err)
	}
	return id, nil
}

// addFirstSlots adds the slots of a repository that is being made, all with all
// keys, and gives their IDs.
func addFirstSlots(ctx context.Context, b backend.Backend, keys *seal.Keyring, o InitOptions) (ids []string, err error) {
	add := func(secret, label string) error {
		to, err := seal.For(secret)
		if err != nil {
			return err
		}
		id, err := AddSlot(ctx, b, keys, NewSlot{Kind: seal.KindAll, Label: label, For: to, Now: o.Now()})
		ids = append(ids, id)
		return err
	}
	for _, secret := range o.Secrets {
		if err := add(secret, ""); err != nil {
			return nil, err
		}
	}
	if o.Recovery != "" {
		err = add(o.Recovery, RecoveryLabel)
	} else if len(ids) == 0 {
		ids = []string{randomHex(slotIDSize)}
		err = b.Put(ctx, keysPrefix+ids[0], keys.Marshal())
	}
	return ids, err
}

// RemoveSlot removes a slot. Who has opened it still has the keys.
func RemoveSlot(ctx context.Context, b backend.Backend, id string) error {
	if err := b.Delete(ctx, keysPrefix+id); err != nil {
		return fmt.Errorf("remove key slot %s: %w", id, err)
	}
	return nil
}

// FindSlot gives the slot whose ID begins with prefix; ErrNoSlot.
func FindSlot(list []KeySlot, prefix string) (KeySlot, error) {
	var found []KeySlot
	for _, s := range list {
		if prefix != "" && strings.HasPrefix(s.ID, prefix) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return KeySlot{}, fmt.Errorf("%w: none has an ID that begins with %q", ErrNoSlot, prefix)
	case 1:
		return found[0], nil
	}
	return KeySlot{}, fmt.Errorf("%w: the IDs of %d begin with %q", ErrNoSlot, len(found), prefix)
}

// KeyKind is the kind of key that the store was opened with.
func (s *Store) KeyKind() seal.Kind { return s.keys.Kind() }

// MayRead is nil if the store's keys may read guest data; seal.ErrNoContentKey.
func (s *Store) MayRead() error { return s.keys.MayRead() }

// MayBackUp is nil if the store's keys may store guest data;
// seal.ErrNoBackupKey.
func (s *Store) MayBackUp() error { return s.keys.MayBackUp() }
