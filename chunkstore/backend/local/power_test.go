package local

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/chunkstoretest"
	"cairn/chunkstore/gc"
	"cairn/chunkstore/pack"
)

const diskRoot = "/repository"

// on gives the place on a disk, as a new process has it.
func on(f files) *Dir { return newDir(diskRoot, f) }

// errKilled is of a process that is killed: it does nothing any more.
var errKilled = errors.New("the process was killed")

// place is a Dir that keeps account of what it was told, for the test.
type place struct {
	*Dir
	w *world
}

// PutsAtOnce keeps a session to one call at a time, or a seed would not replay.
func (place) PutsAtOnce() int { return 1 }

// Put implements backend.Backend.
func (p place) Put(ctx context.Context, name string, data []byte) error {
	p.w.begun[name] = append(p.w.begun[name], bytes.Clone(data))
	err := p.Dir.Put(ctx, name, data)
	if err == nil {
		p.w.there[name], p.w.gone[name] = true, false
	}
	return err
}

// Delete implements backend.Backend.
func (p place) Delete(ctx context.Context, name string) error {
	p.w.there[name] = false
	err := p.Dir.Delete(ctx, name)
	if err == nil {
		p.w.gone[name] = true
	}
	return err
}

// Sync implements backend.Syncer.
func (p place) Sync(ctx context.Context, prefix string) error {
	if p.w.deaf {
		return nil
	}
	return p.Dir.Sync(ctx, prefix)
}

// world is some nights of a host on a disk in memory.
type world struct {
	rnd    *rand.Rand
	disk   *disk
	mutate func(files) files // nil: as it should be
	deaf   bool              // a mutant: what others left is not synced
	killed bool

	begun map[string][][]byte // what was ever put under a name
	there map[string]bool     // put, and not deleted
	gone  map[string]bool     // deleted, and not put again

	config *chunkstore.Config
	index  chunkstoretest.Index
	points []*point // committed, or perhaps
	counts map[string]int
}

// reconcile takes in what is listed: a dead session may not have told of it.
func reconcile(ctx context.Context, x chunkstoretest.Index, store *chunkstore.Store) error {
	return store.Packs(ctx, func(ref chunk.PackRef, _ int64) error {
		f, err := store.ReadFooter(ctx, ref)
		if err != nil || f.Kind != pack.KindData {
			return err
		}
		ids, err := store.ChunkIDs(ctx, ref)
		if err != nil {
			return err
		}
		return x.Add(ctx, ref, ids)
	})
}

// point is what a session committed.
type point struct {
	id                           chunk.SessionID
	chunks                       []uint64
	confirmed, dropping, dropped bool
}

// chunkOf makes the chunk of a number.
func chunkOf(n uint64) []byte {
	b := make([]byte, chunk.Size)
	binary.LittleEndian.PutUint64(b, n)
	return b
}

// body is a commit: in which record of which map pack the chunks' places stand.
type body struct {
	Pack   string `json:"pack"`
	Record int    `json:"record"`
}

type chunkPlace struct {
	Pack string `json:"pack"`
	N    int    `json:"n"`
}

func newWorld(seed uint64, mutate func(files) files) *world {
	return &world{rnd: rand.New(rand.NewPCG(seed, 7)), disk: newDisk(), mutate: mutate, begun: map[string][][]byte{}, there: map[string]bool{},
		gone: map[string]bool{}, index: chunkstoretest.Index{}, counts: map[string]int{}}
}

// process gives the place as a new process has it.
func (w *world) process() place {
	w.killed = false
	var f files = w.disk
	if w.mutate != nil {
		f = w.mutate(f)
	}
	return place{on(f), w}
}

func openStore(ctx context.Context, b backend.Backend) (*chunkstore.Store, error) {
	c, err := chunkstore.ReadConfig(ctx, b)
	if err != nil {
		return nil, err
	}
	keys, err := chunkstore.Unlock(ctx, b, c, "")
	if err != nil {
		return nil, err
	}
	return chunkstore.NewStore(b, c, keys), nil
}

// nights works on the disk. Sometimes a process is killed, and what it did not
// sync stays to be seen by others until the power goes.
func (w *world) nights(ctx context.Context) error {
	p := w.process()
	if err := makeRoot(p.files, diskRoot); err != nil {
		return err
	}
	c, err := chunkstore.Init(ctx, p, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		return err
	}
	w.config = c
	for night := range 8 {
		store, err := openStore(ctx, w.process())
		if err == nil {
			err = reconcile(ctx, w.index, store)
		}
		if err != nil {
			return err
		}
		if w.rnd.IntN(3) == 0 {
			// Half of them die between an object's name and the fsync of it.
			left, only := w.rnd.IntN(60), ""
			if w.rnd.IntN(2) == 0 {
				left, only = w.rnd.IntN(8), "syncdir"
			}
			call := w.disk.call
			w.disk.call = func(op, path string) error {
				if only == "" || only == op {
					left--
				}
				w.killed = w.killed || left < 0
				if w.killed {
					return errKilled
				}
				return call(op, path)
			}
			err = w.night(ctx, store, night)
			w.disk.call = call
			if w.killed {
				w.counts["processes killed"]++
				continue
			}
		} else {
			err = w.night(ctx, store, night)
		}
		if err != nil {
			return fmt.Errorf("night %d: %w", night, err)
		}
	}
	return nil
}

func (w *world) night(ctx context.Context, store *chunkstore.Store, night int) error {
	if err := w.backUp(ctx, store); err != nil {
		return err
	}
	if night > 1 && w.rnd.IntN(2) == 0 {
		p := w.points[w.rnd.IntN(len(w.points))]
		if p.confirmed && !p.dropping {
			p.dropping = true
			if err := store.Drop(ctx, p.id, chunkstore.Note{}); err != nil {
				return err
			}
			p.dropped = true
		}
	}
	if night%3 != 2 {
		return nil
	}
	r, err := gc.Collect(ctx, store, collecting(store))
	w.counts["packs removed"] += r.PacksRemoved
	return err
}

func collecting(store *chunkstore.Store) gc.Options {
	return gc.Options{RewriteBelow: 0.7, FenceAfter: time.Nanosecond, Trace: func(ctx context.Context, c chunkstore.Commit, t chunk.Tracer) error {
		r := store.NewReader(1 << 20)
		ref, record, places, err := readMap(ctx, r, c.Body)
		if err != nil || !t.Enter(ref, record) {
			return err
		}
		t.Record(ref, record)
		for _, p := range places {
			ref, err := chunkstore.ParsePackText(p.Pack)
			if err != nil {
				return err
			}
			t.Chunks(ref, p.N, 1)
		}
		return nil
	}}
}

func readMap(ctx context.Context, r *chunkstore.Reader, commit []byte) (ref chunk.PackRef, record int, places []chunkPlace, err error) {
	var b body
	if err := json.Unmarshal(commit, &b); err != nil {
		return ref, 0, nil, err
	}
	if ref, err = chunkstore.ParsePackText(b.Pack); err != nil {
		return ref, 0, nil, err
	}
	text, err := r.ReadRecord(ctx, ref, b.Record)
	if err != nil {
		return ref, 0, nil, err
	}
	return ref, b.Record, places, json.Unmarshal(text, &places)
}

// backUp makes a point.
func (w *world) backUp(ctx context.Context, store *chunkstore.Store) error {
	s, err := store.Begin(ctx, w.index, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	p := &point{id: s.ID()}
	for range 8 {
		p.chunks = append(p.chunks, 1+w.rnd.Uint64N(24))
	}
	data, err := s.Buffer(ctx)
	if err != nil {
		return err
	}
	data = data[:0]
	for _, n := range p.chunks {
		data = append(data, chunkOf(n)...)
	}
	var locs []chunk.Loc
	if err := s.Append(ctx, &chunkstore.Batch{Data: data, Placed: func(l []chunk.Loc) error { locs = slices.Clone(l); return nil }}); err != nil {
		return err
	}
	if err := s.Flush(ctx); err != nil {
		return err
	}
	var places []chunkPlace
	for _, l := range locs {
		ref, n, _, ok := s.Resolve(l, 1)
		if !ok {
			return errors.New("a chunk has no pack")
		}
		places = append(places, chunkPlace{chunkstore.PackText(ref), n})
	}
	text, err := json.Marshal(places)
	if err != nil {
		return err
	}
	loc, err := s.AddRecord(func(int) ([]byte, error) { return text, nil })
	if err == nil {
		err = s.FlushRecords(ctx)
	}
	if err != nil {
		return err
	}
	commit, err := json.Marshal(body{chunkstore.PackText(s.MapPack(loc.Pack)), loc.Record})
	if err != nil {
		return err
	}
	w.points = append(w.points, p)
	if err := s.Commit(ctx, commit); err != nil {
		return err
	}
	p.confirmed = true
	w.counts["commits"]++
	return nil
}

// objects holds what is left of a disk against what was said of objects: each
// is whole, none that was put is gone, none that was deleted is back.
func (w *world) objects(left *disk) error {
	seen := map[string]bool{}
	err := left.Walk(diskRoot, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		name := strings.TrimPrefix(path, diskRoot+"/")
		seen[name] = true
		data := left.find(path).data
		if !slices.ContainsFunc(w.begun[name], func(b []byte) bool { return bytes.Equal(b, data) }) {
			return fmt.Errorf("%s is not what was put there", name)
		}
		if w.gone[name] {
			return fmt.Errorf("%s was deleted, and is there", name)
		}
		return nil
	})
	for name, there := range w.there {
		if there && !seen[name] && err == nil {
			err = fmt.Errorf("%s was put, and is gone", name)
		}
	}
	return err
}

// readable reads all points of what is left, and misses none.
func (w *world) readable(ctx context.Context, store *chunkstore.Store) error {
	listed := map[chunk.SessionID]bool{}
	err := store.Committed(ctx, func(id chunk.SessionID) error { listed[id] = true; return nil })
	if err != nil {
		return err
	}
	r := store.NewReader(1 << 20)
	for _, p := range w.points {
		switch {
		case !listed[p.id] && p.confirmed && !p.dropping:
			return fmt.Errorf("point %s was confirmed, and is gone", p.id)
		case listed[p.id] && p.dropped:
			return fmt.Errorf("point %s was forgotten, and is listed", p.id)
		case listed[p.id]:
			if err := p.read(ctx, store, r); err != nil {
				return fmt.Errorf("point %s is listed: %w", p.id, err)
			}
		}
	}
	return nil
}

func (p *point) read(ctx context.Context, store *chunkstore.Store, r *chunkstore.Reader) error {
	commit, err := store.ReadCommit(ctx, p.id)
	if errors.Is(err, chunkstore.ErrAborted) && !p.confirmed {
		return nil
	}
	if err != nil {
		return err
	}
	_, _, places, err := readMap(ctx, r, commit)
	if err != nil {
		return err
	}
	got := make([]byte, chunk.Size)
	for i, at := range places {
		ref, err := chunkstore.ParsePackText(at.Pack)
		if err != nil {
			return err
		}
		if err := r.ReadChunks(ctx, ref, at.N, got); err != nil {
			return err
		}
		if !bytes.Equal(got, chunkOf(p.chunks[i])) {
			return fmt.Errorf("chunk %d: other bytes", i)
		}
	}
	return nil
}

// goesOn works on what is left: a new session, which meets an index that knows
// more than there is, and gc.
func (w *world) goesOn(ctx context.Context, left *disk) error {
	after := *w
	after.disk, after.points, after.counts = left, slices.Clone(w.points), map[string]int{}
	after.begun, after.there, after.gone = maps.Clone(w.begun), map[string]bool{}, map[string]bool{}
	after.index = maps.Clone(w.index)
	for i, p := range after.points {
		q := *p
		after.points[i] = &q
	}
	store, err := openStore(ctx, place{on(left), &after})
	if err != nil {
		return err
	}
	if err := after.backUp(ctx, store); err != nil {
		return fmt.Errorf("the next backup: %w", err)
	}
	for range 2 {
		if _, err := gc.Collect(ctx, store, collecting(store)); err != nil {
			return fmt.Errorf("gc: %w", err)
		}
	}
	if store, err = openStore(ctx, on(left)); err != nil {
		return err
	}
	return after.readable(ctx, store)
}

// survives looks at one cut; each tenth by the store, each 80th with work that
// goes on.
func (w *world) survives(ctx context.Context, n int, seed uint64) error {
	left := w.disk.cut(seed)
	if err := w.objects(left); err != nil || n%10 > 0 {
		return err
	}
	store, err := openStore(ctx, on(left))
	if w.config == nil && (errors.Is(err, chunkstore.ErrNoRepository) || errors.Is(err, backend.ErrNotExist)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := w.readable(ctx, store); err != nil || n%80 > 0 {
		return err
	}
	return w.goesOn(ctx, left)
}

// play makes cuts at every call of some nights until there are count, over as
// many seeds as that takes.
func play(t *testing.T, seed uint64, count int, mutate func(files) files, deaf bool) (cuts int, total map[string]int, found error) {
	const each = 3 // cuts at one call
	ctx := t.Context()
	total = map[string]int{}
	for ; cuts < count && found == nil; seed++ {
		cryptotest.SetGlobalRandom(t, seed)
		w := newWorld(seed, mutate)
		w.deaf = deaf
		drawn := rand.New(rand.NewPCG(seed, 8))
		w.disk.call = func(op, path string) error {
			for range each {
				if found != nil || cuts == count {
					break
				}
				cuts++
				s := drawn.Uint64()
				if err := w.survives(ctx, cuts, s); err != nil {
					found = fmt.Errorf("CAIRN_CUT_SEED=%d: cut %d, before call %d, %s %s, of seed %d: %w", seed, cuts, w.disk.calls, op, filepath.Base(path), s, err)
				}
			}
			return nil
		}
		if err := w.nights(ctx); err != nil && found == nil {
			found = fmt.Errorf("CAIRN_CUT_SEED=%d: %w", seed, err)
		}
		for k, n := range w.counts {
			total[k] += n
		}
		total["calls"] += w.disk.calls
	}
	return cuts, total, found
}

// Goal: what a place confirmed survives any cut of the power on a file system
// that keeps no more than fsync promises. Method: sessions, forgetting and gc on
// a disk in memory, and at each of its calls some of what a cut may leave.
// CAIRN_CUT_SEED and CAIRN_CUT_MEMORY choose seed and count.
func TestPowerCuts(t *testing.T) {
	count, seed := chunkstoretest.Number(t, "CAIRN_CUT_MEMORY", 20_000), chunkstoretest.Number(t, "CAIRN_CUT_SEED", 1)
	start := time.Now()
	cuts, total, err := play(t, uint64(seed), count, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cuts from seed %d on in %v: %v", cuts, seed, time.Since(start).Round(time.Millisecond), total)
}

// lazy leaves out fsyncs.
type lazy struct {
	files
	file, folder bool
}

func (l lazy) Create(path string) (file, error) {
	f, err := l.files.Create(path)
	return lazyFile{f, l.file}, err
}

func (l lazy) Open(path string) (file, error) {
	f, err := l.files.Open(path)
	return lazyFile{f, l.folder}, err
}

type lazyFile struct {
	file
	lazy bool
}

func (f lazyFile) Sync() error {
	if f.lazy {
		return nil
	}
	return f.file.Sync()
}

// shallow leaves out the fsync of the folder that a new folder is in.
type shallow struct{ files }

func (s shallow) Open(path string) (file, error) {
	f, err := s.files.Open(path)
	return lazyFile{f, path == diskRoot || path == "/" || strings.HasSuffix(path, "/packs")}, err
}

// TestPowerCutsFind: whoever leaves out an fsync is found.
func TestPowerCutsFind(t *testing.T) {
	for name, mutate := range map[string]func(files) files{
		"no fsync of files":              func(f files) files { return lazy{f, true, false} },
		"no fsync of folders":            func(f files) files { return lazy{f, false, true} },
		"no fsync of new folders' names": func(f files) files { return shallow{f} },
	} {
		cuts, _, err := play(t, 1, 2000, mutate, false)
		t.Logf("%s: cut %d: %v", name, cuts, err)
		if err == nil {
			t.Errorf("%s: not found by %d cuts", name, cuts)
		}
	}
}

// TestUnsyncedRemainsAreFound: a session that uses what a killed one left, and
// does not sync it first, is found. That takes a kill between two calls and a
// cut soon after: the seed is one of those that have both.
func TestUnsyncedRemainsAreFound(t *testing.T) {
	const seed = 1018
	cuts, _, err := play(t, seed, 1500, nil, true)
	t.Logf("cut %d: %v", cuts, err)
	if err == nil {
		t.Error("not found")
	}
	if _, _, err := play(t, seed, 1500, nil, false); err != nil {
		t.Error(err)
	}
}
