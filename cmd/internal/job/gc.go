package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/gc"
	"cairn/chunkstore/pack"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// traceCache is what a walk of disk maps keeps of map packs, in bytes.
const traceCache = 16 << 20

// GC gives back the space of what no restore point needs. known are points that
// this host has seen: one of these, or another point's parent, whose manifest is
// lost is no run that died. warn is told of catalogues that cannot be read whole.
func GC(ctx context.Context, store *chunkstore.Store, cat Catalogue, known []restorepoint.Summary, o gc.Options, warn func(string)) (*gc.Result, error) {
	points, err := cat.Points(ctx)
	if err != nil {
		return nil, err
	}
	committed := map[string]bool{}
	for _, p := range known {
		committed[p.ID] = true
	}
	for _, p := range points {
		committed[p.Parent] = true
	}
	o.Committed = func(id chunk.SessionID) bool { return committed[id.String()] }
	reader := store.NewReader(traceCache)
	o.Trace = func(ctx context.Context, p chunkstore.Commit, t chunk.Tracer) error {
		if p.Catalogue {
			return traceCatalogue(ctx, reader, p, t, warn)
		}
		var m restorepoint.Manifest
		if err := json.Unmarshal(p.Body, &m); err != nil {
			return fmt.Errorf("%w: its manifest: %v", pack.ErrCorrupt, err)
		}
		if m.Version != restorepoint.ManifestVersion {
			return fmt.Errorf("it has a manifest of version %d: use a newer cairn", m.Version)
		}
		for _, d := range m.Disks {
			if err := restorepoint.Trace(ctx, reader, d, t); err != nil {
				return fmt.Errorf("%s@%s, disk %s: %w", m.VM.Name, restorepoint.DirName(m.Time), d.Name, err)
			}
		}
		return nil
	}
	return gc.Collect(ctx, store, o)
}

// traceCatalogue traces a catalogue of files. No point depends on one: of one
// that is damaged what can be read is kept.
func traceCatalogue(ctx context.Context, reader *chunkstore.Reader, p chunkstore.Commit, t chunk.Tracer, warn func(string)) error {
	root, err := catalogue.DecodeRoot(p.Body)
	if err == nil {
		err = catalogue.Trace(ctx, reader, root, t)
	}
	if pack.IsDamage(err) || errors.Is(err, catalogue.ErrCorrupt) || errors.Is(err, backend.ErrNotExist) {
		warn(fmt.Sprintf("the catalogue of files of point %s is damaged: %v: make it anew with: cairn catalogue --rebuild %s", p.ID.String()[:8], err, p.ID.String()[:8]))
		return nil
	}
	return err
}
