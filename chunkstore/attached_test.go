package chunkstore

import (
	"context"
	"errors"
	"slices"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// commitPoint commits an empty point.
func commitPoint(t *testing.T, s *Store) SessionID {
	t.Helper()
	w, err := s.Begin(t.Context(), newMemIndex(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Commit(t.Context(), []byte("a point")); err != nil {
		t.Fatal(err)
	}
	return w.ID()
}

// makeCatalogue stores a catalogue of one record.
func makeCatalogue(s *Store, point SessionID, attempt int, body string) (PackRef, error) {
	ctx := context.Background()
	w, err := s.BeginCatalogue(ctx, point, attempt, nil)
	if err != nil {
		return PackRef{}, err
	}
	defer w.Close()
	loc, err := w.AddRecord(func(int) ([]byte, error) { return []byte(body + " record"), nil })
	if err == nil {
		err = w.FlushRecords(ctx)
	}
	if err != nil {
		return PackRef{}, err
	}
	ref := w.MapPack(loc.Pack)
	return ref, w.Commit(ctx, []byte(body))
}

func committed(t *testing.T, s *Store) (ids []SessionID) {
	t.Helper()
	if err := s.Committed(t.Context(), func(id SessionID) error { ids = append(ids, id); return nil }); err != nil {
		t.Fatal(err)
	}
	return ids
}

// Goal: a catalogue is found by its point, is no point itself, and is decided
// once whoever makes it.
func TestCatalogueOfAPoint(t *testing.T) {
	ctx := t.Context()
	place := mem.New()
	s := newStore(t, place)
	point, other := commitPoint(t, s), commitPoint(t, s)
	if _, _, next, err := s.LastCatalogue(ctx, point); !errors.Is(err, backend.ErrNotExist) || next != 0 {
		t.Fatalf("before: %d, %v", next, err)
	}
	// A killed try leaves its intent and a pack.
	dead, err := s.BeginCatalogue(ctx, point, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dead.AddRecord(func(int) ([]byte, error) { return []byte("left"), nil }); err != nil {
		t.Fatal(err)
	}
	if err := dead.FlushRecords(ctx); err != nil {
		t.Fatal(err)
	}
	dead.Close()
	ref, err := makeCatalogue(s, point, 0, "first")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.NewReader(1<<20).ReadRecord(ctx, ref, 0); err != nil || string(b) != "first record" {
		t.Errorf("record %q, %v", b, err)
	}
	// Another one with the same name is too late, and hears so.
	if _, err := makeCatalogue(s, point, 0, "second"); !errors.Is(err, ErrDecided) {
		t.Errorf("a second with the same name: %v", err)
	}
	body, attempt, next, err := s.LastCatalogue(ctx, point)
	if err != nil || string(body) != "first" || attempt != 0 || next != 1 {
		t.Errorf("last: %q, %d, %d, %v", body, attempt, next, err)
	}
	if got, want := committed(t, s), []SessionID{point, other}; len(got) != 2 || !slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
		t.Errorf("points %v, want %v", got, want)
	}
	if _, err := s.ReadCommit(ctx, CatalogueSession(point, 0)); !errors.Is(err, ErrNotPoint) {
		t.Errorf("a catalogue read as a point: %v", err)
	}
	if _, err := makeCatalogue(s, point, 1, "rebuilt"); err != nil {
		t.Fatal(err)
	}
	if body, attempt, _, err := s.LastCatalogue(ctx, point); err != nil || string(body) != "rebuilt" || attempt != 1 {
		t.Errorf("after a rebuild: %q, %d, %v", body, attempt, err)
	}
	all, err := s.Catalogues(ctx)
	if err != nil || len(all) != 1 || len(all[point]) != 2 {
		t.Errorf("catalogues %v, %v", all, err)
	}
	if unknown, err := s.Unknown(ctx); err != nil || len(unknown) > 0 {
		t.Errorf("unknown %v, %v", unknown, err)
	}
}

// An aborted catalogue is passed over; a damaged one is said.
func TestBadCatalogues(t *testing.T) {
	ctx := t.Context()
	place := mem.New()
	s := newStore(t, place)
	point := commitPoint(t, s)
	name := pointsPrefix + CatalogueSession(point, 0).String()
	abort, err := s.sealRecord(name, recordAbort, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := place.Put(ctx, name, abort); err != nil {
		t.Fatal(err)
	}
	if _, _, next, err := s.LastCatalogue(ctx, point); !errors.Is(err, backend.ErrNotExist) || next != 1 {
		t.Errorf("aborted: %d, %v", next, err)
	}
	if _, err := makeCatalogue(s, point, 0, "late"); !errors.Is(err, ErrAborted) {
		t.Errorf("a commit after the abort: %v", err)
	}
	if err := place.Put(ctx, pointsPrefix+CatalogueSession(point, 1).String(), []byte("rubbish")); err != nil {
		t.Fatal(err)
	}
	if _, _, next, err := s.LastCatalogue(ctx, point); err == nil || errors.Is(err, backend.ErrNotExist) || next != 2 {
		t.Errorf("damaged: %d, %v", next, err)
	}
	if _, err := makeCatalogue(s, point, 2, "good"); err != nil {
		t.Fatal(err)
	}
	if body, _, _, err := s.LastCatalogue(ctx, point); err != nil || string(body) != "good" {
		t.Errorf("%q, %v", body, err)
	}
	if got := committed(t, s); len(got) != 1 || got[0] != point {
		t.Errorf("points %v", got)
	}
	if _, err := s.BeginCatalogue(ctx, point, MaxAttempts, nil); err == nil {
		t.Error("any number of attempts")
	}
}

// A pack that a catalogue names and that is gone keeps it from being
// committed.
func TestCatalogueReferences(t *testing.T) {
	ctx := t.Context()
	s := newStore(t, mem.New())
	point := commitPoint(t, s)
	ref, err := makeCatalogue(s, point, 0, "x")
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []bool{false, true} {
		w, err := s.BeginCatalogue(ctx, point, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if gone {
			ref.Hash[0]++
		}
		w.Refer(ref)
		if err := w.checkReferences(ctx); (err != nil) != gone {
			t.Errorf("gone %v: %v", gone, err)
		}
		w.Close()
	}
}
