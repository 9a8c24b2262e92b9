package powercut

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/gc"
	"cairn/index"
	"cairn/index/restorepoint"
)

// A disk of these tests is made of pieces, each of which is known by a number;
// 0 is a piece of zeros.
const (
	diskPieces = 12
	pieceSize  = 64 << 10
)

type content [diskPieces]int

func (c content) bytes() []byte {
	out := make([]byte, diskPieces*pieceSize)
	for i, n := range c {
		if n > 0 {
			_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(out[i*pieceSize : (i+1)*pieceSize]) // never fails
		}
	}
	return out
}

// wrapper changes how a place is written to, so that a test can be tested.
type wrapper func(dir string, d *local.Dir) backend.Backend

// host is the folder of a repository and of a cache, as a process of cairn has
// them open.
type host struct {
	place *local.Dir
	store *chunkstore.Store
	index *index.Index
	// rebuilt says that the index did not trust what it found.
	rebuilt bool
}

func repositoryDir(dir string) string { return filepath.Join(dir, "repository") }

// initHost makes a repository below dir.
func initHost(ctx context.Context, dir string, wrap wrapper) error {
	d, err := local.Create(repositoryDir(dir))
	if err != nil {
		return err
	}
	_, err = chunkstore.Init(ctx, wrapped(dir, d, wrap), chunkstore.InitOptions{Now: time.Now})
	return errors.Join(err, d.Close())
}

func wrapped(dir string, d *local.Dir, wrap wrapper) backend.Backend {
	if wrap == nil {
		return d
	}
	return wrap(repositoryDir(dir), d)
}

// openHost opens what is below dir, as a new process does.
func openHost(ctx context.Context, dir string, wrap wrapper) (h *host, err error) {
	d, err := local.Open(repositoryDir(dir))
	if err != nil {
		return nil, err
	}
	h = &host{place: d}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	b := wrapped(dir, d, wrap)
	config, err := chunkstore.ReadConfig(ctx, b)
	if err != nil {
		return nil, err
	}
	keys, err := chunkstore.Unlock(ctx, b, config, "")
	if err != nil {
		return nil, err
	}
	h.store = chunkstore.NewStore(b, config, keys)
	log := slog.New(&listener{func(text string) { h.rebuilt = h.rebuilt || text == "the index is built anew" }})
	h.index, err = index.Open(ctx, filepath.Join(dir, "cache"), h.store, index.Options{Log: log})
	return h, err
}

func (h *host) close() error { return errors.Join(h.index.Close(), h.place.Close()) }

// listener hears what the index says.
type listener struct{ hear func(string) }

func (l *listener) Enabled(_ context.Context, v slog.Level) bool { return v >= slog.LevelInfo }
func (l *listener) Handle(_ context.Context, r slog.Record) error {
	l.hear(r.Message)
	return nil
}
func (l *listener) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *listener) WithGroup(string) slog.Handler      { return l }

// backUp makes a point, on a parent's map if there is one. before is called when
// only the commit is left to do.
func (h *host) backUp(ctx context.Context, c content, parent *restorepoint.Manifest, before func(id string) error) (*restorepoint.Manifest, chunkstore.Statistics, error) {
	m, stats, err := h.backUpSession(ctx, c, parent, before)
	if err == nil {
		err = h.index.PutPoint(ctx, m.Summary())
	}
	return m, stats, err
}

func (h *host) backUpSession(ctx context.Context, c content, parent *restorepoint.Manifest, before func(id string) error) (m *restorepoint.Manifest, stats chunkstore.Statistics, err error) {
	s, err := h.store.Begin(ctx, h.index, nil)
	if err != nil {
		return nil, stats, err
	}
	defer s.Close()
	m = &restorepoint.Manifest{Version: restorepoint.ManifestVersion, ID: s.ID().String(), VM: restorepoint.VM{Name: "web01"},
		Time: time.Now().UTC(), Read: restorepoint.ReadFull, Consistency: restorepoint.Consistency{Level: restorepoint.ConsistencyCrash}}
	var base *restorepoint.Map
	if parent != nil {
		m.Parent = parent.ID
		id, err := chunkstore.ParseSessionID(parent.ID)
		if err != nil {
			return nil, stats, err
		}
		reader := h.store.NewReader(4 << 20)
		if err := s.BuildOn(ctx, id, func(t chunk.Tracer) error { return restorepoint.Trace(ctx, reader, parent.Disks[0], t) }); err != nil {
			return nil, stats, err
		}
		if base, err = restorepoint.OpenMap(reader, parent.Disks[0].MapRoot, parent.Disks[0].Size); err != nil {
			return nil, stats, err
		}
	}
	disk := c.bytes()
	b, err := restorepoint.NewBuilder(ctx, s, base, int64(len(disk)))
	if err != nil {
		return nil, stats, err
	}
	if err := appendDisk(ctx, s, b, disk, base != nil); err != nil {
		return nil, stats, err
	}
	if err := errors.Join(s.Flush(ctx), b.Finish(), s.FlushRecords(ctx)); err != nil {
		return nil, stats, err
	}
	m.Disks = []restorepoint.Disk{{Name: "vda", Size: int64(len(disk)), Format: "raw", MapRoot: b.Root()}}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, stats, err
	}
	if err := before(m.ID); err != nil {
		return nil, stats, err
	}
	return m, s.Statistics(), s.Commit(ctx, body)
}

func appendDisk(ctx context.Context, s *chunkstore.Session, b *restorepoint.Builder, disk []byte, onParent bool) error {
	const step = 4 * pieceSize
	for off := 0; off < len(disk); off += step {
		buf, err := s.Buffer(ctx)
		if err != nil {
			return err
		}
		buf = buf[:copy(buf[:step], disk[off:])]
		first := int64(off / chunk.Size)
		batch := &chunkstore.Batch{Data: buf, Placed: func(l []chunk.Loc) error { return b.Set(first, l) }}
		if onParent {
			batch.Parent = make([]chunk.Loc, len(buf)/chunk.Size)
			if err := b.ParentLocs(first, batch.Parent); err != nil {
				return err
			}
		}
		if err := s.Append(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// points lists the repository's points: those of its store, not of its index.
func (h *host) points(ctx context.Context) (map[string]*restorepoint.Manifest, error) {
	out := map[string]*restorepoint.Manifest{}
	err := h.store.Committed(ctx, func(id chunkstore.SessionID) error {
		body, err := h.store.ReadCommit(ctx, id)
		if errors.Is(err, chunkstore.ErrAborted) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("point %s is listed: %w", id, err)
		}
		m := new(restorepoint.Manifest)
		out[id.String()] = m
		return json.Unmarshal(body, m)
	})
	return out, err
}

// read reads a point's disk.
func (h *host) read(m *restorepoint.Manifest) ([]byte, error) {
	d, err := restorepoint.OpenMap(h.store.NewReader(4<<20), m.Disks[0].MapRoot, m.Disks[0].Size)
	if err != nil {
		return nil, err
	}
	i := restorepoint.NewImage(d, nil)
	out := make([]byte, i.Size())
	n, err := i.ReadAt(out, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return out[:n], err
}

// holds compares a point with what it must hold.
func (h *host) holds(m *restorepoint.Manifest, want content) error {
	got, err := h.read(m)
	if err == nil && !bytes.Equal(got, want.bytes()) {
		err = errors.New("other bytes")
	}
	if err != nil {
		return fmt.Errorf("point %s cannot be read back: %w", m.ID, err)
	}
	return nil
}

func (h *host) trace(ctx context.Context, p chunkstore.Commit, t chunk.Tracer) error {
	var m restorepoint.Manifest
	if err := json.Unmarshal(p.Body, &m); err != nil {
		return err
	}
	reader := h.store.NewReader(4 << 20)
	for _, d := range m.Disks {
		if err := restorepoint.Trace(ctx, reader, d, t); err != nil {
			return err
		}
	}
	return nil
}

// collect runs gc. Nobody else is at work, so who has not decided is dead.
func (h *host) collect(ctx context.Context) (*gc.Result, error) {
	return gc.Collect(ctx, h.store, gc.Options{Trace: h.trace, RewriteBelow: 0.5, FenceAfter: time.Nanosecond, About: "a test"})
}

// needed is what points need, pack by pack.
type needed map[chunk.PackRef]bool

func (n needed) Enter(chunk.PackRef, int) bool      { return true }
func (n needed) Record(ref chunk.PackRef, _ int)    { n[ref] = true }
func (n needed) Chunks(ref chunk.PackRef, _, _ int) { n[ref] = true }

// quiet collects twice with nobody else there: then nothing is left that no
// point needs.
func (h *host) quiet(ctx context.Context) error {
	for range 2 {
		v, err := h.store.List(ctx)
		if err != nil {
			return err
		}
		for id := range v.Collectors { // a day later they are old
			if err := h.store.RemoveCollector(ctx, id); err != nil {
				return err
			}
		}
		if _, err := h.collect(ctx); err != nil {
			return fmt.Errorf("a quiet gc: %w", err)
		}
	}
	v, err := h.store.List(ctx)
	if err != nil {
		return err
	}
	need, kept := needed{}, map[chunk.SessionID]bool{}
	rubbish, err := h.store.Commits(ctx, v, nil, func(p chunkstore.Commit) error {
		kept[p.Session] = true
		return h.trace(ctx, p, need)
	})
	if err != nil {
		return err
	}
	for _, p := range v.Packs.All() { // what has moved is needed where a forward leads
		ref := p.Ref
		if need[ref] {
			continue
		}
		if moved, err := h.target(ctx, need, v, ref); err != nil || !moved {
			return errors.Join(err, fmt.Errorf("%s is left though no point needs it", ref))
		}
	}
	for ref := range v.Forwards {
		if v.Packs.Has(ref) || !need[ref] {
			return fmt.Errorf("a forward of %s is left though no point needs it", ref)
		}
	}
	intents := 0
	for id := range v.Intents {
		if !kept[id] {
			intents++
		}
	}
	if n := intents + len(v.Collectors) + len(rubbish); n > 0 {
		return fmt.Errorf("%d intents, %d collectors and %d decisions are left though nobody needs them", intents, len(v.Collectors), len(rubbish))
	}
	return nil
}

// target says whether a forward of a pack that is needed leads to ref.
func (h *host) target(ctx context.Context, need needed, v *chunkstore.Inventory, ref chunk.PackRef) (bool, error) {
	for from := range v.Forwards {
		if !need[from] {
			continue
		}
		ways, err := h.store.Forwards(ctx, from)
		if err != nil {
			return false, err
		}
		for _, w := range ways {
			for _, r := range w.Runs {
				if r.To == ref {
					return true, nil
				}
			}
		}
	}
	return false, nil
}
