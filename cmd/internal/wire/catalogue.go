package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"sync"
	"unique"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/index"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Catalogue lists and opens a repository's restore points. What it knows it
// keeps: a point never changes. It may be used by many goroutines.
type Catalogue struct {
	repo   *Repo
	reader *chunkstore.Reader
	ahead  *restorepoint.ReadAhead
	nodes  *catalogue.Cache // of catalogues of files

	mu     sync.Mutex
	points map[chunk.SessionID]restorepoint.Summary
	bad    map[chunk.SessionID]error
	seeded bool
}

// NewCatalogue gives the catalogue; cacheBytes bounds decoded frames. It ends
// with Close.
func (r *Repo) NewCatalogue(ctx context.Context, cacheBytes int64) *Catalogue {
	reader := r.Store.NewReader(cacheBytes)
	return &Catalogue{repo: r, reader: reader, ahead: restorepoint.NewReadAhead(ctx, reader), nodes: catalogue.NewCache(reader, nodeCache),
		points: map[chunk.SessionID]restorepoint.Summary{}, bad: map[chunk.SessionID]error{}}
}

// MayRead is nil if guest data can be read with the repository's key;
// seal.ErrNoContentKey.
func (c *Catalogue) MayRead() error { return c.repo.Store.MayRead() }

// Close ends the catalogue's read-ahead.
func (c *Catalogue) Close() { c.ahead.Close() }

// Points gives all points, oldest first. Manifests that neither the index nor
// an earlier call knows are read.
func (c *Catalogue) Points(ctx context.Context) ([]restorepoint.Summary, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.seeded {
		if list, ok := index.ReadPoints(ctx, c.repo.IndexDir(), c.repo.Store); ok {
			c.take(list)
		}
		c.seeded = true
	}
	present := map[chunk.SessionID]bool{}
	var missing []chunk.SessionID
	err := c.repo.Store.Committed(ctx, func(id chunk.SessionID) error {
		present[id] = true
		_, known := c.points[id]
		if why, bad := c.bad[id]; !known && (!bad || mayPass(why)) {
			missing = append(missing, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list restore points: %w", err)
	}
	if err := c.load(ctx, missing); err != nil {
		return nil, err
	}
	out := make([]restorepoint.Summary, 0, len(c.points))
	for id, s := range c.points {
		if present[id] {
			out = append(out, s)
		} else {
			delete(c.points, id)
		}
	}
	for id := range c.bad { // forgotten since
		if !present[id] {
			delete(c.bad, id)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if !out[i].Time.Equal(out[j].Time) {
			return out[i].Time.Before(out[j].Time)
		}
		return out[i].ID < out[j].ID
	})
	return out, nil
}

// Seed takes the points that this process' own index knows: while it is open
// nobody else, and so not Points, can read it.
func (c *Catalogue) Seed(list []restorepoint.Summary) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.take(list)
	c.seeded = true
}

// take needs c.mu.
func (c *Catalogue) take(list []restorepoint.Summary) {
	for _, s := range list {
		if id, err := chunkstore.ParseSessionID(s.ID); err == nil {
			c.points[id] = shared(s)
		}
	}
}

// shared lets points that say the same have it in memory once: of 10,000, few
// say something of their own.
func shared(s restorepoint.Summary) restorepoint.Summary {
	s.Disks, s.Tags = slices.Clone(s.Disks), slices.Clone(s.Tags)
	texts := []*string{&s.VM, &s.Read, &s.Reason, &s.Consistency.Level, &s.Consistency.Reason}
	for i := range s.Disks {
		texts = append(texts, &s.Disks[i].Name)
	}
	for i := range s.Tags {
		texts = append(texts, &s.Tags[i])
	}
	for _, text := range texts {
		*text = unique.Make(*text).Value()
	}
	return s
}

// mayPass says whether why a manifest could not be read is of the place, and not
// of the manifest: then the next listing tries again.
func mayPass(why error) bool {
	var syntax *json.SyntaxError
	return why != nil && !pack.IsDamage(why) && !errors.As(why, &syntax)
}

// load reads manifests. A damaged one is remembered for Damaged, and does not
// hide the others. It needs c.mu.
func (c *Catalogue) load(ctx context.Context, ids []chunk.SessionID) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	var mu sync.Mutex
	for _, id := range ids {
		g.Go(func() error {
			m, err := c.Manifest(gctx, id.String())
			if gctx.Err() != nil {
				return gctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			delete(c.bad, id)
			switch {
			case errors.Is(err, chunkstore.ErrAborted), errors.Is(err, chunkstore.ErrNotPoint):
				c.bad[id] = nil // no point, and no damage
			case err != nil:
				c.bad[id] = err
			default:
				c.points[id] = shared(m.Summary())
			}
			return nil
		})
	}
	return g.Wait()
}

// Damaged gives the points whose manifests could not be read, and why.
func (c *Catalogue) Damaged() map[string]error {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]error{}
	for id, err := range c.bad {
		if err != nil {
			out[id.String()] = err
		}
	}
	return out
}

// Manifest reads a point's manifest.
func (c *Catalogue) Manifest(ctx context.Context, id string) (*restorepoint.Manifest, error) {
	return ReadManifest(ctx, c.repo.Store, id)
}

// ReadManifest reads a point's manifest from a store.
func ReadManifest(ctx context.Context, s *chunkstore.Store, id string) (*restorepoint.Manifest, error) {
	sid, err := chunkstore.ParseSessionID(id)
	if err != nil {
		return nil, err
	}
	body, err := s.ReadCommit(ctx, sid)
	if err != nil {
		return nil, fmt.Errorf("read restore point %s: %w", id[:8], err)
	}
	m := new(restorepoint.Manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("read restore point %s: %w", id[:8], err)
	}
	if m.Version != restorepoint.ManifestVersion {
		return nil, fmt.Errorf("restore point %s has a manifest of version %d: use a newer cairn", id[:8], m.Version)
	}
	if m.ID != id {
		return nil, fmt.Errorf("restore point %s: the manifest names another point, %s", id[:8], m.ID)
	}
	return m, nil
}

// Map opens a disk's map.
func (c *Catalogue) Map(m *restorepoint.Manifest, disk string) (*restorepoint.Map, error) {
	for _, d := range m.Disks {
		if d.Name == disk {
			return restorepoint.OpenMap(c.reader, d.MapRoot, d.Size)
		}
	}
	return nil, fmt.Errorf("restore point %s has no disk %q", m.ID[:8], disk)
}

// Image opens a disk's image.
func (c *Catalogue) Image(_ context.Context, m *restorepoint.Manifest, disk string) (restorepoint.Image, error) {
	dm, err := c.Map(m, disk)
	if err != nil {
		return nil, err
	}
	return restorepoint.NewImage(dm, c.ahead), nil
}

// Select finds the point that spec names.
func (c *Catalogue) Select(ctx context.Context, spec string) (*restorepoint.Manifest, error) {
	points, err := c.Points(ctx)
	if err != nil {
		return nil, err
	}
	s, err := restorepoint.Select(points, spec)
	if err != nil {
		return nil, err
	}
	return c.Manifest(ctx, s.ID)
}
