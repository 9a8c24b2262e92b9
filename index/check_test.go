package index

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// newStore makes a repository without a secret in a place.
func newStore(t testing.TB, place backend.Backend) *chunkstore.Store {
	t.Helper()
	ctx := t.Context()
	_, err := chunkstore.Init(ctx, place, chunkstore.InitOptions{Now: time.Now})
	if err != nil && !errors.Is(err, chunkstore.ErrRepositoryExists) {
		t.Fatal(err)
	}
	c, err := chunkstore.ReadConfig(ctx, place)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(ctx, place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	return chunkstore.NewStore(place, c, keys)
}

// image makes n chunks that differ for each seed.
func image(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	out := make([]byte, n*chunk.Size)
	_, _ = r.Read(out)
	return out
}

// imageChunks is enough for some 60 hooks in one pack.
const imageChunks = 512

// backup stores an image as a point, as a job does, and tells the index.
func backup(t testing.TB, s *chunkstore.Store, ix chunkstore.Index, seed uint64) (restorepoint.Summary, chunkstore.Statistics) {
	t.Helper()
	ctx := t.Context()
	w, err := s.Begin(ctx, ix, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for img := image(seed, imageChunks); len(img) > 0; {
		buf, err := w.Buffer(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n := copy(buf, img)
		if err := w.Append(ctx, &chunkstore.Batch{Data: buf[:n], Placed: func([]chunkstore.Loc) error { return nil }}); err != nil {
			t.Fatal(err)
		}
		img = img[n:]
	}
	_, err = w.AddRecord(func(int) ([]byte, error) { return fmt.Appendf(nil, "a map of image %d", seed), nil })
	if err := errors.Join(err, w.Flush(ctx), w.FlushRecords(ctx)); err != nil {
		t.Fatal(err)
	}
	m := restorepoint.Manifest{Version: restorepoint.ManifestVersion, ID: w.ID().String(), VM: restorepoint.VM{Name: "web01"},
		Time: time.Now().UTC(), Read: restorepoint.ReadFull, Reason: "a test",
		Disks: []restorepoint.Disk{{Name: "vda", Size: imageChunks * chunk.Size}}}
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx, body); err != nil {
		t.Fatal(err)
	}
	if x, ok := ix.(*Index); ok {
		if err := x.PutPoint(ctx, m.Summary()); err != nil {
			t.Fatal(err)
		}
	}
	return m.Summary(), w.Statistics()
}

// nothing is an index that knows nothing: another host's.
type nothing struct{}

func (nothing) Packs(context.Context, []chunk.ID) ([]chunkstore.PackRef, error) { return nil, nil }
func (nothing) Add(context.Context, chunkstore.PackRef, []chunk.ID) error       { return nil }

// opening opens an index and counts what was read from the store for it.
func opening(t testing.TB, dir string, s Store) (x *Index, read int) {
	t.Helper()
	x, err := Open(t.Context(), dir, s, Options{Progress: func(_, total int) { read = total }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x, read
}

func closing(t testing.TB, x *Index) {
	t.Helper()
	if err := errors.Join(x.Err(), x.Close()); err != nil {
		t.Fatal(err)
	}
}

func dump(t testing.TB, x *Index) string {
	t.Helper()
	var b strings.Builder
	if err := x.Dump(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkHooks makes sure that an index finds every pack of the store by its
// hooks. It gives the packs with their chunk IDs.
func checkHooks(t testing.TB, x *Index, s *chunkstore.Store) map[chunkstore.PackRef][]chunk.ID {
	t.Helper()
	ctx := t.Context()
	found := map[chunkstore.PackRef][]chunk.ID{}
	err := s.Packs(ctx, func(ref chunkstore.PackRef, _ int64) error {
		want, err := s.ChunkIDs(ctx, ref)
		if err != nil {
			return nil // a map pack
		}
		found[ref] = want
		for _, id := range want {
			refs, err := x.Packs(ctx, []chunk.ID{id})
			if err != nil {
				return err
			}
			if id.IsHook() != (len(refs) == 1) {
				t.Errorf("hook %v is in packs %v", id.IsHook(), refs)
			}
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("looked at %d packs: %v", len(found), err)
	}
	return found
}

// checkKnows makes sure that an index knows all packs of the store, and
// exactly the points.
func checkKnows(t testing.TB, x *Index, s *chunkstore.Store, points ...restorepoint.Summary) {
	t.Helper()
	for ref, want := range checkHooks(t, x, s) {
		if got, ok := x.ChunkIDs(t.Context(), ref); !ok || !slices.Equal(got, want) {
			t.Errorf("%s: chunk IDs known: %v, %d of them, want %d", ref, ok, len(got), len(want))
		}
	}
	got, err := x.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkPoints(t, got, points)
}

func checkPoints(t testing.TB, got, want []restorepoint.Summary) {
	t.Helper()
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if !bytes.Equal(a, b) {
		t.Errorf("points %s, want %s", a, b)
	}
}
