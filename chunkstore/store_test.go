package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// memIndex is an exact little index of hooks.
type memIndex struct {
	mu    sync.Mutex
	hooks map[chunk.ID]PackRef
}

func newMemIndex() *memIndex { return &memIndex{hooks: map[chunk.ID]PackRef{}} }

func (m *memIndex) Packs(_ context.Context, hooks []chunk.ID) ([]PackRef, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []PackRef
	for _, h := range hooks {
		if r, ok := m.hooks[h]; ok && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out, nil
}

func (m *memIndex) Add(_ context.Context, ref PackRef, ids []chunk.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if id.IsHook() {
			m.hooks[id] = ref
		}
	}
	return nil
}

const testSecret = "correct horse"

func newStore(t testing.TB, place backend.Backend) *Store {
	t.Helper()
	ctx := context.Background()
	c, err := Init(ctx, place, InitOptions{Secrets: []string{testSecret}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := Unlock(ctx, place, c, testSecret)
	if err != nil {
		t.Fatal(err)
	}
	return NewStore(place, c, keys)
}

// image makes n chunks: some zero, some repeated, the rest compressible but
// distinct for each seed.
func image(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, n*chunk.Size)
	for i := range n {
		p := out[i*chunk.Size : (i+1)*chunk.Size]
		switch r.IntN(8) {
		case 0: // stays zero
		case 1:
			copy(p, bytes.Repeat([]byte("the same everywhere "), 200))
		default:
			for j := 0; j < len(p); j += 16 {
				copy(p[j:], fmt.Sprintf("%016x", r.Uint64()))
			}
		}
	}
	return out
}

// save stores an image in one session and gives each chunk's resolved place.
type place struct {
	ref PackRef
	n   int
}

func save(ctx context.Context, s *Store, ix Index, img []byte, parent []place) ([]place, SessionID, Statistics, error) {
	w, err := s.Begin(ctx, ix, []byte("test"))
	if err != nil {
		return nil, SessionID{}, Statistics{}, err
	}
	defer w.Close()
	var locs []Loc
	for off := 0; off < len(img); off += BatchSize {
		end := min(off+BatchSize, len(img))
		buf, err := w.Buffer(ctx)
		if err != nil {
			return nil, SessionID{}, Statistics{}, err
		}
		b := &Batch{Data: buf[:copy(buf, img[off:end])], Placed: func(l []Loc) error { locs = append(locs, l...); return nil }}
		for i := off / chunk.Size; parent != nil && i < end/chunk.Size; i++ {
			l := Hole
			if parent[i] != (place{}) {
				l = w.Loc(parent[i].ref, parent[i].n)
			}
			b.Parent = append(b.Parent, l)
		}
		if err := w.Append(ctx, b); err != nil {
			return nil, SessionID{}, Statistics{}, err
		}
	}
	if err := w.Flush(ctx); err != nil {
		return nil, SessionID{}, Statistics{}, err
	}
	out := make([]place, len(locs))
	for i, l := range locs {
		if l == Hole {
			continue
		}
		ref, n, _, ok := w.Resolve(l, 1)
		if !ok {
			return nil, SessionID{}, Statistics{}, errors.New("a chunk has no place after Flush")
		}
		out[i] = place{ref, n}
	}
	rec, err := w.AddRecord(func(int) ([]byte, error) { return []byte("a record"), nil })
	if err == nil {
		err = w.FlushRecords(ctx)
	}
	if err == nil {
		err = w.Commit(ctx, fmt.Appendf(nil, "%d chunks, record %v", len(out), rec))
	}
	return out, w.ID(), w.Statistics(), err
}

func check(t *testing.T, s *Store, img []byte, places []place) {
	t.Helper()
	r := s.NewReader(1 << 20)
	got := make([]byte, chunk.Size)
	for i, p := range places {
		clear(got)
		if p != (place{}) {
			if err := r.ReadChunks(context.Background(), p.ref, p.n, got); err != nil {
				t.Fatalf("chunk %d: %v", i, err)
			}
		}
		if !bytes.Equal(got, img[i*chunk.Size:(i+1)*chunk.Size]) {
			t.Fatalf("chunk %d differs", i)
		}
	}
}

func TestSessionRoundTrip(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s, ix := newStore(t, m), newMemIndex()
	img := image(1, 3000)
	places, id, st, err := save(ctx, s, ix, img, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, s, img, places)
	if st.ChunksNew+st.ChunksKnown+st.ChunksZero != 3000 || st.ChunksKnown == 0 || st.ChunksZero == 0 {
		t.Errorf("counts: %+v", st)
	}
	if body, err := s.ReadCommit(ctx, id); err != nil || !bytes.HasPrefix(body, []byte("3000 chunks")) {
		t.Errorf("commit: %q, %v", body, err)
	}
	// Every stored byte is accounted for, and every pack verifies without a key.
	var total int64
	_ = m.List(ctx, "", func(o backend.Object) error {
		if o.Name != configName && o.Name[:5] != keysPrefix {
			total += o.Size
		}
		return nil
	})
	if total != st.BytesStored {
		t.Errorf("stored %d bytes, said %d", total, st.BytesStored)
	}
	if err := s.Packs(ctx, func(r PackRef, _ int64) error { _, err := s.ReadPack(ctx, r); return err }); err != nil {
		t.Error(err)
	}
	if u, err := s.Unknown(ctx); len(u) > 0 || err != nil {
		t.Errorf("unknown objects %v, %v", u, err)
	}
}

// The same data again is found by the parent's places, and also without them
// through the index; a changed chunk alone is stored.
func TestDedup(t *testing.T) {
	ctx := context.Background()
	s, ix := newStore(t, mem.New()), newMemIndex()
	img := image(2, 4000)
	first, _, _, err := save(ctx, s, ix, img, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, _, st, err := save(ctx, s, ix, img, first)
	if err != nil || st.ChunksNew != 0 || !slices.Equal(again, first) {
		t.Errorf("with a parent: %+v, %v", st, err)
	}
	_, _, st, err = save(ctx, s, ix, img, nil)
	if err != nil || st.ChunksNew > 4000/50 {
		t.Errorf("through the index: %+v, %v", st, err)
	}
	copy(img[777*chunk.Size:], "changed")
	third, _, st, err := save(ctx, s, ix, img, first)
	if err != nil || st.ChunksNew != 1 {
		t.Errorf("one changed chunk: %+v, %v", st, err)
	}
	check(t, s, img, third)
}

func TestWrongSecret(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	if _, err := Unlock(ctx, m, s.Config, "wrong"); !errors.Is(err, seal.ErrWrongSecret) {
		t.Errorf("got %v", err)
	}
	if _, err := Init(ctx, m, InitOptions{Now: time.Now}); !errors.Is(err, ErrRepositoryExists) {
		t.Errorf("second init: %v", err)
	}
	if _, err := ReadConfig(ctx, mem.New()); !errors.Is(err, ErrNoRepository) {
		t.Errorf("empty place: %v", err)
	}
}

// A recovery key and an unprotected repository open too.
func TestOtherSecrets(t *testing.T) {
	ctx := context.Background()
	rec, err := seal.NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]InitOptions{
		"recovery key": {Secrets: []string{"x", rec}, Now: time.Now}, "unprotected": {Now: time.Now},
	} {
		m := mem.New()
		c, err := Init(ctx, m, o)
		if err != nil {
			t.Fatal(name, err)
		}
		k, err := Unlock(ctx, m, c, rec)
		if err != nil {
			t.Fatal(name, err)
		}
		s := NewStore(m, c, k)
		img := image(3, 10)
		places, _, _, err := save(ctx, s, newMemIndex(), img, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		check(t, s, img, places)
	}
}

// Goal: whichever operation of the place fails, the session fails with an
// error, nothing hangs, what was committed before stays readable, and the
// next session succeeds. Method: fail operation 1, 2, 3, … until a session
// passes.
func TestEveryFailedOperation(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s, ix := newStore(t, m), newMemIndex()
	img := image(4, 600)
	first, firstID, _, err := save(ctx, s, ix, img, nil)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the disk broke")
	for n := 1; ; n++ {
		i := 0
		m.Fault = func(op, name string) error {
			if i++; i == n {
				return fmt.Errorf("%s %s: %w", op, name, broken)
			}
			return nil
		}
		img2 := image(uint64(100+n), 600)
		places, _, _, err := save(ctx, s, ix, img2, first)
		m.Fault = nil
		if err == nil {
			if i >= n {
				t.Fatalf("operation %d failed and the session did not notice", n)
			}
			check(t, s, img2, places)
			t.Logf("%d operations", i)
			break
		}
		if !errors.Is(err, broken) {
			t.Fatalf("operation %d: %v", n, err)
		}
		if _, err := s.ReadCommit(ctx, firstID); err != nil {
			t.Fatal(err)
		}
		check(t, s, img, first)
	}
}

// A cancelled session ends soon and leaves no goroutine waiting.
func TestCancel(t *testing.T) {
	s := newStore(t, mem.New())
	ctx, cancel := context.WithCancel(context.Background())
	w, err := s.Begin(ctx, newMemIndex(), nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			buf, err := w.Buffer(ctx)
			if err == nil {
				err = w.Append(ctx, &Batch{Data: buf})
			}
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
				w.Close()
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the session hangs")
	}
}

// A commit whose name is taken by an abort is refused; a commit that was
// stored although the answer was lost is seen as done.
func TestCommitRaces(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	w, err := s.Begin(ctx, newMemIndex(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	name := pointsPrefix + w.ID().String()
	body, err := s.sealRecord(name, recordAbort, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Put(ctx, name, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx, []byte("late")); !errors.Is(err, ErrAborted) {
		t.Errorf("commit after an abort: %v", err)
	}
	w2, err := s.Begin(ctx, newMemIndex(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w2.Close()
	name = pointsPrefix + w2.ID().String()
	if body, err = s.sealRecord(name, recordPoint, []byte("\x00mine")); err != nil {
		t.Fatal(err)
	}
	if err := m.Put(ctx, name, body); err != nil {
		t.Fatal(err)
	}
	if err := w2.Commit(ctx, []byte("mine")); err != nil {
		t.Errorf("commit after a lost answer: %v", err)
	}
}

// A caller that gives up while the commit is on its way still hears the
// truth: without a nil there is no point.
func TestCancelDuringCommit(t *testing.T) {
	m := mem.New()
	s := newStore(t, m)
	for n := 1; n <= 3; n++ {
		ctx, cancel := context.WithCancel(context.Background())
		w, err := s.Begin(ctx, newMemIndex(), nil)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		m.Fault = func(_, name string) error {
			if strings.HasPrefix(name, pointsPrefix) {
				if i++; i == n {
					cancel()
				}
			}
			return nil
		}
		err = w.Commit(ctx, []byte("mine"))
		m.Fault = nil
		w.Close()
		cancel()
		if _, there := s.ReadCommit(context.Background(), w.ID()); (err == nil) != (there == nil) {
			t.Errorf("cancelled at operation %d: the commit says %v, the store %v", n, err, there)
		}
	}
}

// Damage in a pack is an error that says so, never other bytes.
func TestDamageIsFound(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s := newStore(t, m)
	img := image(5, 200)
	places, _, _, err := save(ctx, s, newMemIndex(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(places, func(p place) bool { return p != place{} })
	ref := places[i].ref
	m.Damage(packName(ref), func(b []byte) []byte { b[1000] ^= 4; return b })
	buf := make([]byte, chunk.Size)
	if err := s.NewReader(1<<20).ReadChunks(ctx, ref, 0, buf); !pack.IsDamage(err) {
		t.Errorf("flipped: %v", err)
	}
	if _, err := s.ReadPack(ctx, ref); !pack.IsDamage(err) {
		t.Errorf("flipped, without a key: %v", err)
	}
	m.Damage(packName(ref), func(b []byte) []byte { return b[:len(b)-10] })
	if err := s.NewReader(1<<20).ReadChunks(ctx, ref, 0, buf); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("cut: %v", err)
	}
}

// Many readers with a cache far too small get the right bytes.
func TestReaderUnderPressure(t *testing.T) {
	ctx := context.Background()
	s := newStore(t, mem.New())
	img := image(6, 2000)
	places, _, _, err := save(ctx, s, newMemIndex(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := s.NewReader(3 * pack.MaxFrameSize)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 2))
			buf := make([]byte, chunk.Size)
			for range 2000 {
				i := rng.IntN(len(places))
				if places[i] == (place{}) {
					continue
				}
				if rng.IntN(10) == 0 {
					r.Prefetch(ctx, places[i].ref, places[i].n, 1)
				}
				if err := r.ReadChunks(ctx, places[i].ref, places[i].n, buf); err != nil ||
					!bytes.Equal(buf, img[i*chunk.Size:(i+1)*chunk.Size]) {
					t.Errorf("chunk %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if r.used > 4*pack.MaxFrameSize {
		t.Errorf("the cache holds %d bytes", r.used)
	}
}

func FuzzOpenRecord(f *testing.F) {
	s := newStore(f, mem.New())
	good, err := s.sealRecord("points/x", recordPoint, []byte("body"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(recordMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, plain, err := s.openRecord("points/x", b); err == nil && string(plain) != "body" {
			t.Errorf("a forged record opened: %q", plain)
		}
	})
}

func BenchmarkReadCommit(b *testing.B) {
	ctx := context.Background()
	s := newStore(b, mem.New())
	_, id, _, err := save(ctx, s, newMemIndex(), image(1, 10), nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.ReadCommit(ctx, id); err != nil {
			b.Fatal(err)
		}
	}
}

// A pack that the session's maps name and that is gone by the commit makes
// the commit fail: a point that cannot be read must not exist.
func TestCommitNeedsEveryPack(t *testing.T) {
	ctx := context.Background()
	m := mem.New()
	s, ix := newStore(t, m), newMemIndex()
	img := image(7, 100)
	first, _, _, err := save(ctx, s, ix, img, nil)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(first, func(p place) bool { return p != place{} })
	w, err := s.Begin(ctx, ix, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, _, _, ok := w.Resolve(w.Loc(first[i].ref, first[i].n), 1); !ok {
		t.Fatal("a stored chunk has no place")
	}
	if err := m.Delete(ctx, packName(first[i].ref)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx, []byte("x")); !errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), "--full-read") {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.ReadCommit(ctx, w.ID()); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("the point exists all the same: %v", err)
	}
}

// A repository of several places says so in a feature that older cairns
// refuse; places without it, and features of later cairns, are refused here.
func TestConfigOfPlaces(t *testing.T) {
	ctx := context.Background()
	l := &spread.Layout{Repository: NewID(), Shards: spread.Shards{K: 1, M: 1}, Places: []spread.Place{spread.NewPlace("/a"), spread.NewPlace("/b")}}
	m := mem.New()
	made, err := Init(ctx, m, InitOptions{Now: time.Now, Layout: l})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(ctx, m)
	if err != nil || c.ID != l.Repository || made.ID != c.ID || !slices.Equal(c.Features, []string{"spread1"}) || !slices.Equal(c.Layout().Places, l.Places) {
		t.Errorf("config: %+v, %v", c, err)
	}
	for from, to := range map[string]string{`"spread1"`: `"spread2"`, `"/b"`: `"/a"`, `"k": 1`: `"k": 3`, `"features"`: `"feature5"`} {
		bad := mem.New()
		body, err := backend.Get(ctx, m, "config", maxConfig)
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Replace(body, []byte(from), []byte(to), 1)
		if bytes.Equal(changed, body) {
			t.Fatalf("no %s in the config", from)
		}
		if err := bad.Put(ctx, "config", changed); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadConfig(ctx, bad); err == nil {
			t.Errorf("a config with %s for %s was taken", to, from)
		}
	}
	if !IsAbort("points/x", append([]byte("CAIRNREC\x01\x03"), make([]byte, 40)...)) || IsAbort("points/x", append([]byte("CAIRNREC\x01\x02"), make([]byte, 40)...)) || IsAbort("points/x", []byte("CAIRNREC")) {
		t.Error("aborts are not told from commits")
	}
}

// An object has one name: one in capitals is not taken for the pack of that name
// in small letters, which is not there.
func TestPackNames(t *testing.T) {
	ref := PackRef{Session: SessionID{0xab}, Hash: chunk.PackHash{0xcd}}
	session, hash := ref.Session.String(), ref.Hash.String()
	if got, err := parsePackName(packsPrefix + session + "/" + hash); got != ref || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, name := range []string{strings.ToUpper(session) + "/" + hash, session + "/" + strings.ToUpper(hash), session + "/g" + hash[1:], session + "/" + hash[2:], session + "/" + hash + "00", session, session + hash, ""} {
		if got, err := parsePackName(packsPrefix + name); err == nil || got != (PackRef{}) {
			t.Errorf("%s was taken for %v", name, got)
		}
	}
}
