package gc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
)

// quietWorld is a store in memory without a schedule: one backup at a time.
func quietWorld(t *testing.T) (*sim, *actor) {
	s := newWorld(t).newSim(t, 1, nil)
	a := s.actors[0]
	a.place = s.place
	return s, a
}

// point commits a point of chunks by content, leaf by leaf.
func point(t *testing.T, a *actor, contents [simLeaves * simBlocks]int) *simPoint {
	t.Helper()
	ctx := context.Background()
	w, err := a.open().Begin(ctx, a.s.index, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p := &simPoint{id: w.ID(), content: contents}
	var locs []chunk.RecordLoc
	for leaf := range simLeaves {
		loc, err := a.writeLeaf(ctx, w, contents[leaf*simBlocks:(leaf+1)*simBlocks], nil)
		if err != nil {
			t.Fatal(err)
		}
		locs = append(locs, loc)
	}
	if err := w.FlushRecords(ctx); err != nil {
		t.Fatal(err)
	}
	var leaves []simBlock
	for _, l := range locs {
		leaves = append(leaves, simBlock{w.MapPack(l.Pack), l.Record})
	}
	if err := w.Commit(ctx, encodeBlocks(leaves)); err != nil {
		t.Fatal(err)
	}
	a.s.points = append(a.s.points, p)
	return p
}

func drop(t *testing.T, a *actor, p *simPoint) {
	t.Helper()
	p.dropped = true
	if err := a.open().Drop(context.Background(), p.id, chunkstore.Note{}); err != nil {
		t.Fatal(err)
	}
}

func collect(t *testing.T, a *actor) *Result {
	t.Helper()
	r, err := Collect(context.Background(), a.open(), Options{Trace: simTrace(a.open().NewReader(simCache)), RewriteBelow: 0.9})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.s.check("after a collection"); err != nil {
		t.Fatal(err)
	}
	return r
}

// What is left of a nearly empty pack moves, again and again, and is read by
// the maps that name where it was.
func TestCopies(t *testing.T) {
	s, a := quietWorld(t)
	var first, second [simLeaves * simBlocks]int
	for i := range first {
		first[i], second[i] = i, i
		if i%2 == 1 {
			second[i] = 20 + i
		}
	}
	p := point(t, a, first)
	point(t, a, second)
	drop(t, a, p)
	if r := collect(t, a); r.PacksCopied == 0 || r.PacksRemoved <= r.PacksCopied-1 || r.PointsRemoved != 1 {
		t.Fatalf("%+v", r)
	}
	reader := a.open().NewReader(1 << 20)
	for round := range 6 { // the copies become nearly empty, too
		third := second
		for i := range third {
			if i%(round+3) > 0 {
				third[i] = (third[i] + 7 + round) % simContents
			}
		}
		old := s.points[len(s.points)-1]
		point(t, a, third)
		drop(t, a, old)
		collect(t, a)
		second = third
	}
	v, err := a.open().List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for ref := range v.Forwards {
		ways, err := a.open().Forwards(context.Background(), ref)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := a.open().ChunkIDs(context.Background(), ref)
		if ways[0].Kind == 1 && (err != nil || len(ids) != ways[0].Count) {
			t.Errorf("chunk IDs of %s: %d, %v", ref, len(ids), err)
		}
	}
	if err := s.quiet(context.Background()); err != nil {
		t.Fatal(err)
	}
	// A reader that had the packs open before goes on.
	last := s.points[len(s.points)-1]
	body, err := a.open().ReadCommit(context.Background(), last.id)
	if err != nil {
		t.Fatal(err)
	}
	leaves, err := decodeBlocks(body)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := readLeaf(context.Background(), reader, leaves[0])
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, chunk.Size)
	if err := reader.ReadChunks(context.Background(), blocks[0].ref, blocks[0].n, got); err != nil || !bytes.Equal(got, s.chunks[last.content[0]]) {
		t.Error(err)
	}
}

// On a full disk there is no room for copies: what needs none goes all the same.
func TestFullDisk(t *testing.T) {
	s, a := quietWorld(t)
	var first, second [simLeaves * simBlocks]int
	for i := range first {
		first[i], second[i] = i, i+20*(i%2)
	}
	p := point(t, a, first)
	point(t, a, second)
	drop(t, a, p)
	s.place.Fault = func(op, name string) error {
		if op == "put" && strings.HasPrefix(name, "packs/") {
			return backend.ErrNoSpace
		}
		return nil
	}
	if r := collect(t, a); r.PacksRemoved == 0 || r.PacksCopied != 0 || !r.Full {
		t.Errorf("%+v", r)
	}
}

// What somebody else decided is not removed if a point needs it.
func TestForgedList(t *testing.T) {
	s, a := quietWorld(t)
	ctx := context.Background()
	point(t, a, [simLeaves * simBlocks]int{1, 2, 3})
	store := a.open()
	v, err := store.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := packTexts(v.Packs)
	for _, forged := range []struct {
		part string
		kind chunkstore.RecordKind
		body any
	}{
		{"condemned", chunkstore.RecordCondemned, chunkstore.Condemned{Collector: chunkstore.NewSessionID().String(), Packs: all}},
		{"final", chunkstore.RecordFinal, chunkstore.Final{Packs: all}},
	} {
		b, err := json.Marshal(forged.body)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.PutRecord(ctx, chunkstore.GenerationName(1, forged.part), forged.kind, b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Collect(ctx, store, Options{Trace: simTrace(store.NewReader(simCache))}); !errors.Is(err, ErrForeign) {
		t.Errorf("gc says %v", err)
	}
	if err := s.check("behind a forged list"); err != nil {
		t.Error(err)
	}
}

// Whatever a collector that removes a forgotten point has done when it dies, the
// next one does not take the point for one that is lost.
func TestForgottenCommitIsNotLost(t *testing.T) {
	for _, gone := range []string{"points/", "sessions/"} {
		s, a := quietWorld(t)
		ctx := context.Background()
		p := point(t, a, [simLeaves * simBlocks]int{1, 2, 3})
		drop(t, a, p)
		if err := s.place.Delete(ctx, gone+p.id.String()); err != nil {
			t.Fatal(err)
		}
		o := Options{Trace: simTrace(a.open().NewReader(simCache)), dead: func(chunk.SessionID, time.Duration) bool { return true },
			Committed: func(id chunk.SessionID) bool { return id == p.id }}
		if _, err := Collect(ctx, a.open(), o); err != nil {
			t.Fatalf("without %s: %v", gone, err)
		}
		if err := s.quiet(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// A commit that is known to have been there, and is gone, is no run that died:
// what it needs stays, and so does its name's place.
func TestLostCommit(t *testing.T) {
	s, a := quietWorld(t)
	ctx := context.Background()
	p := point(t, a, [simLeaves * simBlocks]int{1, 2, 3})
	name := "points/" + p.id.String()
	body, err := backend.Get(ctx, s.place, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.place.Delete(ctx, name); err != nil {
		t.Fatal(err)
	}
	o := Options{Trace: simTrace(a.open().NewReader(simCache)), dead: func(chunk.SessionID, time.Duration) bool { return true },
		Committed: func(id chunk.SessionID) bool { return id == p.id }}
	if _, err := Collect(ctx, a.open(), o); !errors.Is(err, ErrLost) {
		t.Fatalf("gc says %v", err)
	}
	if err := s.place.Put(ctx, name, body); err != nil { // from a mirror
		t.Fatal(err)
	}
	if err := s.check("when the commit is back"); err != nil {
		t.Fatal(err)
	}
	if _, err := Collect(ctx, a.open(), o); err != nil {
		t.Fatal(err)
	}
}

// A generation that was left because a backup ran is finished by a later run, also
// if that backup died: it is decided against when its time has come.
func TestDeadBackupHoldsNothingUp(t *testing.T) {
	s, a := quietWorld(t)
	ctx := context.Background()
	now := time.Unix(1e9, 0)
	s.place.Now = func() time.Time { return now }
	p := point(t, a, [simLeaves * simBlocks]int{1, 2, 3})
	point(t, a, [simLeaves * simBlocks]int{4, 5, 6})
	drop(t, a, p)
	w, err := a.open().Begin(ctx, s.index, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close) // as if it was killed: not before all is over
	o := Options{Trace: simTrace(a.open().NewReader(simCache))}
	for range 2 {
		now = now.Add(time.Hour)
		if r, err := Collect(ctx, a.open(), o); !errors.Is(err, ErrRunning) || r.Fenced != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	now = now.Add(24 * time.Hour)
	if r, err := Collect(ctx, a.open(), o); err != nil || r.Fenced != 1 || r.Taken != 1 || r.PacksRemoved == 0 {
		t.Fatalf("a day later: %+v, %v", r, err)
	}
	if err := s.quiet(ctx); err != nil {
		t.Fatal(err)
	}
}

// Goal: whatever call to the place fails, or is the last one before the
// collector dies, every point stays whole, and a later run finishes the work.
func TestEveryFailedOperation(t *testing.T) {
	world := newWorld(t)
	for n, done := 0, false; !done; n++ {
		for _, dies := range []bool{false, true} {
			s := world.newSim(t, 1, nil)
			a := s.actors[0]
			a.place = s.place
			var first, second [simLeaves * simBlocks]int
			for i := range first {
				first[i], second[i] = i, i+20*(i%2)
			}
			p := point(t, a, first)
			point(t, a, second)
			drop(t, a, p)
			calls := 0
			s.place.Fault = func(string, string) error {
				calls++
				if calls-1 == n || dies && calls > n {
					return errLost
				}
				return nil
			}
			_, err := Collect(context.Background(), a.open(), Options{Trace: simTrace(a.open().NewReader(simCache)), RewriteBelow: 0.9})
			s.place.Fault = nil
			if done = calls <= n; done {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			for range 2 { // the second run finds nothing left but what the dead one's name protects
				if err := s.check(fmt.Sprintf("call %d failed (%v)", n, dies)); err != nil {
					t.Fatal(err)
				}
				if _, err := Collect(context.Background(), a.open(), Options{Trace: simTrace(a.open().NewReader(simCache)), RewriteBelow: 0.9}); err != nil {
					t.Fatalf("behind the failure of call %d: %v", n, err)
				}
			}
			if err := s.quiet(context.Background()); err != nil {
				t.Fatalf("behind the failure of call %d (%v): %v", n, dies, err)
			}
		}
		if n > 1000 {
			t.Fatal("it has no end")
		}
	}
}

// packTexts gives the names of packs.
func packTexts(l *chunkstore.PackList) (out []string) {
	for _, p := range l.All() {
		out = append(out, chunkstore.PackText(p.Ref))
	}
	return out
}
