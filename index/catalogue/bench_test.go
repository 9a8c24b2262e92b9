package catalogue

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/guest/ext4"
	"cairn/guest/filesystem/filesystemtest"
	"cairn/index/restorepoint"
)

// noIndex knows nothing.
type noIndex struct{}

func (noIndex) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (noIndex) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// memStore opens a new repository in memory.
func memStore(t testing.TB) *chunkstore.Store {
	t.Helper()
	place := mem.New()
	c, err := chunkstore.Init(context.Background(), place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(context.Background(), place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	return chunkstore.NewStore(place, c, keys)
}

// savedDisk is a disk in a store.
type savedDisk struct {
	id   chunk.SessionID
	m    *restorepoint.Map
	size int64
}

// saveDisk backs a disk up as an incremental point: what differs from the
// parent's bytes, in clusters of 64 KiB.
func saveDisk(t testing.TB, s *chunkstore.Store, src restorepoint.Source, now, old []byte, parent *savedDisk) *savedDisk {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := s.Begin(ctx, noIndex{}, nil)
	must(err)
	defer w.Close()
	var pm *restorepoint.Map
	if parent != nil {
		pm = parent.m
	}
	b, err := restorepoint.NewBuilder(ctx, w, pm, int64(len(now)))
	must(err)
	const cluster = 64 << 10
	for off := 0; off < len(now); off += cluster {
		end := min(off+cluster, len(now))
		if old != nil && bytes.Equal(now[off:end], old[off:end]) {
			continue
		}
		buf, err := w.Buffer(ctx)
		must(err)
		batch := &chunkstore.Batch{Data: buf[:copy(buf, now[off:end])]}
		first := int64(off / chunk.Size)
		batch.Parent = make([]chunk.Loc, len(batch.Data)/chunk.Size)
		must(b.ParentLocs(first, batch.Parent))
		batch.Placed = func(l []chunk.Loc) error { return b.Set(first, l) }
		must(w.Append(ctx, batch))
	}
	must(w.Flush(ctx))
	must(b.Finish())
	must(w.FlushRecords(ctx))
	m, err := restorepoint.OpenMap(src, b.Root(), int64(len(now)))
	must(err)
	must(w.Commit(ctx, []byte("x")))
	return &savedDisk{w.ID(), m, int64(len(now))}
}

// manyFiles fills a directory with n files, as a system has them: in
// directories of a few names, some of hundreds.
func manyFiles(t testing.TB, dir string, n int) (files []string) {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	dirs := []string{dir}
	for len(files) < n {
		sub := fmt.Sprintf("%s/%s-%d", dirs[r.IntN(len(dirs))], []string{"lib", "share", "python3", "module", "doc"}[r.IntN(5)], len(dirs))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if len(sub) < 200 {
			dirs = append(dirs, sub)
		}
		k := 1 + r.IntN(20)
		if r.IntN(50) == 0 {
			k = 300
		}
		for i := range k {
			name := fmt.Sprintf("%s/%s_%d.%s", sub, []string{"util", "test_case", "README", "index", "libfoo"}[r.IntN(5)], i, []string{"py", "so.1", "txt", "h", "gz"}[r.IntN(5)])
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(make([]byte, r.IntN(600))); err != nil {
				t.Fatal(err)
			}
			f.Close()
			at := unix.NsecToTimespec(int64(1.6e18) + r.Int64N(1e17))
			if r.IntN(3) > 0 {
				at.Nsec = 0
			}
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{at, at}, 0); err != nil {
				t.Fatal(err)
			}
			files = append(files, name)
		}
	}
	return files
}

func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // never fails
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIncremental makes the catalogue of an ext4 with 200,000 files, and
// that of the next point, in which 1 % of the files changed: all from and into
// a store. It gives the CPU time and the stored bytes of both, and the share of
// the first's that the second costs.
func BenchmarkIncremental(b *testing.B) {
	filesystemtest.NeedRoot(b)
	filesystemtest.NeedTool(b, "mkfs.ext4")
	for _, spread := range []bool{true, false} {
		b.Run(map[bool]string{true: "spread", false: "together"}[spread], func(b *testing.B) { benchIncremental(b, spread) })
	}
}

func benchIncremental(b *testing.B, spread bool) {
	const files = 200_000
	image := filesystemtest.Image(b, 2<<30, "mkfs.ext4", "-q", "-N", "262144")
	dir, unmount := filesystemtest.LoopMount(b, image, "")
	names := manyFiles(b, dir, files)
	time.Sleep(3 * time.Second) // most of a system is older than the last change before a point
	if err := os.WriteFile(names[0], nil, 0o644); err != nil {
		b.Fatal(err)
	}
	unmount()
	old, err := os.ReadFile(image)
	if err != nil {
		b.Fatal(err)
	}
	if err := filesystemtest.MountAt(image, dir); err != nil {
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = filesystemtest.MountAt(image, dir)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range files / 100 {
		name := names[10_000+i]
		if spread {
			name = names[r.IntN(len(names))]
		}
		if err := os.WriteFile(name, make([]byte, 700), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	filesystemtest.Run(b, "umount", dir)
	os.Remove(dir)
	now, err := os.ReadFile(image)
	if err != nil {
		b.Fatal(err)
	}
	s := memStore(b)
	src := s.NewReader(24 << 20)
	first := saveDisk(b, s, src, old, nil, nil)
	second := saveDisk(b, s, src, now, old, first)
	old, now = nil, nil
	_, _ = old, now
	var cost [2]time.Duration
	var size [2]int64
	var stats [2]Statistics
	attempt, repeats := 0, 1
	if os.Getenv("CAIRN_PROFILE") != "" { // to see the next one in a profile
		repeats = 12
	}
	run := func(k int, d *savedDisk, attempt int, parent func(*chunkstore.Reader, func(*savedDisk) *ext4.FS) (*Point, *Before)) *Root {
		reader := s.NewReader(24 << 20) // cold
		ahead := restorepoint.NewReadAhead(context.Background(), reader)
		defer ahead.Close()
		open := func(d *savedDisk) *ext4.FS {
			fs, err := ext4.Open(context.Background(), io.ReaderAt(restorepoint.NewImage(d.m, ahead)), d.size)
			if err != nil {
				b.Fatal(err)
			}
			return fs
		}
		runtime.GC()
		start := cpuTime()
		w, err := s.BeginCatalogue(context.Background(), d.id, attempt, nil)
		if err != nil {
			b.Fatal(err)
		}
		defer w.Close()
		source := Source{Volume: Volume{Name: "vda", Type: "ext4"}, Reader: open(d)}
		var p *Point
		if parent != nil {
			p, source.Before = parent(reader, open)
		}
		root, st, err := Build(context.Background(), w, []Source{source}, p, Options{})
		if err != nil {
			b.Fatal(err)
		}
		body, err := EncodeRoot(root)
		if err == nil {
			err = w.Commit(context.Background(), body)
		}
		if err != nil {
			b.Fatal(err)
		}
		cost[k] += cpuTime() - start
		size[k] += w.Statistics().BytesStored
		stats[k] = st
		return root
	}
	n := 0.0
	for b.Loop() {
		if attempt+repeats > chunkstore.MaxAttempts {
			b.Fatal("run with -benchtime 5x or less")
		}
		root := run(0, first, attempt, nil)
		for range repeats {
			next := run(1, second, attempt, func(reader *chunkstore.Reader, open func(*savedDisk) *ext4.FS) (*Point, *Before) {
				return &Point{Root: root, Nodes: NewCache(reader, 16<<20)}, &Before{Reader: open(first), Changed: func(ctx context.Context, fn func(start, end int64) error) error {
					return second.m.Changed(ctx, first.m, fn)
				}}
			})
			attempt++
			if n == 0 { // what costs little must be right, too
				fs, err := ext4.Open(context.Background(), restorepoint.NewImage(second.m, nil), second.size)
				if err != nil {
					b.Fatal(err)
				}
				walked, _ := build(b, &Memory{}, fs, nil, nil)
				if got, want := next.Volumes[0].Top.Dir.Hash, walked.Root.Volumes[0].Top.Dir.Hash; got != want {
					b.Errorf("hash %x, by a walk %x", got, want)
				}
				if err := NewChecker(s.NewReader(8<<20)).Root(context.Background(), next); err != nil {
					b.Error(err)
				}
			}
		}
		n++
	}
	cost[1] /= time.Duration(repeats)
	size[1] /= int64(repeats)
	b.ReportMetric(float64(cost[0].Milliseconds())/n, "first-ms")
	b.ReportMetric(float64(cost[1].Microseconds())/1000/n, "next-ms")
	b.ReportMetric(100*float64(cost[1])/float64(cost[0]), "next-cpu-%")
	b.ReportMetric(float64(size[0])/n, "first-B")
	b.ReportMetric(float64(size[1])/n, "next-B")
	b.ReportMetric(100*float64(size[1])/float64(size[0]), "next-size-%")
	b.Logf("first %+v", stats[0])
	b.Logf("next %+v", stats[1])
}
