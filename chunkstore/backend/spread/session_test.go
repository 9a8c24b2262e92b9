package spread_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/chunk"
)

type noIndex struct{}

func (noIndex) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (noIndex) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// likeFiles makes bytes that compress to some 45 %, as a guest's files do
// (DESIGN.md section 2: 37 %).
func likeFiles(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 4096)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", r.Uint64()>>(r.IntN(11)*4))
	}
	b := make([]byte, 0, n+32)
	for len(b) < n {
		b = append(b, words[r.IntN(len(words))]...)
	}
	return b[:n]
}

// guestBytes makes bytes that do not compress.
func guestBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i < n; i += 16 {
		copy(b[i:], fmt.Sprintf("%016x", r.Uint64()))
	}
	return b
}

func newStore(t testing.TB, place backend.Backend) *chunkstore.Store {
	t.Helper()
	c, err := chunkstore.Init(t.Context(), place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(t.Context(), place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	return chunkstore.NewStore(place, c, keys)
}

// backup stores an image in one session and gives where its chunks are; at is
// called with the number of bytes appended.
func backup(ctx context.Context, s *chunkstore.Store, img []byte, at func(int)) ([]chunk.PackRef, []int, error) {
	w, err := s.Begin(ctx, noIndex{}, []byte("an intent"))
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	var locs []chunk.Loc
	for off := 0; off < len(img); off += chunkstore.BatchSize {
		buf, err := w.Buffer(ctx)
		if err != nil {
			return nil, nil, err
		}
		b := &chunkstore.Batch{Data: buf[:copy(buf, img[off:])], Placed: func(l []chunk.Loc) error { locs = append(locs, l...); return nil }}
		if err := w.Append(ctx, b); err != nil {
			return nil, nil, err
		}
		at(off)
	}
	if err := w.Flush(ctx); err != nil {
		return nil, nil, err
	}
	refs, nums := make([]chunk.PackRef, len(locs)), make([]int, len(locs))
	for i, l := range locs {
		ref, n, _, ok := w.Resolve(l, 1)
		if !ok {
			return nil, nil, errors.New("a chunk has no place")
		}
		refs[i], nums[i] = ref, n
	}
	if _, err := w.AddRecord(func(int) ([]byte, error) { return []byte("a map"), nil }); err != nil {
		return nil, nil, err
	}
	if err := w.FlushRecords(ctx); err != nil {
		return nil, nil, err
	}
	return refs, nums, w.Commit(ctx, []byte("a manifest"))
}

func readBack(t *testing.T, s *chunkstore.Store, img []byte, refs []chunk.PackRef, nums []int) {
	t.Helper()
	r := s.NewReader(8 << 20)
	got := make([]byte, chunk.Size)
	for i := range refs {
		if err := r.ReadChunks(t.Context(), refs[i], nums[i], got); err != nil {
			t.Fatalf("chunk %d: %v", i, err)
		}
		if !bytes.Equal(got, img[i*chunk.Size:(i+1)*chunk.Size]) {
			t.Fatalf("chunk %d differs", i)
		}
	}
	points := 0
	if err := s.Committed(t.Context(), func(id chunk.SessionID) error {
		points++
		_, err := s.ReadCommit(t.Context(), id)
		return err
	}); err != nil || points != 1 {
		t.Fatalf("%d points, %v", points, err)
	}
}

// Any two of six folders deleted in the middle of a backup: it ends well, and
// all of it reads back from the other four.
func TestPlacesDeletedDuringBackup(t *testing.T) {
	img := guestBytes(1, 24<<20)
	pairs := 0
	for set := range uint32(1) << 6 {
		if bits.OnesCount32(set) != 2 {
			continue
		}
		if pairs++; testing.Short() && pairs > 3 {
			return
		}
		top := t.TempDir()
		var members []spread.Member
		for i := range 6 {
			d, err := local.Create(filepath.Join(top, fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			id := []byte(fmt.Sprintf(`{"place":"%d"}`, i))
			if err := d.Put(t.Context(), "place", id); err != nil {
				t.Fatal(err)
			}
			members = append(members, spread.Member{ID: fmt.Sprint(i), Spec: filepath.Join(top, fmt.Sprint(i)), Place: d, Identity: id})
		}
		sp, err := spread.New(members, spread.Shards{K: 4, M: 2}, spread.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s := newStore(t, sp)
		refs, nums, err := backup(t.Context(), s, img, func(off int) {
			if off == 20<<20 {
				for i, m := range members {
					if set&(1<<i) != 0 {
						if err := os.RemoveAll(m.Spec); err != nil {
							t.Error(err)
						}
					}
				}
			}
		})
		if err != nil {
			t.Fatalf("without %06b: %v", set, err)
		}
		if !sp.Degraded() {
			t.Errorf("without %06b: not told that it is degraded", set)
		}
		readBack(t, s, img, refs, nums)
		for i, m := range members {
			if set&(1<<i) != 0 {
				if left, err := os.ReadDir(m.Spec); err == nil && len(left) > 0 {
					t.Errorf("without %06b: %d files were made in a folder that is no place any more", set, len(left))
				}
			}
		}
		if err := sp.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(top); err != nil {
			t.Fatal(err)
		}
	}
	if pairs != 15 {
		t.Errorf("%d pairs", pairs)
	}
}

// memMembers are places in memory.
func memMembers(n int) []spread.Member {
	var out []spread.Member
	for i := range n {
		out = append(out, spread.Member{ID: fmt.Sprint(i), Spec: fmt.Sprint(i), Place: mem.New()})
	}
	return out
}

// What parity costs of a full backup's wall time: the whole way of the bytes,
// into one place and into six with 4+2.
func BenchmarkFullBackup(b *testing.B) {
	img := likeFiles(2, 256<<20)
	layouts := []struct {
		name string
		open func(b *testing.B) backend.Backend
	}{
		{"one place in memory", func(*testing.B) backend.Backend { return mem.New() }},
		{"4+2 in memory", func(b *testing.B) backend.Backend { return openSpread(b, memMembers(6), 4, 2) }},
		{"4+2 in one place in memory", func(b *testing.B) backend.Backend { return openSpread(b, memMembers(1), 4, 2) }},
		{"1+1 in memory", func(b *testing.B) backend.Backend { return openSpread(b, memMembers(2), 1, 1) }},
		{"one folder", func(b *testing.B) backend.Backend { return folder(b) }},
		{"4+2 in six folders", func(b *testing.B) backend.Backend {
			members := memMembers(6)
			for i := range members {
				members[i].Place = folder(b)
			}
			return openSpread(b, members, 4, 2)
		}},
	}
	for _, l := range layouts {
		b.Run(l.name, func(b *testing.B) {
			b.SetBytes(int64(len(img)))
			var cpu time.Duration // wall time says little on a host that does other things
			for b.Loop() {
				b.StopTimer()
				s := newStore(b, l.open(b))
				before := cpuTime(b)
				b.StartTimer()
				if _, _, err := backup(b.Context(), s, img, func(int) {}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				cpu += cpuTime(b) - before
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpuTime is what the process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func openSpread(b *testing.B, members []spread.Member, k, m int) backend.Backend {
	b.Helper()
	s, err := spread.New(members, spread.Shards{K: k, M: m}, spread.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func folder(b *testing.B) backend.Backend {
	b.Helper()
	d, err := local.Create(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	return d
}

// Encoding a pack's shards and their checksums alone.
func BenchmarkPutPack(b *testing.B) {
	s := openSpread(b, memMembers(6), 4, 2)
	data := guestBytes(3, 16<<20)
	b.SetBytes(int64(len(data)))
	i := 0
	for b.Loop() {
		name := fmt.Sprintf("packs/s/%d", i)
		if err := s.Put(b.Context(), name, data); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Delete(b.Context(), name); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		i++
	}
}
