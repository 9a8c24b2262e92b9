package wire

import (
	"context"
	"fmt"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/seal"
)

// Keys is a repository's key slots.
type Keys struct {
	Config *chunkstore.Config
	Slots  []chunkstore.KeySlot
	// Opened is the ID of the slot that the secret opened; "": none was asked
	// for.
	Opened string

	ring  *seal.Keyring
	place Place
}

// ListKeys reads the key slots of the repository at path. It needs no secret.
func ListKeys(ctx context.Context, path string) (*Keys, error) {
	place, c, err := openPlace(ctx, path)
	if err != nil {
		return nil, err
	}
	k := &Keys{Config: c, place: place}
	if c.Protection == chunkstore.ProtectionNone {
		err = chunkstore.ErrUnprotected
	} else {
		err = k.read(ctx)
	}
	if err != nil {
		_ = place.Close() // only looked at
		return nil, fmt.Errorf("repository %s: %w", path, err)
	}
	return k, nil
}

func (k *Keys) read(ctx context.Context) (err error) {
	k.Slots, err = chunkstore.KeySlots(ctx, k.place)
	return err
}

// OpenKeys is ListKeys, with a slot opened by a secret. What the kernel
// remembers does not count here.
func OpenKeys(ctx context.Context, path string, secret Secret) (*Keys, error) {
	k, err := ListKeys(ctx, path)
	if err != nil {
		return nil, err
	}
	s, err := secret.Read("Passphrase of " + path + ": ")
	if err == nil {
		k.ring, k.Opened, err = chunkstore.UnlockSlots(k.Slots, s)
	}
	if err != nil {
		_ = k.Close() // only looked at
		return nil, fmt.Errorf("open repository %s: %w", path, err)
	}
	trust(k.place, chunkstore.NewStore(k.place, k.Config, k.ring))
	return k, nil
}

// Close gives the place back.
func (k *Keys) Close() error { return k.place.Close() }

// Kind is that of the slot that was opened.
func (k *Keys) Kind() seal.Kind { return k.ring.Kind() }

// MayManage is nil if the opened key may change slots; seal.ErrNoManageKey.
func (k *Keys) MayManage() error { return k.ring.MayManage() }

// Check says whether a slot is as it was written: seal.ErrSlotInfo, or why it
// cannot be read. It needs an opened slot.
func (k *Keys) Check(s chunkstore.KeySlot) error { return s.Check(k.ring) }

// KindOf gives a slot's kind as far as it is sure: "" where the slot is
// damaged, or bare and not the opened one.
func (k *Keys) KindOf(s chunkstore.KeySlot) seal.Kind {
	switch {
	case s.ID == k.Opened:
		return k.ring.Kind()
	case s.Err != nil || s.Bare || k.ring != nil && k.Check(s) != nil:
		return ""
	}
	return s.Info.Kind
}

// Taken gives the slot that a secret opens, or that is for a public key; ok
// says that there is one.
func (k *Keys) Taken(to seal.Recipient, secret string) (s chunkstore.KeySlot, ok bool) {
	for _, s := range k.Slots {
		if s.Err != nil {
			continue
		}
		if to.Fingerprint() != "" && s.Info.Fingerprint == to.Fingerprint() {
			return s, true
		}
		if secret == "" {
			continue
		}
		if _, err := s.Open(secret); err == nil {
			return s, true
		}
	}
	return s, false
}

// Add adds a slot and gives its ID.
func (k *Keys) Add(ctx context.Context, kind seal.Kind, label string, to seal.Recipient, now time.Time) (string, error) {
	return chunkstore.AddSlot(ctx, k.place, k.ring, chunkstore.NewSlot{Kind: kind, Label: label, For: to, Now: now})
}

// Remove removes a slot; its secret does not open what this host's kernel
// remembers either.
func (k *Keys) Remove(ctx context.Context, id string) error {
	seal.Forget(rememberedAs(k.Config))
	return chunkstore.RemoveSlot(ctx, k.place, id)
}

// ReadSecretFile reads a secret as --password-file does.
func ReadSecretFile(path string) (string, error) { return readSecretFile(path) }
