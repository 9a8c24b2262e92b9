package chunkstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

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
	Packs   *PackList
	Partial *PackList // of Packs: too little of them is there to be read
	Records []string  // intents, commits, and what gc and forget keep
	Keys    []string  // key slots
	Config  bool
	Unknown []string // of no cairn of this format; at most 1000
}

// recordPrefixes are the folders that hold nothing but records.
var recordPrefixes = []string{intentsPrefix, pointsPrefix, dropsPrefix, pinsPrefix, gcPrefix, forwardsPrefix, collectorsPrefix, hostsPrefix, revokedPrefix, refillsPrefix}

// plainPrefixes are the folders whose objects are no records: signs of life, and
// what packages spread and engine keep for themselves.
var plainPrefixes = []string{beatsPrefix, repairPrefix, placesPrefix, engine.Prefix}

// ListObjects sorts all objects of a place by their names.
func ListObjects(ctx context.Context, b backend.Backend) (*Objects, error) {
	o := &Objects{Packs: new(PackList), Partial: new(PackList)}
	err := b.List(ctx, "", func(obj backend.Object) error {
		if ref, err := parsePackName(obj.Name); err == nil && strings.HasPrefix(obj.Name, packsPrefix) {
			o.Packs.Add(ref, obj.Size)
			if obj.Partial {
				o.Partial.Add(ref, obj.Size)
			}
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
		if _, ok := mendedOf(obj.Name); ok {
			return nil // looked at with what it is a copy of
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
	return s.verifyCopies(ctx, name, func(b []byte) error { return s.verifyRecord(name, b) })
}

// verifyCopies looks at an object, and at the copy that a repair put beside it
// if it is bad.
func (s *Store) verifyCopies(ctx context.Context, name string, verify func([]byte) error) error {
	at := func(name string) error {
		b, err := backend.Get(ctx, s.place, name, maxRecord)
		if err == nil {
			err = verify(b)
		}
		return err
	}
	err := at(name)
	if err != nil && !errors.Is(err, backend.ErrNotExist) && at(mendedPrefix+name) == nil {
		err = nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
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
// without a key (VerifyControl). The error is a *Fault, or ctx's.
func VerifyPlain(ctx context.Context, b backend.Backend, name string) error {
	body, err := backend.Get(ctx, b, name, maxRecord)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = VerifyControl(name, body)
	}
	if err != nil {
		return FaultOf(name, fmt.Errorf("%s: %w", name, err))
	}
	return nil
}

// VerifyControl says why bytes are not those of the object of that name, which
// is no pack, as far as they tell without a key: the configuration is held
// against its sum; of records and key slots only that they begin as such do; a
// sign of life is empty. nil: nothing is known. The error is pack.ErrCorrupt.
func VerifyControl(name string, body []byte) error {
	if of, ok := mendedOf(name); ok {
		name = of
	}
	switch {
	case name == configName:
		return verifyConfig(body)
	case strings.HasPrefix(name, keysPrefix):
		return looksLikeSlot(body)
	case isRecord(name):
		return looksLikeRecord(body)
	case strings.HasPrefix(name, beatsPrefix) && len(body) > 0:
		return fmt.Errorf("%w: a sign of life with %d bytes", pack.ErrCorrupt, len(body))
	}
	return nil
}

// VerifyControl is VerifyControl for whoever has the structure key, as every
// kind of key has: of a record it opens the seal, which covers every byte and
// the name; of a key slot it checks the MAC, if it has one. What it cannot
// tell: whether the object is the newest, or the one that was decided, of those
// that holders of the key have ever sealed for that name.
func (s *Store) VerifyControl(name string, body []byte) error {
	if err := VerifyControl(name, body); err != nil {
		return err
	}
	if of, ok := mendedOf(name); ok {
		name = of
	}
	switch {
	case isRecord(name):
		return s.verifyRecord(name, body)
	case strings.HasPrefix(name, keysPrefix):
		return s.verifySlot(name, body)
	}
	return nil
}

// mendedOf gives the name of the object whose good copy a repair put under a
// name.
func mendedOf(name string) (of string, ok bool) {
	of, ok = strings.CutPrefix(name, mendedPrefix)
	return of, ok && (isRecord(of) || of == configName)
}

func looksLikeRecord(b []byte) error {
	switch {
	case len(b) < recordHeader+seal.Overhead:
		return fmt.Errorf("%w: %w: a record of %d bytes", pack.ErrCorrupt, pack.ErrShort, len(b))
	case string(b[:len(recordMagic)]) != recordMagic || b[10] != 0 || b[11] != 0:
		return fmt.Errorf("%w: not a record", pack.ErrCorrupt)
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
func (s *Store) VerifyConfig(ctx context.Context) error {
	return s.verifyCopies(ctx, configName, func(b []byte) error {
		if err := verifyConfig(b); err != nil {
			return fmt.Errorf("%s: %w", configName, err)
		}
		return nil
	})
}

// VerifyKeySlot holds a key slot against the MAC that all have who opened one.
// The error is a *Fault, or ctx's.
func (s *Store) VerifyKeySlot(ctx context.Context, name string) error {
	if err := VerifyPlain(ctx, s.place, name); err != nil {
		return err
	}
	b, err := backend.Get(ctx, s.place, name, seal.MaxSlot)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = s.verifySlot(name, b)
	}
	if err != nil {
		return FaultOf(name, fmt.Errorf("%s: %w", name, err))
	}
	return nil
}

// verifySlot checks a slot's MAC; in the clear it has none.
func (s *Store) verifySlot(name string, b []byte) error {
	if s.Config.Protection == ProtectionNone {
		return nil
	}
	slot, err := seal.ParseSlot(b)
	if err == nil {
		err = slot.Check(name, s.keys)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", pack.ErrCorrupt, err)
	}
	return nil
}

// encodeConfig gives the object: JSON, with the sum of all of it. Part of the
// on-disk format.
func encodeConfig(c Config) ([]byte, error) {
	c.Sum = backend.BlankSum
	body, err := json.MarshalIndent(c, "", "  ")
	return backend.WithSum(body), err
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
	if !backend.SumHolds(body, c.Sum) {
		return fmt.Errorf("%w: it is not what its sum says", pack.ErrCorrupt)
	}
	return nil
}
