package s3

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/limit"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
	"cairn/integration/lab/objectstore"
)

// hostIndex is one host's exact little index.
type hostIndex struct {
	mu    sync.Mutex
	hooks map[chunk.ID]chunkstore.PackRef
}

func (x *hostIndex) Packs(_ context.Context, hooks []chunk.ID) (out []chunkstore.PackRef, _ error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	seen := map[chunkstore.PackRef]bool{}
	for _, h := range hooks {
		if r, ok := x.hooks[h]; ok && !seen[r] {
			seen[r] = true
			out = append(out, r)
		}
	}
	return out, nil
}

func (x *hostIndex) Add(_ context.Context, ref chunkstore.PackRef, ids []chunk.ID) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		if id.IsHook() {
			x.hooks[id] = ref
		}
	}
	return nil
}

// hypervisor is a host with a store of its own on the shared bucket.
type hypervisor struct {
	place *Bucket
	store *chunkstore.Store
	index *hostIndex
}

const passphrase = "two hosts"

func newHypervisor(t testing.TB, place *Bucket) *hypervisor {
	t.Helper()
	ctx := context.Background()
	c, err := chunkstore.ReadConfig(ctx, place)
	if err != nil {
		t.Fatal(err)
	}
	return &hypervisor{place, chunkstore.NewStore(place, c, keysOf(t, place)), &hostIndex{hooks: map[chunk.ID]chunkstore.PackRef{}}}
}

func keysOf(t testing.TB, place *Bucket) *seal.Keyring {
	t.Helper()
	ctx := context.Background()
	c, err := chunkstore.ReadConfig(ctx, place)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(ctx, place, c, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// learn brings the index up to what the bucket holds, as a new run does.
func (h *hypervisor) learn(ctx context.Context) error {
	return h.store.Packs(ctx, func(r chunkstore.PackRef, _ int64) error {
		f, err := h.store.ReadFooter(ctx, r)
		if err != nil || f.Kind != pack.KindData {
			return err
		}
		ids, err := h.store.ChunkIDs(ctx, r)
		if err != nil {
			return err
		}
		return h.index.Add(ctx, r, ids)
	})
}

// at is where a chunk lies; the zero value is a hole.
type at struct {
	ref chunkstore.PackRef
	n   int
}

// save stores an image in one session.
func (h *hypervisor) save(ctx context.Context, img []byte) (where []at, st chunkstore.Statistics, err error) {
	w, err := h.store.Begin(ctx, h.index, []byte("test"))
	if err != nil {
		return nil, st, err
	}
	defer w.Close()
	var locs []chunk.Loc
	for off := 0; off < len(img); off += chunkstore.BatchSize {
		buf, err := w.Buffer(ctx)
		if err != nil {
			return nil, st, err
		}
		b := &chunkstore.Batch{Data: buf[:copy(buf, img[off:])], Placed: func(l []chunk.Loc) error { locs = append(locs, l...); return nil }}
		if err := w.Append(ctx, b); err != nil {
			return nil, st, err
		}
	}
	if err := w.Flush(ctx); err != nil {
		return nil, st, err
	}
	for _, l := range locs {
		if l == chunkstore.Hole {
			where = append(where, at{})
			continue
		}
		ref, n, _, ok := w.Resolve(l, 1)
		if !ok {
			return nil, st, fmt.Errorf("a chunk has no place after Flush")
		}
		where = append(where, at{ref, n})
	}
	if _, err := w.AddRecord(func(int) ([]byte, error) { return []byte("a record"), nil }); err != nil {
		return nil, st, err
	}
	if err := w.FlushRecords(ctx); err != nil {
		return nil, st, err
	}
	return where, w.Statistics(), w.Commit(ctx, []byte("a point"))
}

func (h *hypervisor) holds(t *testing.T, where []at, img []byte) {
	t.Helper()
	r := h.store.NewReader(8 << 20)
	got := make([]byte, chunk.Size)
	for i, w := range where {
		clear(got)
		if w != (at{}) {
			if err := r.ReadChunks(context.Background(), w.ref, w.n, got); err != nil {
				t.Fatalf("chunk %d: %v", i, err)
			}
		}
		if !bytes.Equal(got, img[i*chunk.Size:(i+1)*chunk.Size]) {
			t.Fatalf("chunk %d differs", i)
		}
	}
}

// guestImage is n MiB that do not compress: shared of both hosts, and own ones.
func guestImage(seed uint64, shared, own int) []byte {
	img := make([]byte, (shared+own)<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(img[:shared<<20])             // never fails
	_, _ = rand.NewChaCha8([32]byte{2, byte(seed)}).Read(img[shared<<20:]) // never fails
	return img
}

func initBucket(t testing.TB, b *Bucket) {
	t.Helper()
	if _, err := chunkstore.Init(context.Background(), b, chunkstore.InitOptions{Secrets: []string{passphrase}, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
}

// TestSessionsOfTwoHosts: two hosts store into one bucket at the same time, each
// behind a proxy at which one request of eight meets a fault. Both commit, both
// read what both stored, everything verifies without a key, and afterwards
// neither stores again what the other has.
func TestSessionsOfTwoHosts(t *testing.T) {
	forEachEngine(t, func(t *testing.T, s *objectstore.Server) {
		ctx := context.Background()
		bucket := bucketName()
		var hosts [2]*hypervisor
		var proxies [2]*proxy
		for i := range hosts {
			proxies[i] = newProxy(t, s, false)
			place := openAt(t, s, Spec{Host: proxies[i].address(), Bucket: bucket, Prefix: "fleet"}, hasty)
			if i == 0 {
				initBucket(t, place)
			}
			hosts[i] = newHypervisor(t, place)
			r := rand.New(rand.NewPCG(uint64(i), 7)) // under the proxy's lock
			proxies[i].set(func(int64, *http.Request) fault {
				if r.IntN(8) == 0 {
					return fault(1 + r.IntN(int(conflict)))
				}
				return none
			})
		}
		var wg sync.WaitGroup
		imgs := [2][]byte{guestImage(1, 12, 24), guestImage(2, 12, 24)}
		var where [2][]at
		for i, h := range hosts {
			wg.Go(func() {
				var err error
				if where[i], _, err = h.save(ctx, imgs[i]); err != nil {
					t.Errorf("host %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for i, h := range hosts {
			h.holds(t, where[1-i], imgs[1-i])
			if err := h.store.Packs(ctx, func(r chunkstore.PackRef, _ int64) error { _, err := h.store.ReadPack(ctx, r); return err }); err != nil {
				t.Error(err)
			}
			if err := h.learn(ctx); err != nil {
				t.Fatal(err)
			}
			again, st, err := h.save(ctx, imgs[1-i])
			if err != nil {
				t.Fatal(err)
			}
			if st.ChunksNew > st.ChunksKnown/100 {
				t.Errorf("host %d stored %d chunks again, found %d", i, st.ChunksNew, st.ChunksKnown)
			}
			h.holds(t, again, imgs[1-i])
		}
		if u, err := hosts[0].store.Unknown(ctx); len(u) > 0 || err != nil {
			t.Errorf("unknown objects %v, %v", u, err)
		}
		points := 0
		err := hosts[0].place.List(ctx, "points/", func(backend.Object) error { points++; return nil })
		if points != 4 || err != nil {
			t.Errorf("%d points, %v", points, err)
		}
	})
}

// BenchmarkHosts stores the same amount of data for each host, with one host and
// with two at once: MB/s is of all hosts together. Without a line the processors
// of this machine, which has engine and hosts, are the limit; a line is 50 ms of
// latency for each request and 25 MB/s for each host.
func BenchmarkHosts(b *testing.B) {
	for _, engine := range []objectstore.Engine{objectstore.Versitygw(), objectstore.MinIO()} {
		for _, line := range []bool{false, true} {
			for _, n := range []int{1, 2} {
				b.Run(fmt.Sprintf("%s/line=%v/hosts=%d", engine, line, n), func(b *testing.B) { benchHosts(b, engine, line, n) })
			}
		}
	}
}

// BenchmarkPutsAtOnce stores from one host over a line of 100 ms without a limit,
// with some packs at once.
func BenchmarkPutsAtOnce(b *testing.B) {
	for _, n := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := objectstore.Start(b, objectstore.MinIO())
			p := newProxy(b, s, false)
			place := openNew(b, s, p.address())
			initBucket(b, place)
			h := newHypervisor(b, place)
			h.store = chunkstore.NewStore(atOnce{place, n}, h.store.Config, keysOf(b, place))
			p.delay, p.rate = 100*time.Millisecond, 30<<20
			const mib = 160
			b.SetBytes(mib << 20)
			seed := uint64(0)
			for b.Loop() {
				seed++
				if _, _, err := h.save(context.Background(), guestImage(seed, 0, mib)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type atOnce struct {
	*Bucket
	n int
}

func (a atOnce) PutsAtOnce() int { return a.n }

func benchHosts(b *testing.B, engine objectstore.Engine, line bool, n int) {
	s := objectstore.Start(b, engine)
	ctx := context.Background()
	const mib = 96
	bucket := bucketName()
	p := newProxy(b, s, false)
	p.delay = 50 * time.Millisecond
	hosts := make([]*hypervisor, n)
	for i := range hosts {
		address := s.Address
		if line {
			address = p.address()
		}
		place := openAt(b, s, Spec{Host: address, Bucket: bucket}, Patience{})
		if i == 0 {
			initBucket(b, place)
		}
		hosts[i] = newHypervisor(b, place)
		if line {
			hosts[i].store = chunkstore.NewStore(limit.New(place, 25<<20), hosts[i].store.Config, keysOf(b, place))
		}
	}
	b.SetBytes(int64(n) * mib << 20)
	seed := uint64(0)
	for b.Loop() {
		b.StopTimer()
		imgs := make([][]byte, n)
		for i := range imgs {
			seed++
			imgs[i] = guestImage(seed, 0, mib)
		}
		b.StartTimer()
		var wg sync.WaitGroup
		for i, h := range hosts {
			wg.Go(func() {
				if _, _, err := h.save(ctx, imgs[i]); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
}
