package job

import (
	"context"
	"errors"
	"fmt"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// ErrLost: a point was stored, and a part of it was gone before the run had
// ended.
var ErrLost = fmt.Errorf("%w: the place lost what it had stored", ErrDamage)

// readBack makes sure that all is there that the point's maps name. What is
// missing is stored anew: its chunks are read from the fleece once more.
func (b *Backup) readBack(ctx context.Context, session *chunkstore.Session) error {
	lost, err := session.ReadBack(ctx)
	if err != nil || len(lost) == 0 {
		return err
	}
	b.warn("the place lost %d packs right after it had stored them: they are stored anew; look at the place", len(lost))
	r := refill{store: b.Store, session: session, ids: b.Index.ChunkIDs}
	for i := range b.plans {
		d := refillDisk{size: b.plans[i].disk.Size, root: b.plans[i].builder.Root()}
		if b.sources[i].Anywhere() {
			d.src = b.sources[i]
		}
		r.disks = append(r.disks, d)
	}
	return r.run(ctx, lost)
}

// refill stores packs anew that a session's maps name and that are gone.
type refill struct {
	store   *chunkstore.Store
	session *chunkstore.Session
	disks   []refillDisk
	// ids gives a data pack's chunk IDs, which the pack itself tells no more.
	ids func(ctx context.Context, ref chunk.PackRef) ([]chunk.ID, bool)
}

// refillDisk is a disk of the point.
type refillDisk struct {
	src  source // nil: it was read as it came, and cannot be read again
	size int64
	root restorepoint.MapRoot
}

// position is where a chunk lies: a disk and a byte on it.
type position struct {
	disk int
	off  int64
}

func (r *refill) run(ctx context.Context, lost []chunk.PackRef) error {
	var failed []error
	data := map[chunk.PackRef]map[int]position{}
	for _, ref := range lost {
		if !r.session.IsMap(ref) {
			data[ref] = map[int]position{}
		} else if err := r.session.RefillMap(ctx, ref); err != nil { // the maps first: the data is found by them
			failed = append(failed, err)
		}
	}
	if len(failed) == 0 && len(data) > 0 {
		if err := r.find(ctx, data); err != nil {
			failed = append(failed, err)
		}
	}
	for ref, at := range data {
		if len(failed) > 0 || ctx.Err() != nil {
			break
		}
		if err := r.pack(ctx, ref, at); err != nil {
			failed = append(failed, err)
		}
	}
	left, err := r.session.ReadBack(ctx)
	if err == nil && len(left) == 0 && len(failed) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(fmt.Errorf("%w: %d packs of this point are gone and could not be stored anew (%v): the point is there and not whole: see to the place, run the backup again with --full-read, and then cairn check", ErrLost, len(left), left),
		errors.Join(failed...), err)
}

// find looks where on the disks the chunks of lost packs lie.
func (r *refill) find(ctx context.Context, lost map[chunk.PackRef]map[int]position) error {
	reader := r.store.NewReader(traceCache)
	for i, d := range r.disks {
		m, err := restorepoint.OpenMap(reader, d.root, d.size)
		if err != nil {
			return err
		}
		err = m.Extents(ctx, func(e restorepoint.Extent) error {
			at, ok := lost[e.Pack]
			for n := 0; ok && n < e.Chunks; n++ {
				if p, seen := at[e.First+n]; !seen || r.disks[p.disk].src == nil {
					at[e.First+n] = position{i, e.Offset + int64(n)*chunk.Size}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pack stores what the point needs of one pack anew.
func (r *refill) pack(ctx context.Context, ref chunk.PackRef, at map[int]position) error {
	ids, ok := r.ids(ctx, ref)
	if !ok {
		return fmt.Errorf("%s: %w, and its chunk IDs are not known on this host", ref, backend.ErrNotExist)
	}
	return r.session.Refill(ctx, ref, ids, func(n int, dst []byte) (bool, error) {
		p, ok := at[n]
		if !ok {
			return false, nil
		}
		src := r.disks[p.disk].src
		if src == nil {
			return false, errors.New("QEMU pushed this disk's bytes, and they cannot be read again")
		}
		return true, fill(ctx, src, dst, p.off)
	})
}
