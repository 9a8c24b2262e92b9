package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/cmd/internal/job"
	"cairn/fs/tree"
	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// nodeCache bounds the decoded nodes of catalogues of files, in bytes.
const nodeCache = 16 << 20

// maxParents is how many of the points before one are asked for a catalogue to
// start from.
const maxParents = 16

// clockSlack is what a guest's clock may be wrong by.
const clockSlack = 24 * time.Hour

// Files gives a point's stored catalogue of files. The error wraps
// catalogue.ErrNone when there is none.
func (c *Catalogue) Files(ctx context.Context, m *restorepoint.Manifest) (*catalogue.Point, error) {
	p, _, err := c.files(ctx, m.ID)
	return p, err
}

// files also gives the attempt that another catalogue would be.
func (c *Catalogue) files(ctx context.Context, id string) (*catalogue.Point, int, error) {
	sid, err := chunkstore.ParseSessionID(id)
	if err != nil {
		return nil, 0, err
	}
	body, _, next, err := c.repo.Store.LastCatalogue(ctx, sid)
	if errors.Is(err, backend.ErrNotExist) {
		return nil, next, fmt.Errorf("restore point %s: %w", id[:8], catalogue.ErrNone)
	}
	if err != nil {
		return nil, next, fmt.Errorf("the catalogue of restore point %s: %w", id[:8], err)
	}
	root, err := catalogue.DecodeRoot(body)
	if err == nil && root.Point != id {
		err = fmt.Errorf("%w: it names another point", catalogue.ErrCorrupt)
	}
	if err != nil {
		return nil, next, fmt.Errorf("the catalogue of restore point %s: %w", id[:8], err)
	}
	return &catalogue.Point{ID: id, Root: root, Nodes: c.nodes}, next, nil
}

// Walk makes a point's catalogue of files in memory. That of an earlier point
// is of help, and nothing is stored.
func (c *Catalogue) Walk(ctx context.Context, m *restorepoint.Manifest) (*catalogue.Point, error) {
	memory := &catalogue.Memory{Under: c.reader}
	root, _, err := c.build(ctx, m, memory, c.filesBefore(ctx, m), nil)
	if err != nil {
		return nil, err
	}
	return &catalogue.Point{ID: m.ID, Root: root, Nodes: catalogue.NewCache(memory, nodeCache)}, nil
}

// MakeOptions of Make. The zero value is good.
type MakeOptions struct {
	// Rebuild makes a new one, from the point alone, also where there is one.
	Rebuild  bool
	Progress job.Progress // nil: nobody is told
}

// Make stores a point's catalogue of files, unless there is one; fresh says
// that there was none. When it fails or ends early the point is as it was, and
// it can be called again.
func (c *Catalogue) Make(ctx context.Context, m *restorepoint.Manifest, o MakeOptions) (p *catalogue.Point, fresh bool, err error) {
	p, next, err := c.files(ctx, m.ID)
	if err == nil && !o.Rebuild {
		return p, false, nil
	}
	if err != nil && !errors.Is(err, catalogue.ErrNone) && !errors.Is(err, catalogue.ErrCorrupt) && !pack.IsDamage(err) {
		return nil, false, err
	}
	start := time.Now()
	var parent *catalogue.Point
	if !o.Rebuild {
		parent = c.filesBefore(ctx, m)
	}
	sid, err := chunkstore.ParseSessionID(m.ID)
	if err != nil {
		return nil, false, err
	}
	host, _ := os.Hostname() // only a label
	intent, err := json.Marshal(map[string]any{"catalogue": m.ID, "vm": m.VM.Name, "host": host, "time": start.UTC()})
	if err != nil {
		return nil, false, err
	}
	session, err := c.repo.Store.BeginCatalogue(ctx, sid, next, intent)
	if err != nil {
		return nil, false, err
	}
	defer session.Close()
	if parent != nil {
		if err := c.buildOn(ctx, session, parent); errors.Is(err, chunkstore.ErrNoBase) {
			parent = nil
		} else if err != nil {
			return nil, false, err
		}
	}
	root, stats, err := c.build(ctx, m, session, parent, o.Progress)
	if err != nil {
		return nil, false, err
	}
	root.Made = catalogue.Made{Incremental: stats.Incremental, Listed: stats.Listed, Inodes: stats.Inodes, Stored: stats.Stored,
		BytesStored: session.Statistics().BytesStored, DurationMS: time.Since(start).Milliseconds()}
	if parent != nil {
		root.Made.Parent = parent.ID
	}
	body, err := catalogue.EncodeRoot(root)
	if err != nil {
		return nil, false, err
	}
	err = session.Commit(ctx, body)
	if errors.Is(err, chunkstore.ErrDecided) {
		p, _, err := c.files(ctx, m.ID)
		return p, false, err
	}
	if err != nil {
		return nil, false, err
	}
	return &catalogue.Point{ID: m.ID, Root: root, Nodes: c.nodes}, true, nil
}

// buildOn makes sure that gc keeps what a catalogue will share with another.
func (c *Catalogue) buildOn(ctx context.Context, session *chunkstore.Session, parent *catalogue.Point) error {
	id, err := chunkstore.ParseSessionID(parent.ID)
	if err != nil {
		return err
	}
	return session.BuildOn(ctx, id, func(t chunk.Tracer) error { return catalogue.Trace(ctx, c.reader, parent.Root, t) })
}

// filesBefore gives the catalogue of the nearest point of the VM before this
// one that has one; nil when there is none near. What is wrong with it is of
// no concern: then more is read.
func (c *Catalogue) filesBefore(ctx context.Context, m *restorepoint.Manifest) *catalogue.Point {
	points, err := c.Points(ctx)
	if err != nil {
		return nil
	}
	tried := 0
	for _, s := range slices.Backward(points) {
		if s.VM != m.VM.Name || s.ID == m.ID || s.Time.After(m.Time) {
			continue
		}
		if p, _, err := c.files(ctx, s.ID); err == nil {
			return p
		}
		if tried++; tried == maxParents {
			break
		}
	}
	return nil
}

// build makes a point's catalogue into sink.
func (c *Catalogue) build(ctx context.Context, m *restorepoint.Manifest, sink catalogue.Sink, parent *catalogue.Point, progress job.Progress) (*catalogue.Root, catalogue.Statistics, error) {
	fail := func(err error) (*catalogue.Root, catalogue.Statistics, error) {
		return nil, catalogue.Statistics{}, err
	}
	t, err := c.tree(ctx, m)
	if err != nil {
		return fail(err)
	}
	sources, total, err := sourcesOf(ctx, t)
	if err != nil {
		return fail(err)
	}
	if parent != nil {
		before := &parentVolumes{now: c, m: m, parent: parent.Root, changed: map[string][][2]int64{}}
		if err := before.open(ctx, parent.ID); err != nil {
			if ctx.Err() != nil {
				return fail(context.Cause(ctx))
			}
			parent = nil // it may be damaged, or forgotten meanwhile
		} else if err := before.match(ctx, t, sources); err != nil {
			return fail(err)
		}
	}
	o := catalogue.Options{Latest: m.Time.Add(clockSlack)}
	if progress != nil {
		add, end := progress("catalogue of "+m.VM.Name, total)
		defer end()
		o.Progress = add
	}
	root, stats, err := catalogue.Build(ctx, sink, sources, parent, o)
	if err != nil {
		return nil, stats, fmt.Errorf("the catalogue of restore point %s: %w", m.ID[:8], err)
	}
	root.Point = m.ID
	return root, stats, mountsOf(ctx, t, root)
}

func (c *Catalogue) tree(ctx context.Context, m *restorepoint.Manifest) (*tree.Tree, error) {
	return tree.Open(ctx, m, func(disk string) (restorepoint.Image, error) { return c.Image(ctx, m, disk) })
}

// sourcesOf opens the volumes of a point; total is how many inodes they have.
func sourcesOf(ctx context.Context, t *tree.Tree) (sources []catalogue.Source, total int64, err error) {
	volumes, err := t.Volumes(ctx)
	if err != nil {
		return nil, 0, err
	}
	for i, v := range volumes {
		s := catalogue.Source{Volume: catalogue.Volume{Name: v.Name, Type: v.Type, UUID: v.UUID, Reason: v.Reason}}
		if v.Reason == "" {
			r, err := t.Reader(ctx, int32(i))
			switch {
			case err != nil && !tree.Lasting(err):
				return nil, 0, err
			case err != nil:
				s.Reason = err.Error()
			default:
				s.Reader = r
				if info := r.Info(); info.Inodes >= info.FreeInodes {
					total += int64(info.Inodes - info.FreeInodes)
				}
			}
		}
		sources = append(sources, s)
	}
	return sources, total, nil
}

// mountsOf adds the guest's view to a catalogue.
func mountsOf(ctx context.Context, t *tree.Tree, root *catalogue.Root) error {
	mounts, err := t.Mounts(ctx)
	if err != nil && !tree.Lasting(err) {
		return err
	}
	for _, mount := range mounts {
		root.Mounts = append(root.Mounts, catalogue.Mount{Path: mount.Path, Volume: int(mount.Volume), Dir: mount.Dir})
	}
	problems, err := t.Problems(ctx)
	if err != nil {
		return err
	}
	for _, p := range problems {
		root.Problems = append(root.Problems, p.Where+": "+p.Reason)
	}
	return nil
}

// parentVolumes matches a point's volumes with those of an earlier one.
type parentVolumes struct {
	now     *Catalogue
	m       *restorepoint.Manifest // the point's
	parent  *catalogue.Root
	old     *restorepoint.Manifest
	tree    *tree.Tree // the earlier point's
	volumes []tree.Volume
	changed map[string][][2]int64 // by disk, in bytes
}

func (p *parentVolumes) open(ctx context.Context, id string) error {
	var err error
	if p.old, err = p.now.Manifest(ctx, id); err != nil {
		return err
	}
	if p.tree, err = p.now.tree(ctx, p.old); err != nil {
		return err
	}
	p.volumes, err = p.tree.Volumes(ctx)
	return err
}

// match finds the volumes of before, by type and UUID. Of one that lies in the
// same place on the same disks it is known what changed.
func (p *parentVolumes) match(ctx context.Context, t *tree.Tree, sources []catalogue.Source) error {
	volumes, err := t.Volumes(ctx)
	if err != nil {
		return err
	}
	for i := range sources {
		s, v := &sources[i], &volumes[i]
		if s.Reader == nil {
			continue
		}
		j := p.volume(v)
		if j < 0 {
			continue
		}
		s.Before = &catalogue.Before{Volume: j}
		listed := &p.parent.Volumes[j]
		k := slices.IndexFunc(p.volumes, func(o tree.Volume) bool { return o.Name == listed.Name && o.Type == v.Type && o.UUID == v.UUID })
		if k < 0 || len(v.Extents) == 0 || !slices.Equal(v.Extents, p.volumes[k].Extents) || v.Size != p.volumes[k].Size {
			continue // only what is equal is shared
		}
		if _, ok := s.Reader.(filesystem.InodeRecords); !ok {
			continue
		}
		r, err := p.tree.Reader(ctx, int32(k))
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		}
		s.Before.Reader = r
		s.Before.Changed = func(ctx context.Context, fn func(start, end int64) error) error { return p.changes(ctx, v, fn) }
	}
	return nil
}

// volume finds a volume in the earlier catalogue, or -1. Of two with one UUID,
// as a copied disk has it, the name decides.
func (p *parentVolumes) volume(v *tree.Volume) int {
	is := func(o catalogue.Volume) bool { return o.Top != nil && o.Type == v.Type && o.UUID == v.UUID }
	named := slices.IndexFunc(p.parent.Volumes, func(o catalogue.Volume) bool { return is(o) && o.Name == v.Name })
	if named >= 0 || v.UUID == "" {
		return named
	}
	return slices.IndexFunc(p.parent.Volumes, is)
}

// changes gives what of a volume may differ between the points.
func (p *parentVolumes) changes(ctx context.Context, v *tree.Volume, fn func(start, end int64) error) error {
	for _, e := range v.Extents {
		ranges, err := p.disk(ctx, e.Disk)
		if err != nil {
			return err
		}
		for _, r := range ranges {
			start, end := max(r[0], e.DiskOffset), min(r[1], e.DiskOffset+e.Size)
			if start < end {
				if err := fn(start-e.DiskOffset+e.Offset, end-e.DiskOffset+e.Offset); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// disk gives what of a disk differs between the points.
func (p *parentVolumes) disk(ctx context.Context, name string) ([][2]int64, error) {
	if ranges, ok := p.changed[name]; ok {
		return ranges, nil
	}
	a, err := p.now.Map(p.m, name)
	if err != nil {
		return nil, err
	}
	b, err := p.now.Map(p.old, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", catalogue.ErrUnknownChanges, err)
	}
	ranges := [][2]int64{}
	err = a.Changed(ctx, b, func(start, end int64) error {
		ranges = append(ranges, [2]int64{start, end})
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %w", catalogue.ErrUnknownChanges, err) // of a damaged map that is not needed here
	}
	p.changed[name] = ranges
	return ranges, nil
}

// FilesState says whether a point has a catalogue of files: "stored", "none",
// or "damaged" with the error. Any other error is of the store. Only its root
// is looked at; check looks at all of it.
func (c *Catalogue) FilesState(ctx context.Context, id string) (root *catalogue.Root, state string, err error) {
	p, _, err := c.files(ctx, id)
	switch {
	case err == nil:
		return p.Root, "stored", nil
	case errors.Is(err, catalogue.ErrNone):
		return nil, "none", err
	case errors.Is(err, catalogue.ErrCorrupt), pack.IsDamage(err):
		return nil, "damaged", err
	}
	return nil, "", err
}
