package chunkstore

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/pack"
)

// controlsOf gives every object of a place that is no pack, by name.
func controlsOf(t *testing.T, m *mem.Place) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range objects(t, m, "") {
		if strings.HasPrefix(name, packsPrefix) {
			continue
		}
		b, err := backend.Get(t.Context(), m, name, maxRecord)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = b
	}
	return out
}

// What VerifyControl tells of each kind of object: with a key every flipped bit
// of a record and of a key slot, and an object under another's name; without one
// those of the configuration. What was stored is never called damaged.
func TestVerifyControl(t *testing.T) {
	ctx := t.Context()
	m := mem.New()
	s := newStore(t, m)
	id := commitPoint(t, s)
	if err := s.Pin(ctx, id, note); err != nil {
		t.Fatal(err)
	}
	if err := s.Drop(ctx, commitPoint(t, s), note); err != nil {
		t.Fatal(err)
	}
	if err := s.removeNothing(ctx, 1); err != nil {
		t.Fatal(err)
	}
	all := controlsOf(t, m)
	for _, name := range []string{configName, DecisionObject(id)} {
		all[mendedPrefix+name] = all[name]
	}
	all["beats/"+id.String()+"/000001"] = nil
	all["engine/00000001"] = []byte("{}")
	kinds := map[string]int{}
	for name, body := range all {
		kind, _, _ := strings.Cut(name, "/")
		kinds[kind]++
		if err := VerifyControl(name, body); err != nil {
			t.Errorf("%s without a key: %v", name, err)
		}
		if err := s.VerifyControl(name, body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if kind == "engine" || kind == "beats" {
			continue
		}
		for at := range body {
			bad := bytes.Clone(body)
			bad[at] ^= 1 << (at % 8)
			if err := s.VerifyControl(name, bad); !pack.IsDamage(err) {
				t.Errorf("%s with byte %d changed: %v", name, at, err)
			}
			if err := VerifyControl(name, bad); strings.HasSuffix(name, configName) != (err != nil) && at >= recordHeader && kind != "keys" {
				t.Errorf("%s with byte %d changed, without a key: %v", name, at, err)
			}
		}
		for _, n := range []int{0, 1, len(body) / 2, len(body) - 1} {
			if err := s.VerifyControl(name, body[:n]); !pack.IsDamage(err) {
				t.Errorf("%s of %d bytes: %v", name, n, err)
			}
		}
		if name != configName && kind != "mended" {
			if err := s.VerifyControl(name+"0", body); !pack.IsDamage(err) {
				t.Errorf("%s under another name: %v", name, err)
			}
		}
	}
	if len(kinds) != 10 {
		t.Errorf("looked at %v", kinds)
	}
	if VerifyControl("beats/x/000001", []byte("x")) == nil {
		t.Error("a sign of life that holds something was taken")
	}
}

// Records of a repository of three places: a copy in which a bit flipped is not
// taken for the one that the third place misses, by readers and by repair.
func TestFlippedRecordIsNotCopied(t *testing.T) {
	ctx := t.Context()
	shards := spread.Shards{K: 2, M: 1}
	places := []*mem.Place{mem.New(), mem.New(), mem.New()}
	l := &spread.Layout{Repository: NewID(), Shards: shards}
	var members []spread.Member
	for i, p := range places {
		l.Places = append(l.Places, spread.NewPlace(fmt.Sprintf("/%d", i)))
		members = append(members, spread.Member{ID: l.Places[i].ID, Spec: l.Places[i].Spec, Place: p})
	}
	place, err := spread.New(members, shards, spread.Options{Strict: IsAbort, Verify: VerifyControl})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Init(ctx, place, InitOptions{Secrets: []string{testSecret}, Now: time.Now, Layout: l})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := Unlock(ctx, place, c, testSecret)
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(place, c, keys)
	place.VerifyWith(s.VerifyControl)
	id := commitPoint(t, s)
	if err := s.Pin(ctx, id, note); err != nil {
		t.Fatal(err)
	}
	good := controlsOf(t, places[0])
	for name, body := range good {
		for turn := range places {
			lies, misses := places[turn], places[(turn+1)%3]
			lies.Damage(name, func(b []byte) []byte { b[len(b)*2/3] ^= 1; return b })
			if err := misses.Delete(ctx, name); err != nil {
				t.Fatal(err)
			}
			if got, err := backend.Get(ctx, place, name, maxRecord); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%s: read %q, %v", name, got, err)
			}
			if r, err := place.Repair(ctx, spread.RepairOptions{ReadAll: true}); err != nil || !r.Whole() || r.Replaced != 1 {
				t.Errorf("%s: repair: %+v, %v", name, r, err)
			}
			for i, p := range places {
				if got, err := backend.Get(ctx, p, name, maxRecord); err != nil || !bytes.Equal(got, body) {
					t.Errorf("%s: after repair place %d holds %q, %v", name, i, got, err)
				}
			}
		}
	}
	if len(good) < 4 {
		t.Errorf("looked at %d objects", len(good))
	}
}
