package job

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
	"cairn/index/restorepoint/retention"
)

// Forget is one run that forgets points, by rules or by name.
type Forget struct {
	Store     *chunkstore.Store
	Catalogue Catalogue
	Reason    string // in the points' records
	Now       func() time.Time

	// Untrusted are the points of Plan that no host vouches for, and why. They are
	// in no plan: they neither count nor go.
	Untrusted map[string]error

	// Unread are the points of Plan whose manifests or maps could not be read,
	// and why. A point without a manifest is in no plan: it stays.
	Unread map[string]error

	mu sync.Mutex // for Unread
}

// Plan decides by rules about the points of some VMs, or of all, and changes
// nothing.
func (f *Forget) Plan(ctx context.Context, rules retention.Rules, vms []string) ([]retention.Group, error) {
	points, manifests, err := f.points(ctx, vms)
	if err != nil {
		return nil, err
	}
	// What points hold is asked only where something is to go: to know it all
	// their maps are read.
	for _, g := range retention.Plan(points, rules) {
		if len(g.Drops()) == 0 {
			continue
		}
		if err := f.measure(ctx, g, points, manifests); err != nil {
			return nil, err
		}
	}
	return retention.Plan(points, rules), nil
}

// points lists what a plan needs to know.
func (f *Forget) points(ctx context.Context, vms []string) ([]retention.Point, map[string]*restorepoint.Manifest, error) {
	list, err := f.Catalogue.Points(ctx)
	if err != nil {
		return nil, nil, err
	}
	times, err := f.Store.CommitTimes(ctx)
	if err != nil {
		return nil, nil, err
	}
	pins, err := f.Store.Pins(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(vms) > 0 {
		list = slices.DeleteFunc(list, func(p restorepoint.Summary) bool { return !slices.Contains(vms, p.VM) })
	}
	manifests, err := f.manifests(ctx, list)
	if err != nil {
		return nil, nil, err
	}
	var points []retention.Point
	for _, s := range list {
		m := manifests[s.ID]
		id, err := chunkstore.ParseSessionID(s.ID)
		if m == nil || err != nil {
			continue
		}
		trusted, err := f.trusts(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		if !trusted {
			continue
		}
		stored, ok := times[id]
		if !ok {
			continue // forgotten by somebody since it was listed
		}
		pin, pinned := pins[id]
		points = append(points, retention.Point{ID: m.ID, VM: m.VM.Name, UUID: m.VM.UUID, Stored: stored, Label: m.Time, Tags: m.Tags,
			Pinned: pinned, PinReason: pin.Reason, Consistency: m.Consistency.Level, Mapped: -1, Used: used(m)})
	}
	return points, manifests, nil
}

// trusts says whether a point counts: one that somebody forged must not push out
// others.
func (f *Forget) trusts(ctx context.Context, id chunkstore.SessionID) (bool, error) {
	if !f.Store.Signs() {
		return true, nil
	}
	_, sig, err := f.Store.ReadPoint(ctx, id)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err == nil && sig.Err != nil {
		if f.Untrusted == nil {
			f.Untrusted = map[string]error{}
		}
		f.Untrusted[id.String()] = sig.Err
	}
	return err == nil && sig.Err == nil, nil // the former: gone since it was listed
}

// used is what the guest's filesystems said that they use, in bytes.
func used(m *restorepoint.Manifest) (n int64) {
	if m.Guest == nil {
		return 0
	}
	for _, fs := range m.Guest.Filesystems {
		n = min(n+max(0, min(fs.UsedBytes, restorepoint.MaxDiskSize)), restorepoint.MaxDiskSize) // a guest says what it wants
	}
	return n
}

// manifests reads several at once; of those that cannot be read it tells in
// Unread.
func (f *Forget) manifests(ctx context.Context, list []restorepoint.Summary) (map[string]*restorepoint.Manifest, error) {
	out := map[string]*restorepoint.Manifest{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	for _, s := range list {
		g.Go(func() error {
			m, err := f.Catalogue.Manifest(gctx, s.ID)
			if gctx.Err() != nil {
				return gctx.Err()
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if err != nil {
				f.unread(s.ID, err)
				return nil
			}
			m.Guest, m.Machine = slim(m.Guest), restorepoint.Machine{} // many are held at once
			out[s.ID] = m
			return nil
		})
	}
	return out, g.Wait()
}

// slim gives the part of what a guest said that a plan needs.
func slim(g *restorepoint.Guest) *restorepoint.Guest {
	if g == nil {
		return nil
	}
	return &restorepoint.Guest{Filesystems: g.Filesystems}
}

// unread needs f.mu.
func (f *Forget) unread(id string, err error) {
	if f.Unread == nil {
		f.Unread = map[string]error{}
	}
	f.Unread[id] = err
}

// measure tells the points of a group how much they hold.
func (f *Forget) measure(ctx context.Context, g retention.Group, points []retention.Point, manifests map[string]*restorepoint.Manifest) error {
	measure := restorepoint.NewMeasure(f.Store.NewReader(measureCache))
	for i := range points {
		p := &points[i]
		if p.VM != g.VM || p.UUID != g.UUID {
			continue
		}
		var chunks, spared int64
		for _, d := range manifests[p.ID].Disks {
			n, err := measure.Disk(ctx, d)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				f.unread(p.ID, err)
				chunks = -1
				break
			}
			chunks += n
			spared += max(0, min(d.Spared, d.Size)) // a full read makes no guest smaller
		}
		if p.Mapped = -1; chunks >= 0 {
			p.Mapped = chunks*chunk.Size + spared
		}
	}
	return nil
}

// measureCache bounds the decoded frames of maps that a plan keeps, in bytes.
const measureCache = 32 << 20

// Drop forgets points, one after the other: a run that ends in between is
// finished by the next one. One that is pinned by now stays, and the error says
// so. It gives the points forgotten.
func (f *Forget) Drop(ctx context.Context, ids []string) (done []string, err error) {
	note := chunkstore.Note{Time: f.Now().UTC().Truncate(time.Second), Host: Hostname(), Reason: f.Reason}
	var kept []error
	for _, id := range ids {
		sid, err := chunkstore.ParseSessionID(id)
		if err == nil {
			err = f.Store.Drop(ctx, sid, note)
		}
		switch {
		case errors.Is(err, chunkstore.ErrPinned):
			kept = append(kept, fmt.Errorf("%s: %w", id[:8], err))
		case err != nil:
			return done, errors.Join(append(kept, fmt.Errorf("forget %s: %w", id[:8], err))...)
		default:
			done = append(done, id)
		}
	}
	return done, errors.Join(kept...)
}

// UnreadIDs gives the points of Unread in order.
func (f *Forget) UnreadIDs() []string { return slices.Sorted(maps.Keys(f.Unread)) }
