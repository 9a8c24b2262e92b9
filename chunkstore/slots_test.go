package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// withKind adds a key of a kind and gives its ID, its secret, and a store that
// it opens.
func withKind(t *testing.T, s *Store, kind seal.Kind) (id, secret string, opened *Store) {
	t.Helper()
	ctx := context.Background()
	secret, err := seal.NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	to, err := seal.For(secret)
	if err != nil {
		t.Fatal(err)
	}
	if id, err = AddSlot(ctx, s.place, s.keys, NewSlot{Kind: kind, Label: "a " + string(kind), For: to, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	keys, err := Unlock(ctx, s.place, s.Config, secret)
	if err != nil {
		t.Fatal(err)
	}
	return id, secret, NewStore(s.place, s.Config, keys)
}

// Slots come and go without anything else in the place being touched; the
// others go on opening.
func TestKeySlotsComeAndGo(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	if _, _, _, err := save(ctx, s, newMemIndex(), image(1, 64), nil); err != nil {
		t.Fatal(err)
	}
	before := objects(t, m, "")
	ids := map[seal.Kind]string{}
	secrets := map[seal.Kind]string{}
	for _, kind := range seal.Kinds() {
		ids[kind], secrets[kind], _ = withKind(t, s, kind)
	}
	list, err := KeySlots(ctx, m)
	if err != nil || len(list) != 5 {
		t.Fatalf("%d slots, %v", len(list), err)
	}
	for kind, id := range ids {
		slot, err := FindSlot(list, id[:8])
		if err != nil || slot.Info.Kind != kind || slot.Info.Label != "a "+string(kind) || slot.Check(s.keys) != nil {
			t.Errorf("%s: %+v, %v", kind, slot.Info, err)
		}
	}
	if _, err := FindSlot(list, "nothing"); !errors.Is(err, ErrNoSlot) {
		t.Error(err)
	}
	if _, err := FindSlot(list, ""); !errors.Is(err, ErrNoSlot) {
		t.Error(err)
	}
	if err := RemoveSlot(ctx, m, ids[seal.KindWrite]); err != nil {
		t.Fatal(err)
	}
	if _, err := Unlock(ctx, m, s.Config, secrets[seal.KindWrite]); !errors.Is(err, seal.ErrWrongSecret) {
		t.Errorf("a removed slot: %v", err)
	}
	for _, secret := range []string{testSecret, secrets[seal.KindRestore]} {
		if _, err := Unlock(ctx, m, s.Config, secret); err != nil {
			t.Error(err)
		}
	}
	after := slices.DeleteFunc(objects(t, m, ""), func(name string) bool {
		return slices.ContainsFunc([]seal.Kind{seal.KindRestore, seal.KindHousekeeping, seal.KindAll}, func(k seal.Kind) bool { return name == keysPrefix+ids[k] })
	})
	if !slices.Equal(before, after) {
		t.Errorf("objects before %q, after %q", before, after)
	}
}

func objects(t *testing.T, b backend.Backend, prefix string) (names []string) {
	t.Helper()
	err := b.List(context.Background(), prefix, func(o backend.Object) error {
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A damaged slot is told of, and does not keep the others from opening.
func TestDamagedKeySlot(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	first := objects(t, m, keysPrefix)[0]
	_, secret, _ := withKind(t, s, seal.KindAll)
	m.Damage(first, func(b []byte) []byte { return b[:40] })
	if _, err := Unlock(ctx, m, s.Config, secret); err != nil {
		t.Error(err)
	}
	if _, err := Unlock(ctx, m, s.Config, testSecret); !errors.Is(err, seal.ErrWrongSecret) || !errors.Is(err, seal.ErrSlot) || !strings.Contains(err.Error(), strings.TrimPrefix(first, keysPrefix)) {
		t.Errorf("the damaged slot is not named: %v", err)
	}
	// A label that was changed costs nothing but its trust.
	second := slices.DeleteFunc(objects(t, m, keysPrefix), func(n string) bool { return n == first })[0]
	m.Damage(second, func(b []byte) []byte { return bytes.Replace(b, []byte("a all"), []byte("a foe"), 1) })
	list, err := KeySlots(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	keys, id, err := UnlockSlots(list, secret)
	if err != nil || keysPrefix+id != second {
		t.Fatal(err)
	}
	slot, err := FindSlot(list, id)
	if err != nil || slot.Info.Label != "a foe" || !errors.Is(slot.Check(keys), seal.ErrSlotInfo) {
		t.Errorf("a changed label: %v", slot.Check(keys))
	}
}

// A hostile place that shows slots without end is left.
func TestTooManyKeySlots(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	for range maxSlots {
		if err := m.Put(ctx, keysPrefix+randomHex(slotIDSize), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Unlock(ctx, m, s.Config, testSecret); err == nil {
		t.Error("more slots than there can be were taken")
	}
}

// An init that lost a race leaves no slot that opens to other roots.
func TestInitThatLostLeavesNoSlot(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	late := lateConfig{m}
	if _, err := Init(ctx, late, InitOptions{Secrets: []string{testSecret}, Recovery: "another", Now: time.Now}); !errors.Is(err, ErrRepositoryExists) {
		t.Fatal(err)
	}
	if got := objects(t, m, keysPrefix); len(got) != 1 {
		t.Errorf("slots %q", got)
	}
	if keys, err := Unlock(ctx, m, s.Config, testSecret); err != nil || keys.Structure != s.keys.Structure {
		t.Errorf("unlock: %v", err)
	}
}

// lateConfig does not show the config that somebody has just stored.
type lateConfig struct{ backend.Backend }

func (l lateConfig) Size(ctx context.Context, name string) (int64, error) {
	if name == configName {
		return 0, backend.ErrNotExist
	}
	return l.Backend.Size(ctx, name)
}

// Goal: with each kind of key the store does what that kind is for, and the
// rest ends in its typed error before anything is stored.
func TestStoreWithEachKindOfKey(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	all := newStore(t, m)
	img := image(1, 600)
	places, session, _, err := save(ctx, all, newMemIndex(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range seal.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			_, _, s := withKind(t, all, kind)
			reads := kind == seal.KindAll || kind == seal.KindRestore
			writes := kind == seal.KindAll || kind == seal.KindWrite
			if s.IndexKey() != all.IndexKey() {
				t.Error("another index key")
			}
			whatNeedsStructureOnly(t, s, places, session)
			if reads {
				check(t, s, img, places)
			} else {
				ref := slices.IndexFunc(places, func(p place) bool { return p != place{} })
				if err := s.NewReader(1<<20).ReadChunks(ctx, places[ref].ref, places[ref].n, make([]byte, 4096)); !errors.Is(err, seal.ErrNoContentKey) {
					t.Errorf("read: %v", err)
				}
			}
			before := len(objects(t, m, ""))
			changed := slices.Clone(img)
			copy(changed[300*4096:], "changed by a "+string(kind))
			_, _, st, err := save(ctx, s, newMemIndex(), changed, places)
			switch {
			case writes && (err != nil || st.ChunksNew != 1):
				t.Errorf("an incremental save: %+v, %v", st, err)
			case !writes && (!errors.Is(err, seal.ErrNoBackupKey) || len(objects(t, m, "")) != before):
				t.Errorf("save: %v", err)
			}
		})
	}
}

// Goal: a stolen write or housekeeping key opens no guest byte, whatever the
// program. Method: take all that its slot holds, and all that the place holds,
// and look for the content identity; try to unwrap every pack's key.
func TestStolenKeyReadsNothing(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	all := newStore(t, m)
	if _, _, _, err := save(ctx, all, newMemIndex(), image(1, 600), nil); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []seal.Kind{seal.KindWrite, seal.KindHousekeeping} {
		_, _, s := withKind(t, all, kind)
		if bytes.Contains(s.keys.Marshal(), []byte("AGE-SECRET-KEY")) || bytes.Contains(s.keys.Marshal(), []byte("identity")) {
			t.Errorf("a %s key holds an identity", kind)
		}
		err := s.Packs(ctx, func(ref PackRef, _ int64) error {
			f, err := s.ReadFooter(ctx, ref)
			if err != nil || f.Kind != pack.KindData {
				return err
			}
			b, err := s.ReadPack(ctx, ref)
			if err != nil {
				return err
			}
			for i, fr := range f.Frames {
				if _, err := f.OpenFrame(nil, s.keys, i, b[fr.Offset:fr.Offset+int64(fr.Stored)]); !errors.Is(err, seal.ErrNoContentKey) {
					t.Errorf("a %s key opens frame %d: %v", kind, i, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// whatNeedsStructureOnly does what every kind of key can do.
func whatNeedsStructureOnly(t *testing.T, s *Store, places []place, session SessionID) {
	t.Helper()
	ctx := context.Background()
	v, r := s.NewVerifier(), s.NewReader(1<<20)
	err := s.Packs(ctx, func(ref PackRef, size int64) error {
		if n, err := v.Pack(ctx, ref); err != nil || n != size {
			t.Errorf("verify: %d of %d bytes, %v", n, size, err)
		}
		f, err := s.ReadFooter(ctx, ref)
		if err != nil {
			return err
		}
		if n, _, err := s.PackCount(ctx, ref); err != nil || n != f.Count {
			t.Errorf("count: %v", err)
		}
		if f.Kind == pack.KindData {
			_, err = s.ChunkIDs(ctx, ref)
		} else {
			_, err = r.ReadRecord(ctx, ref, 0)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := s.ReadCommit(ctx, session); err != nil {
		t.Error(err)
	}
	name := "drops/" + session.String()
	if sealed, err := s.sealRecord(name, 5, []byte("forgotten")); err != nil {
		t.Error(err)
	} else if _, _, err := s.openRecord(name, sealed); err != nil {
		t.Error(err)
	}
	// A damaged data pack is found by its stored bytes, without its key.
	for _, p := range places {
		if p == (place{}) {
			continue
		}
		m := mem.New()
		b, err := s.ReadPack(ctx, p.ref)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := m.Put(ctx, packName(p.ref), b); err != nil {
			t.Fatal(err)
		}
		if _, err := NewStore(m, s.Config, s.keys).NewVerifier().Pack(ctx, p.ref); !pack.IsDamage(err) {
			t.Errorf("a flipped bit: %v", err)
		}
		return
	}
}

// Chunk IDs under a key that is not there would be wrong in silence.
func TestNoChunkKeyIsAnInternalError(t *testing.T) {
	s := newStore(t, mem.New())
	_, _, house := withKind(t, s, seal.KindHousekeeping)
	defer func() {
		if recover() == nil {
			t.Error("a key of zeros was given out")
		}
	}()
	house.ChunkKey()
}
