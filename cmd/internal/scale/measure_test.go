package scale

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/gc"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/heap"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/fs"
	"cairn/index"
	"cairn/index/restorepoint"
	"cairn/index/restorepoint/retention"
)

// What a child process measures, and of what.
const (
	envMeasure = "CAIRN_SCALE_MEASURE"
	envShape   = "CAIRN_SCALE_SHAPE" // "machines points leaves"
	envCache   = "CAIRN_SCALE_CACHE" // the folder of the index
	envLive    = "CAIRN_SCALE_LIVE"  // "1": also measure what is in use
)

// memoryLimit is that of cmd/cairn.
const memoryLimit = 150 << 20

// result is what a child says.
type result struct {
	Measure string
	RSS     int64 // peak, bytes
	Live    int64 // the most that a collection found in use, bytes; with envLive only
	Anon    int64 // of the process's own at the end, bytes
	CPU     float64
	Wall    float64
	Note    string
	Error   string
}

func TestMain(m *testing.M) {
	what := os.Getenv(envMeasure)
	if what == "" {
		os.Exit(m.Run())
	}
	defer heap.Limit(memoryLimit)()
	if name := os.Getenv("CAIRN_SCALE_PROFILE"); name != "" {
		if f, err := os.Create(name + "." + what); err == nil {
			defer f.Close()
			if pprof.StartCPUProfile(f) == nil {
				defer pprof.StopCPUProfile()
			}
		}
	}
	inUse := func() int64 { return 0 }
	if os.Getenv(envLive) == "1" {
		inUse = watchHeap()
	}
	start := time.Now()
	note, err := measure(context.Background(), what)
	r := result{Measure: what, Wall: time.Since(start).Seconds(), Live: inUse(), Note: note}
	if err != nil {
		r.Error = err.Error()
	}
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err == nil {
		r.CPU = time.Duration(use.Utime.Nano() + use.Stime.Nano()).Seconds()
	}
	r.RSS, r.Anon = status("VmHWM"), status("RssAnon")
	out, _ := json.Marshal(r)
	fmt.Printf("\nmeasured %s\n", out) // and end with 0
}

// watchHeap collects garbage over and over. most ends it, and gives the most
// that a collection found in use, in bytes: what lay about at a peak, which is
// another amount each time, is not in it.
func watchHeap() (most func() int64) {
	done, found := make(chan struct{}), make(chan int64)
	go func() {
		peak := uint64(0)
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		for {
			select {
			case <-done:
				found <- int64(peak)
				return
			default:
			}
			runtime.GC()
			metrics.Read(sample)
			peak = max(peak, sample[0].Value.Uint64())
		}
	}()
	return func() int64 { close(done); return <-found }
}

// status gives a line of /proc/self/status, in bytes.
func status(name string) int64 {
	b, _ := os.ReadFile("/proc/self/status")
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return n << 10
}

// run measures in a child process.
func run(t *testing.T, what string, s Shape, cache string) result {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), envMeasure+"="+what, fmt.Sprintf("%s=%d %d %d", envShape, s.Machines, s.Points, s.Leaves), envCache+"="+cache)
	out, err := cmd.CombinedOutput()
	var r result
	_, text, ok := bytes.Cut(out, []byte("\nmeasured "))
	if err != nil || !ok || json.Unmarshal(text, &r) != nil {
		t.Fatalf("%s: %v\n%s", what, err, out)
	}
	if r.Error != "" {
		t.Errorf("%s: %s", what, r.Error)
	}
	t.Logf("%-9s %5d MiB peak RSS, %d MiB in use, %6.1f s CPU, %6.1f s: %s", what, r.RSS>>20, r.Live>>20, r.CPU, r.Wall, r.Note)
	return r
}

// keysIn gives the keys that are kept in a folder: one child's index is
// another's.
func keysIn(dir string) (*seal.Keyring, error) {
	name := filepath.Join(dir, "keys")
	if b, err := os.ReadFile(name); err == nil {
		return seal.Unmarshal(b)
	}
	keys, err := seal.NewKeyring()
	if err == nil {
		err = os.WriteFile(name, keys.Marshal(), 0o600)
	}
	return keys, err
}

// measure does one thing with a repository.
func measure(ctx context.Context, what string) (string, error) {
	var s Shape
	if _, err := fmt.Sscan(os.Getenv(envShape), &s.Machines, &s.Points, &s.Leaves); err != nil {
		return "", err
	}
	keys, err := keysIn(os.Getenv(envCache))
	if err != nil {
		return "", err
	}
	place, store, err := New(ctx, s, keys, os.Getenv(envCache))
	if err != nil {
		return "", err
	}
	repo := &wire.Repo{Path: "/nowhere", Store: store, Dirs: config.Dirs{Cache: os.Getenv(envCache)}}
	cat := repo.NewCatalogue(ctx, 8<<20)
	defer cat.Close()
	switch what {
	case "nothing":
		return place.String(), place.Make()
	case "gc":
		return collect(ctx, s, place, store, cat)
	case "check":
		r, err := job.Check(ctx, store, cat, job.CheckOptions{})
		if err != nil {
			return "", err
		}
		if r.Packs < s.Packs() || r.Points != s.Sessions() || len(r.Findings) > 0 {
			return "", fmt.Errorf("%d packs, %d points, %d findings: %+v", r.Packs, r.Points, len(r.Findings), r.Findings[:min(3, len(r.Findings))])
		}
		return fmt.Sprintf("%d packs, %d points, nothing wrong", r.Packs, r.Points), nil
	case "forget":
		f := &job.Forget{Store: store, Catalogue: cat, Now: time.Now, Reason: "scale"}
		groups, err := f.Plan(ctx, retention.Rules{Last: s.Points - 1}, nil)
		if err != nil {
			return "", err
		}
		drops := 0
		for _, g := range groups {
			drops += len(g.Drops())
		}
		if drops != s.Machines || len(f.Unread) > 0 {
			return "", fmt.Errorf("%d would go, %d unread", drops, len(f.Unread))
		}
		return fmt.Sprintf("%d of %d points would go", drops, s.Sessions()), nil
	case "mount":
		return mount(ctx, s, cat, store)
	case "reconcile", "backup":
		return hold(ctx, what, s, store, cat)
	}
	return "", fmt.Errorf("nobody knows how to measure %q", what)
}

// collect forgets the last point of the last machine and collects: all that
// this one stored goes, and nothing else.
func collect(ctx context.Context, s Shape, place *Place, store *chunkstore.Store, cat *wire.Catalogue) (string, error) {
	last := session(s.Machines-1, s.Points-1)
	if err := store.Drop(ctx, last, chunkstore.Note{Time: time.Now()}); err != nil {
		return "", err
	}
	r, err := job.GC(ctx, store, cat, nil, gc.Options{RewriteBelow: 0.5, Wait: time.Minute}, func(string) {})
	if err != nil {
		return "", err
	}
	want := s.dataPacks(s.Machines-1, s.Points-1) + 1
	gone := 0
	for name := range place.gone {
		if strings.HasPrefix(name, "packs/") {
			gone++
			if !strings.HasPrefix(name, "packs/"+last.String()) {
				return "", fmt.Errorf("%s is gone", name)
			}
		}
	}
	if r.PacksRemoved != want || gone != want || r.Points != s.Sessions()-1 {
		return "", fmt.Errorf("%d packs of %d removed, %d gone, %d points: %+v", r.PacksRemoved, want, gone, r.Points, r)
	}
	return fmt.Sprintf("%d packs, %d points, %d packs removed", r.Packs, r.Points, r.PacksRemoved), nil
}

// mount lists all points through a mount, opens one, and walks its disk's map.
func mount(ctx context.Context, s Shape, cat *wire.Catalogue, store *chunkstore.Store) (string, error) {
	dir, err := os.MkdirTemp("", "cairn-scale-")
	if err != nil {
		return "", err
	}
	defer os.Remove(dir)
	// On a slow machine the first listing, which reads all manifests, takes longer
	// than one request of a mount may.
	if _, err := cat.Points(ctx); err != nil {
		return "", err
	}
	server, err := fs.Mount(ctx, dir, cat, fs.Options{})
	if err != nil {
		return "", err
	}
	defer server.Unmount(ctx)
	start := time.Now()
	// From another process: go's runtime does not know that it waits for itself.
	out, err := exec.CommandContext(ctx, "find", dir, "-mindepth", "2", "-maxdepth", "2", "-type", "d").Output()
	if err != nil {
		return "", err
	}
	listed := time.Since(start)
	points := bytes.Count(out, []byte("\n"))
	disk := filepath.Join(dir, fmt.Sprintf("vm%04d/latest", s.Machines-1))
	names, err := exec.CommandContext(ctx, "find", "-L", disk, "-maxdepth", "3", "-size", "+1000G").Output()
	// It complains of the guest that cannot be read.
	if len(names) == 0 || points < s.Sessions() {
		return "", fmt.Errorf("%d points, disks %q: %v", points, names, err)
	}
	m, err := cat.Manifest(ctx, session(s.Machines-1, s.Points-1).String())
	if err != nil {
		return "", err
	}
	walk, err := restorepoint.OpenMap(store.NewReader(8<<20), m.Disks[0].MapRoot, m.Disks[0].Size)
	if err != nil {
		return "", err
	}
	extents, chunks := 0, 0
	err = walk.Extents(ctx, func(e restorepoint.Extent) error { extents, chunks = extents+1, chunks+e.Chunks; return nil })
	if chunks < s.Leaves*3900 {
		return "", fmt.Errorf("%d chunks in the map", chunks)
	}
	return fmt.Sprintf("%d points listed in %.1f s; the last one's map has %d extents", points, listed.Seconds(), extents), err
}

// hookless is a store whose packs have no chunks to tell of: what an index of
// so many packs takes without hooks, which would not fit this disk.
type hookless struct{ *chunkstore.Store }

func (hookless) ReadFooter(context.Context, chunkstore.PackRef) (*pack.Footer, error) {
	return &pack.Footer{Kind: pack.KindMap}, nil
}

// hold builds the index, or opens it and backs up 1 GiB of changes of the last
// machine.
func hold(ctx context.Context, what string, s Shape, store *chunkstore.Store, cat *wire.Catalogue) (string, error) {
	dir := os.Getenv(envCache)
	if what == "reconcile" {
		x, err := index.Rebuild(ctx, dir, hookless{store}, index.Options{})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%d packs", s.Packs()), x.Close()
	}
	x, err := index.Open(ctx, dir, hookless{store}, index.Options{Progress: func(done, total int) {
		if total > 10 {
			panic("the index is built anew")
		}
	}})
	if err != nil {
		return "", err
	}
	defer x.Close()
	opened := status("VmHWM")
	parent, err := cat.Manifest(ctx, session(s.Machines-1, s.Points-1).String())
	if err != nil {
		return "", err
	}
	w, err := store.Begin(ctx, x, []byte("{}"))
	if err != nil {
		return "", err
	}
	defer w.Close()
	m, err := restorepoint.OpenMap(store.NewReader(8<<20), parent.Disks[0].MapRoot, DiskSize)
	if err != nil {
		return "", err
	}
	b, err := restorepoint.NewBuilder(ctx, w, m, DiskSize)
	if err != nil {
		return "", err
	}
	random := rand.NewChaCha8([32]byte{})
	batches := min(1024, s.Leaves)
	for i := range batches {
		data, err := w.Buffer(ctx)
		if err != nil {
			return "", err
		}
		_, _ = random.Read(data)
		first := int64(i) * int64(s.Leaves/batches) * leafChunks
		parents := make([]chunk.Loc, len(data)/chunk.Size)
		if err := b.ParentLocs(first, parents); err != nil {
			return "", err
		}
		err = w.Append(ctx, &chunkstore.Batch{Data: data, Parent: parents, Placed: func(locs []chunk.Loc) error { return b.Set(first, locs) }})
		if err != nil {
			return "", err
		}
	}
	for _, step := range []func() error{func() error { return w.Flush(ctx) }, b.Finish, func() error { return w.FlushRecords(ctx) }} {
		if err := step(); err != nil {
			return "", err
		}
	}
	root, err := json.Marshal(b.Root())
	if err != nil {
		return "", err
	}
	if err := w.Commit(ctx, root); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d MiB at opening; %d MiB of changes", opened>>20, w.Statistics().ChunksNew>>8), nil
}
