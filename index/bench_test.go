package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/index/restorepoint"
)

// synthetic is a Store of invented packs, 8,192 chunks each, and points.
type synthetic struct{ packs, points int }

const syntheticChunks = 8192

func (s synthetic) IndexKey() [32]byte { return [32]byte{1, 2, 3} }

func (s synthetic) ref(n int) (r chunkstore.PackRef) {
	r.Hash = chunkstore.PackRef{}.Hash
	sum := blake3.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	r.Hash = sum
	copy(r.Session[:], sum[16:])
	binary.BigEndian.PutUint32(r.Session[:], uint32(n)) // listed in the order of names
	return r
}

func (s synthetic) Packs(_ context.Context, fn func(chunkstore.PackRef, int64) error) error {
	for n := range s.packs {
		if err := fn(s.ref(n), 16<<20); err != nil {
			return err
		}
	}
	return nil
}

func (s synthetic) ChunkIDs(_ context.Context, r chunkstore.PackRef) ([]chunk.ID, error) {
	rnd := rand.NewChaCha8(r.Hash)
	ids := make([]chunk.ID, syntheticChunks)
	for i := range ids {
		_, _ = rnd.Read(ids[i][:])
	}
	return ids, nil
}

func (s synthetic) ReadFooter(context.Context, chunkstore.PackRef) (*pack.Footer, error) {
	return &pack.Footer{Kind: pack.KindData}, nil
}

func (s synthetic) Committed(_ context.Context, fn func(chunkstore.SessionID) error) error {
	for n := range s.points {
		if err := fn(chunkstore.SessionID{1, byte(n >> 16), byte(n >> 8), byte(n)}); err != nil {
			return err
		}
	}
	return nil
}

func (s synthetic) ReadCommit(_ context.Context, id chunkstore.SessionID) ([]byte, error) {
	if id[0] != 1 {
		return nil, backend.ErrNotExist
	}
	n := int(binary.BigEndian.Uint32(id[:4]) & 0xffffff)
	m := restorepoint.Manifest{Version: restorepoint.ManifestVersion, ID: id.String(),
		VM: restorepoint.VM{Name: fmt.Sprintf("web%02d", n%10)}, Time: time.Unix(int64(n)*3600, 0).UTC(),
		Read: restorepoint.ReadIncremental, Reason: "the bitmap of the point before is there and is not damaged",
		Consistency: restorepoint.Consistency{Level: restorepoint.ConsistencyFilesystem, Reason: "all filesystems were frozen"},
		Disks:       []restorepoint.Disk{{Name: "vda", Size: 40 << 30}, {Name: "vdb", Size: 400 << 30}}}
	return json.Marshal(m)
}

// packsFor gives how many packs have this many hooks.
func packsFor(hooks int) int { return hooks * 8 / syntheticChunks }

// BenchmarkOpenClean is what a backup and a mount wait for at the start:
// 100,000 hooks, 1,000 points, nothing new in the store.
func BenchmarkOpenClean(b *testing.B) {
	s := synthetic{packsFor(100_000), 1000}
	dir := b.TempDir()
	x, _ := opening(b, dir, s)
	closing(b, x)
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			x, read := opening(b, dir, s)
			b.StopTimer()
			closing(b, x)
			if read != 0 {
				b.Fatalf("%d objects read", read)
			}
			b.StartTimer()
		}
	})
	b.Run("OpenClose", func(b *testing.B) {
		for b.Loop() {
			x, _ := opening(b, dir, s)
			closing(b, x)
		}
	})
	b.Run("ReadPoints", func(b *testing.B) {
		for b.Loop() {
			if p, ok := ReadPoints(b.Context(), dir, s); !ok || len(p) != s.points {
				b.Fatalf("%d points, %v", len(p), ok)
			}
		}
	})
}

// BenchmarkPacks looks up hooks that are there, and hooks that are not, among
// 100,000.
func BenchmarkPacks(b *testing.B) {
	s := synthetic{packsFor(100_000), 0}
	x, _ := opening(b, b.TempDir(), s)
	for name, ref := range map[string]int{"known": 5, "new": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			ids, _ := s.ChunkIDs(b.Context(), s.ref(ref))
			for i := 0; b.Loop(); i++ {
				id := ids[i%len(ids)]
				id[0] &^= 7
				if _, err := x.Packs(b.Context(), []chunk.ID{id}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	closing(b, x)
}

// BenchmarkMillion measures memory and time with 1,000,000 hooks: adding
// them as a backup does, opening and closing, and looking all over. Run it
// alone and once: -bench Million -benchtime 1x.
func BenchmarkMillion(b *testing.B) {
	s := synthetic{packsFor(1_000_000), 1000}
	dir := b.TempDir()
	debug.FreeOSMemory()
	base := memory(b)
	for b.Loop() {
		step := func(name string, fn func()) {
			start := time.Now()
			fn()
			took := time.Since(start)
			m := memory(b)
			b.Logf("%-28s %8s   anonymous %+4d MiB, mapped files %+4d MiB, peak of all %+4d MiB", name, took.Round(time.Millisecond),
				(m[0]-base[0])>>10, (m[1]-base[1])>>10, (m[2]-base[0]-base[1])>>10)
		}
		var x *Index
		step("open an empty one", func() { x, _ = opening(b, dir, synthetic{}) })
		step("Add 1,000,000 hooks", func() {
			for n := range s.packs {
				ids, _ := s.ChunkIDs(b.Context(), s.ref(n))
				if err := x.Add(b.Context(), s.ref(n), ids); err != nil {
					b.Fatal(err)
				}
			}
		})
		step("look up 100,000 all over", func() { lookAll(b, x, s) })
		step("close", func() { closing(b, x) })
		step("open with 1,000 new points", func() { x, _ = opening(b, dir, s) })
		step("close", func() { closing(b, x) })
		step("open clean", func() { x, _ = opening(b, dir, s) })
		step("look up 100,000 all over", func() { lookAll(b, x, s) })
		step("close", func() { closing(b, x) })
		step("ReadPoints", func() {
			if p, ok := ReadPoints(b.Context(), dir, s); !ok || len(p) != s.points {
				b.Fatalf("%d points, %v", len(p), ok)
			}
		})
		var err error
		step("rebuild", func() { x, err = Rebuild(b.Context(), dir, s, Options{}) })
		if err != nil {
			b.Fatal(err)
		}
		step("close", func() { closing(b, x) })
	}
}

func lookAll(b *testing.B, x *Index, s synthetic) {
	for n := range s.packs {
		ids, _ := s.ChunkIDs(b.Context(), s.ref(n))
		refs, err := x.Packs(b.Context(), ids[:800])
		if err != nil || len(refs) != 1 || refs[0] != s.ref(n) {
			b.Fatalf("pack %d: %v, %v", n, refs, err)
		}
	}
}

// memory gives RssAnon, RssFile and VmHWM of this process in KiB.
func memory(t testing.TB) (out [3]int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("needs /proc/self/status to know its memory")
	}
	for i, name := range []string{"RssAnon", "RssFile", "VmHWM"} {
		m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(status)
		if m == nil {
			t.Skipf("%s is not in /proc/self/status:\n%s", name, bytes.TrimSpace(status))
		}
		out[i], _ = strconv.Atoi(string(m[1]))
	}
	return out
}
