package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/gc"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// counted is a place that counts what is read from it.
type counted struct {
	backend.Backend
	reads, bytes atomic.Int64
}

func (c *counted) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.Backend.ReadAt(ctx, name, p, off)
}

// noIndex knows nothing: each point is built on its parent's map.
type noIndex struct{}

func (noIndex) Packs(context.Context, []chunk.ID) ([]chunkstore.PackRef, error) { return nil, nil }
func (noIndex) Add(context.Context, chunkstore.PackRef, []chunk.ID) error       { return nil }

// real is a repository in a folder, of one machine with many points.
type real struct {
	place *counted
	store *chunkstore.Store
	ids   []chunk.SessionID
	last  *restorepoint.Manifest
	rnd   *rand.Rand
	size  int64 // of the disk, bytes
}

func newReal(t *testing.T, size int64) *real {
	dir, err := local.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	r := &real{place: &counted{Backend: dir}, size: size, rnd: rand.New(rand.NewPCG(1, 2))}
	c, err := chunkstore.Init(t.Context(), r.place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(t.Context(), r.place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	r.store = chunkstore.NewStore(r.place, c, keys)
	return r
}

// point makes a point: a full one, or one in which share of the disk changed,
// in stretches of 64 KiB.
func (r *real) point(ctx context.Context, share float64) error {
	w, err := r.store.Begin(ctx, noIndex{}, []byte("{}"))
	if err != nil {
		return err
	}
	defer w.Close()
	var parent *restorepoint.Map
	if r.last != nil {
		if parent, err = restorepoint.OpenMap(r.store.NewReader(8<<20), r.last.Disks[0].MapRoot, r.size); err != nil {
			return err
		}
	}
	b, err := restorepoint.NewBuilder(ctx, w, parent, r.size)
	if err != nil {
		return err
	}
	const stretch = 64 << 10
	for off := int64(0); off < r.size; off += stretch {
		if parent != nil && r.rnd.Float64() >= share {
			continue
		}
		data, err := w.Buffer(ctx)
		if err != nil {
			return err
		}
		data = data[:stretch]
		for i := 0; i < len(data); i += 8 { // compresses to about a half
			for k := range 4 {
				data[i+k], data[i+4+k] = byte(r.rnd.Uint32()), 'a'
			}
		}
		first := off / chunk.Size
		err = w.Append(ctx, &chunkstore.Batch{Data: data, Placed: func(l []chunk.Loc) error { return b.Set(first, l) }})
		if err != nil {
			return err
		}
	}
	for _, step := range []func() error{func() error { return w.Flush(ctx) }, b.Finish, func() error { return w.FlushRecords(ctx) }} {
		if err := step(); err != nil {
			return err
		}
	}
	m := &restorepoint.Manifest{Version: restorepoint.ManifestVersion, ID: w.ID().String(), VM: restorepoint.VM{Name: "vm"},
		Time: when(0, len(r.ids)), Disks: []restorepoint.Disk{{Name: "vda", Size: r.size, MapRoot: b.Root()}}}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	r.last, r.ids = m, append(r.ids, w.ID())
	return w.Commit(ctx, body)
}

// cost is what a piece of work took.
type cost struct {
	wall, cpu    float64 // seconds
	reads, bytes int64
}

func (r *real) cost(work func() error) (c cost, err error) {
	used := func() float64 {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
	}
	start, cpu := time.Now(), used()
	reads, bytes := r.place.reads.Load(), r.place.bytes.Load()
	err = work()
	return cost{time.Since(start).Seconds(), used() - cpu, r.place.reads.Load() - reads, r.place.bytes.Load() - bytes}, err
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// measureCost makes a repository, and forgets and collects one point after the
// other, in turns with reading all data. It gives the medians of gc and of check.
func measureCost(t *testing.T, points int, size int64, share float64, rounds int) (collect, read cost) {
	ctx := t.Context()
	r := newReal(t, size)
	for range points {
		if err := r.point(ctx, share); err != nil {
			t.Fatal(err)
		}
	}
	repo := &wire.Repo{Path: "/nowhere", Store: r.store, Dirs: config.Dirs{Cache: t.TempDir()}}
	var all [2][]cost
	for round := range rounds {
		cat := repo.NewCatalogue(ctx, 8<<20)
		defer cat.Close()
		// One in the middle: some of it is needed by others.
		if err := r.store.Drop(ctx, r.ids[points/2+round], chunkstore.Note{}); err != nil {
			t.Fatal(err)
		}
		c, err := r.cost(func() error {
			res, err := job.GC(ctx, r.store, cat, nil, gc.Options{RewriteBelow: 0.5, Wait: time.Minute}, func(string) {})
			if err == nil && (res.Points != points-round-1 || res.PointsRemoved != 1) {
				err = fmt.Errorf("%+v", res)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		d, err := r.cost(func() error {
			rep, err := job.Check(ctx, r.store, cat, job.CheckOptions{ReadData: true})
			if err == nil && (len(rep.Findings) > 0 || rep.PacksRead != rep.Packs) {
				err = fmt.Errorf("%+v", rep)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		all[0], all[1] = append(all[0], c), append(all[1], d)
	}
	mid := func(cs []cost) cost {
		var v [4][]float64
		for _, c := range cs {
			for i, x := range []float64{c.wall, c.cpu, float64(c.reads), float64(c.bytes)} {
				v[i] = append(v[i], x)
			}
		}
		return cost{median(v[0]), median(v[1]), int64(median(v[2])), int64(median(v[3]))}
	}
	collect, read = mid(all[0]), mid(all[1])
	t.Logf("%3d points of %d MiB, %.1f %% changed: gc %.3f s (CPU %.3f), %d reads of %d KiB; reading all %.3f s (CPU %.3f), %d MiB: %.1f %% (CPU %.1f %%)", points, size>>20, share*100,
		collect.wall, collect.cpu, collect.reads, collect.bytes>>10, read.wall, read.cpu, read.bytes>>20, 100*collect.wall/read.wall, 100*collect.cpu/read.cpu)
	return collect, read
}

// TestCollectReadsLittle: gc after one of many points was forgotten reads maps
// and a few footers, and what it reads grows with what changed, not with the
// number of points times the disk.
func TestCollectReadsLittle(t *testing.T) {
	few, read := measureCost(t, 8, 48<<20, 0.02, 1)
	if few.bytes*10 > read.bytes {
		t.Errorf("gc reads %d bytes, all are %d", few.bytes, read.bytes)
	}
	many, _ := measureCost(t, 24, 48<<20, 0.02, 1)
	if most := few.reads*24/8 + few.reads/2; many.reads > most {
		t.Errorf("%d reads for 24 points, %d for 8: at most %d expected", many.reads, few.reads, most)
	}
}

// TestCampaignCollect holds gc's time against that of reading the data, with 25
// to 200 points.
func TestCampaignCollect(t *testing.T) {
	if os.Getenv("CAIRN_SCALE") == "" {
		t.Skip("set CAIRN_SCALE")
	}
	for _, points := range []int{25, 50, 100, 200} {
		collect, read := measureCost(t, points, 256<<20, 0.015, 3)
		if points == 100 && collect.wall > read.wall/10 {
			t.Errorf("gc takes %.1f %% of the time of reading the data", 100*collect.wall/read.wall)
		}
	}
}
