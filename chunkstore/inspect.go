package chunkstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/engine"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// PackSize is a stored pack and its size in bytes.
type PackSize struct {
	Ref  PackRef
	Size int64
}

// Objects is what a listing of a place shows. It needs no key.
type Objects struct {
	Packs   []PackSize // in the order of their names
	Records []string   // intents, commits, and what gc and forget keep
	Keys    []string   // key slots
	Config  bool
	Unknown []string // of no cairn of this format; at most 1000
}

// recordPrefixes are the folders that hold nothing but records.
var recordPrefixes = []string{intentsPrefix, pointsPrefix, dropsPrefix, pinsPrefix, gcPrefix, forwardsPrefix, collectorsPrefix}

// plainPrefixes are the folders whose objects are no records: signs of life, and
// what packages spread and engine keep for themselves.
var plainPrefixes = []string{beatsPrefix, repairPrefix, placesPrefix, engine.Prefix}

// ListObjects sorts all objects of a place by their names.
func ListObjects(ctx context.Context, b backend.Backend) (*Objects, error) {
	o := new(Objects)
	err := b.List(ctx, "", func(obj backend.Object) error {
		if ref, err := parsePackName(obj.Name); err == nil && strings.HasPrefix(obj.Name, packsPrefix) {
			o.Packs = append(o.Packs, PackSize{ref, obj.Size})
			return nil
		}
		switch {
		case obj.Name == configName:
			o.Config = true
			return nil
		case strings.HasPrefix(obj.Name, keysPrefix):
			o.Keys = append(o.Keys, obj.Name)
			return nil
		case obj.Name == placeName:
			return nil
		}
		for _, p := range plainPrefixes {
			if strings.HasPrefix(obj.Name, p) {
				return nil
			}
		}
		for _, p := range recordPrefixes {
			if strings.HasPrefix(obj.Name, p) {
				o.Records = append(o.Records, obj.Name)
				return nil
			}
		}
		if len(o.Unknown) < maxUnknown {
			o.Unknown = append(o.Unknown, obj.Name)
		}
		return nil
	})
	return o, err
}

const maxUnknown = 1000

// Objects is ListObjects of the repository's place.
func (s *Store) Objects(ctx context.Context) (*Objects, error) { return ListObjects(ctx, s.place) }

// Sessions gives, by session, whether a listing has its intent, its decision
// and a drop of its point.
func (o *Objects) Sessions() map[SessionID]SessionObjects {
	out := map[SessionID]SessionObjects{}
	for _, name := range o.Records {
		for i, p := range []string{intentsPrefix, pointsPrefix, dropsPrefix} {
			rest, ok := strings.CutPrefix(name, p)
			if !ok {
				continue
			}
			id, err := ParseSessionID(rest)
			if err != nil {
				continue
			}
			s := out[id]
			switch i {
			case 0:
				s.Intent = true
			case 1:
				s.Decision = true
			default:
				s.Drop = true
			}
			out[id] = s
		}
	}
	return out
}

// SessionObjects says which objects of a session there are.
type SessionObjects struct{ Intent, Decision, Drop bool }

// IntentObject and DecisionObject give the names of a session's objects.
func IntentObject(id SessionID) string { return intentsPrefix + id.String() }

// DecisionObject is where a session's commit lies.
func DecisionObject(id SessionID) string { return pointsPrefix + id.String() }

// VerifyRecord reads a record and opens its seal, which covers every byte of
// it and its name. The error is a *Fault, or ctx's.
func (s *Store) VerifyRecord(ctx context.Context, name string) error {
	b, err := backend.Get(ctx, s.place, name, maxRecord)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = s.verifyRecord(name, b)
	}
	if err != nil {
		return FaultOf(name, err)
	}
	return nil
}

func (s *Store) verifyRecord(name string, b []byte) error {
	if len(b) < recordHeader+16 {
		return fmt.Errorf("%s: %w: %w: a record of %d bytes", name, pack.ErrCorrupt, pack.ErrShort, len(b))
	}
	_, _, err := s.openRecord(name, b)
	if err != nil && !pack.IsDamage(err) { // a version that is not known: of a flipped bit, or of a newer cairn
		err = fmt.Errorf("%w: %w", pack.ErrCorrupt, err)
	}
	return err
}

// VerifyPlain looks at an object that is no pack as far as that is possible
// without a key: the configuration against its sum, of records and key slots
// only that they begin as such do. The error is a *Fault, or ctx's.
func VerifyPlain(ctx context.Context, b backend.Backend, name string) error {
	body, err := backend.Get(ctx, b, name, maxRecord)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		switch {
		case name == configName:
			err = verifyConfig(body)
		case strings.HasPrefix(name, keysPrefix):
			err = looksLikeSlot(body)
		case len(body) < recordHeader+16:
			err = fmt.Errorf("%w: %w: a record of %d bytes", pack.ErrCorrupt, pack.ErrShort, len(body))
		case string(body[:len(recordMagic)]) != recordMagic || body[10] != 0 || body[11] != 0:
			err = fmt.Errorf("%w: not a record", pack.ErrCorrupt)
		}
	}
	if err != nil {
		return FaultOf(name, fmt.Errorf("%s: %w", name, err))
	}
	return nil
}

// looksLikeSlot: an age file, or the keys in the clear, written as they are
// written. What is in an age file only its secret proves.
func looksLikeSlot(b []byte) error {
	if len(b) > seal.MaxSlot {
		return fmt.Errorf("%w: a key slot of %d bytes", pack.ErrCorrupt, len(b))
	}
	if bytes.HasPrefix(b, []byte("{")) {
		if k, err := seal.Unmarshal(b); err != nil || !bytes.Equal(k.Marshal(), b) {
			return fmt.Errorf("%w: a key slot in the clear", pack.ErrCorrupt)
		}
		return nil
	}
	if _, err := seal.ParseSlot(b); err != nil {
		return fmt.Errorf("%w: %w", pack.ErrCorrupt, err)
	}
	return nil
}

// VerifyConfig holds the repository's configuration against its sum. It needs
// no key.
func (s *Store) VerifyConfig(ctx context.Context) error { return VerifyPlain(ctx, s.place, configName) }

// VerifyKeySlot holds a key slot against the MAC that all have who opened one.
// The error is a *Fault, or ctx's.
func (s *Store) VerifyKeySlot(ctx context.Context, name string) error {
	if err := VerifyPlain(ctx, s.place, name); err != nil || s.Config.Protection == ProtectionNone {
		return err
	}
	b, err := backend.Get(ctx, s.place, name, seal.MaxSlot)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		var slot *seal.Slot
		if slot, err = seal.ParseSlot(b); err == nil {
			err = slot.Check(name, s.keys)
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", pack.ErrCorrupt, err)
		}
	}
	if err != nil {
		return FaultOf(name, fmt.Errorf("%s: %w", name, err))
	}
	return nil
}

// blankSum is in the place of a configuration's sum while it is computed.
var blankSum = strings.Repeat("0", 64)

// encodeConfig gives the object: JSON, with the sum of all of it. Part of the
// on-disk format.
func encodeConfig(c Config) ([]byte, error) {
	c.Sum = blankSum
	body, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, err
	}
	return bytes.Replace(body, []byte(blankSum), fmt.Appendf(nil, "%x", blake3.Sum256(body)), 1), nil
}

// verifyConfig holds a configuration against its sum. One that has none was
// made before there were sums: then at least nothing may be in it that such a
// cairn did not write.
func verifyConfig(body []byte) error {
	var c Config
	if err := json.Unmarshal(body, &c); err != nil {
		return fmt.Errorf("%w: %w", pack.ErrCorrupt, err)
	}
	if c.Sum == "" {
		if plain, err := json.MarshalIndent(c, "", "  "); err != nil || !bytes.Equal(plain, body) {
			return fmt.Errorf("%w: it has no sum, and is not as a cairn wrote it before there were sums", pack.ErrCorrupt)
		}
		return nil
	}
	blank := bytes.Replace(body, []byte(c.Sum), []byte(blankSum), 1)
	if fmt.Sprintf("%x", blake3.Sum256(blank)) != c.Sum {
		return fmt.Errorf("%w: it is not what its sum says", pack.ErrCorrupt)
	}
	return nil
}

// ErrNotProven: an object is not known to be bad, so nothing is put in its
// place.
var ErrNotProven = errors.New("the object is not known to be damaged")

// Good says whether bytes are those of an object, as far as these keys and
// its name prove it; without keys only a pack's are ever good.
func (s *Store) good(name string, b []byte) bool {
	if ref, err := parsePackName(name); err == nil {
		return pack.Verify(b, ref.Hash) == nil
	}
	for _, p := range recordPrefixes {
		if strings.HasPrefix(name, p) {
			return s.verifyRecord(name, b) == nil
		}
	}
	return name == configName && verifyConfig(b) == nil
}

// Limit of the objects of a name, in bytes.
func sizeLimit(name string) int64 {
	if strings.HasPrefix(name, packsPrefix) {
		return pack.MaxSize
	}
	return maxRecord
}

// Replace puts good bytes in the place of an object that is missing, or whose
// stored bytes are bad: it looks at both itself. The bad object is deleted
// first, as no name is ever written over: a crash in between leaves it
// missing, never wrong, and when the new one cannot be stored the old bytes
// are put back, of which a part may be readable. What was not missing when it
// was found to be bad and is gone now was collected: it is not made again.
func (s *Store) Replace(ctx context.Context, name string, good []byte, missing bool) error {
	if !s.good(name, good) {
		return fmt.Errorf("%s: %w: what was to be put in its place is not it", name, pack.ErrCorrupt)
	}
	old, err := backend.Get(ctx, s.place, name, sizeLimit(name))
	switch {
	case errors.Is(err, backend.ErrNotExist) && !missing:
		return fmt.Errorf("%s: %w: it is gone since it was read; check again", name, ErrNotProven)
	case errors.Is(err, backend.ErrNotExist):
		if err := s.place.Put(ctx, name, good); err != nil && !errors.Is(err, backend.ErrExist) {
			return err
		}
		return s.stored(ctx, name)
	case err != nil:
		return fmt.Errorf("%s: %w: %w", name, ErrNotProven, err)
	case s.good(name, old):
		return fmt.Errorf("%s: %w: read again, it is whole; look at the disk's and the memory's health", name, ErrNotProven)
	}
	// From here on an end of the caller's patience would leave it missing.
	ctx = context.WithoutCancel(ctx)
	if err := s.place.Delete(ctx, name); err != nil {
		if _, there := s.place.Size(ctx, name); !errors.Is(there, backend.ErrNotExist) {
			return err
		} // else only the answer was lost
	}
	if err := s.place.Put(ctx, name, good); err != nil {
		return errors.Join(err, s.place.Put(ctx, name, old))
	}
	return s.stored(ctx, name)
}

// stored reads back what was put.
func (s *Store) stored(ctx context.Context, name string) error {
	b, err := backend.Get(ctx, s.place, name, sizeLimit(name))
	if err == nil && !s.good(name, b) {
		err = fmt.Errorf("%s: %w again when it was read back: the place cannot be trusted", name, pack.ErrCorrupt)
	}
	return err
}

// ReadGood gives an object of another place that these keys, or its name,
// prove to be the one of that name.
func (s *Store) ReadGood(ctx context.Context, from backend.Backend, name string) ([]byte, error) {
	b, err := backend.Get(ctx, from, name, sizeLimit(name))
	if err == nil && !s.good(name, b) {
		err = fmt.Errorf("%s: %w there, too", name, pack.ErrCorrupt)
	}
	return b, err
}

// Repairer is a place that can make a pack good again by itself, from parity
// or from another of its copies.
type Repairer interface {
	RepairPack(ctx context.Context, name string) error
}

// RepairPack lets the place make a pack good from its own redundancy; done is
// false when it has none.
func (s *Store) RepairPack(ctx context.Context, ref PackRef) (done bool, err error) {
	r, ok := s.place.(Repairer)
	if !ok {
		return false, nil
	}
	if err := r.RepairPack(ctx, packName(ref)); err != nil {
		return false, err
	}
	_, err = VerifyPack(ctx, s.place, ref)
	return err == nil, err
}
