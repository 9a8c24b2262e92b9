package spread

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"cairn/chunkstore/backend"
)

// listing gives what s lists under packs/, and the names of its notes.
func listing(t *testing.T, s *Spread) (packs []backend.Object, notes []string) {
	t.Helper()
	for _, prefix := range []string{packsPrefix, notesPrefix} {
		if err := s.List(t.Context(), prefix, func(o backend.Object) error {
			if prefix == packsPrefix {
				packs = append(packs, o)
			} else {
				notes = append(notes, o.Name)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return packs, notes
}

// What too few shards are left of is told as a rest when all places were listed,
// and as nothing that may be removed while one is away, however little of it there
// can be.
func TestRestOfAPackIsToldWhenAllPlacesAreThere(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	data, keep := random(8, 100_000), random(9, 50_000)
	for _, b := range [][]byte{data, keep} {
		if err := c.Put(ctx, hashName(b), b); err != nil {
			t.Fatal(err)
		}
	}
	name := hashName(data)
	order := c.order(name)
	tell := func(when string, down uint32, partial, rest bool) {
		t.Helper()
		c.down.Store(down)
		defer c.down.Store(0)
		packs, _ := listing(t, c.open(t, Shards{4, 2}))
		for _, o := range packs {
			if o.Name == hashName(keep) && (o.Partial || o.Rest) {
				t.Errorf("%s: a pack that can be read is told as %+v", when, o)
			}
			if o.Name == name && (o.Partial != partial || o.Rest != rest) {
				t.Errorf("%s: told as %+v", when, o)
			}
		}
		if len(packs) != 2 {
			t.Errorf("%s: %d packs", when, len(packs))
		}
	}
	lose := func(i int) {
		t.Helper()
		if err := c.places[order[i]].Delete(ctx, shardName(name, i)); err != nil {
			t.Fatal(err)
		}
	}
	at := func(i int) uint32 { return 1 << order[i] }
	tell("whole", 0, false, false)
	tell("3 of 6 away", at(3)|at(4)|at(5), false, false)
	lose(0)
	lose(1)
	tell("k are left", 0, false, false)
	tell("k are left, one is away", at(2), false, false)
	tell("k are left, and one that has none is away", at(0), false, false)
	lose(2)
	tell("k-1 are left", 0, true, true)
	tell("k-1 are left, one of them is away", at(5), true, false)
	tell("k-1 are left, and one that has none is away", at(0), false, false)
	lose(3)
	tell("k-2 are left, and one that has none is away", at(0), true, false)
}

// Tidy removes the notes of packs of which nothing is left at any place, and no
// others: none while a place is away, none of a pack that was listed.
func TestTidy(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	gone, rest, there, deleted := random(1, 9_000), random(2, 9_000), random(3, 9_000), random(4, 9_000)
	c.down.Store(0b000011)
	for _, b := range [][]byte{gone, rest, there, deleted} {
		if err := c.Put(ctx, hashName(b), b); err != nil {
			t.Fatal(err)
		}
	}
	c.down.Store(0b001100)
	if err := c.Delete(ctx, hashName(deleted)); err != nil {
		t.Fatal(err)
	}
	c.down.Store(0)
	lose := func(b []byte, left int) { // of four shards
		t.Helper()
		name := hashName(b)
		for i, n := range c.order(name) {
			if n > 1+left {
				if err := c.places[n].Delete(ctx, shardName(name, i)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	lose(gone, 0)
	lose(rest, 1)
	tidy := func(down uint32, listed ...[]byte) []string {
		t.Helper()
		s := c.open(t, Shards{4, 2})
		c.down.Store(down)
		err := s.Tidy(ctx, func(name string) bool {
			return slices.ContainsFunc(listed, func(b []byte) bool { return hashName(b) == name })
		})
		c.down.Store(0)
		if err != nil {
			t.Fatal(err)
		}
		_, notes := listing(t, c.open(t, Shards{4, 2}))
		return notes
	}
	all := tidy(0b100000)
	if len(all) != 5 {
		t.Fatalf("notes: %q", all)
	}
	if notes := tidy(0, gone, deleted); !slices.Equal(notes, all) {
		t.Errorf("of packs that were listed: %q of %q", notes, all)
	}
	want := slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == noteName(notesPrefix, hashName(gone)) })
	if notes := tidy(0); !slices.Equal(notes, want) || len(want) != 4 {
		t.Errorf("left: %q, not %q", notes, want)
	}
	if err := c.Delete(ctx, hashName(deleted)); err != nil { // the places are back
		t.Fatal(err)
	}
	if err := c.Delete(ctx, hashName(rest)); err != nil {
		t.Fatal(err)
	}
	if notes := tidy(0); !slices.Equal(notes, []string{noteName(notesPrefix, hashName(there))}) {
		t.Errorf("left: %q", notes)
	}
	if got, err := backend.Get(ctx, c, hashName(there), 1<<20); err != nil || !bytes.Equal(got, there) {
		t.Errorf("a pack that stays: %v", err)
	}
}

// A repair that could not list one of the places removes no note: what is left of
// the pack may lie there.
func TestNotesStayWhileAPlaceIsNotListed(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	data := random(5, 9_000)
	name := hashName(data)
	if err := c.Put(ctx, name, data); err != nil {
		t.Fatal(err)
	}
	order := c.order(name)
	c.frozen.Store(1 << order[5])
	if err := c.Delete(ctx, name); err != nil { // one shard stays
		t.Fatal(err)
	}
	p := c.places[order[5]]
	p.Fault = func(op, of string) error {
		if op == "list" && of == packsPrefix || op == "delete" {
			return errDown
		}
		return nil
	}
	if _, err := c.open(t, Shards{4, 2}).Repair(ctx, RepairOptions{}); err != nil && !errors.Is(err, ErrAway) {
		t.Fatal(err)
	}
	p.Fault = nil
	if packs, notes := listing(t, c.open(t, Shards{4, 2})); len(packs) != 1 || len(notes) != 1 {
		t.Errorf("%d packs, notes %q", len(packs), notes)
	}
}
