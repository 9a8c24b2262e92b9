package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/index/restorepoint"
)

// readers is how many objects of the store are read at once. Each may hold a
// pack's list of chunk IDs, usually some 100 KiB.
const readers = 8

// difference is what the store has and the index has not, and the reverse.
type difference struct {
	listed     *chunkstore.PackList
	newPacks   []uint32 // numbers in listed
	gonePacks  map[chunkstore.PackRef]packEntry
	newPoints  []chunkstore.SessionID
	gonePoints []chunkstore.SessionID
}

// reconcile brings the index to the store's state. What it reads is in
// proportion to the differences. It is Open's: nobody else has x yet.
func (x *Index) reconcile(ctx context.Context, fresh bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	listed, err := x.listPacks(ctx)
	if err != nil {
		return err
	}
	if fresh {
		if err := x.sweepLists(ctx, listed); err != nil {
			return err
		}
	}
	d := difference{listed: listed}
	if err := x.readNext(); err != nil {
		return err
	}
	if err := x.comparePacks(ctx, listed, &d); err != nil {
		return err
	}
	if err := x.comparePoints(ctx, &d); err != nil {
		return err
	}
	return x.apply(ctx, d)
}

// listPacks gives the store's packs: there may be millions.
func (x *Index) listPacks(ctx context.Context) (*chunkstore.PackList, error) {
	listed := new(chunkstore.PackList)
	err := x.store.Packs(ctx, func(r chunkstore.PackRef, size int64) error {
		listed.Add(r, size)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the packs: %w", err)
	}
	return listed, nil
}

// sweepLists removes the lists of packs that are gone.
func (x *Index) sweepLists(ctx context.Context, listed *chunkstore.PackList) error {
	// Of a name its first half is enough: should two be alike, a list stays
	// that nobody reads.
	const part = 8
	starts := make([]uint64, 0, listed.Len())
	for _, p := range listed.All() {
		starts = append(starts, binary.BigEndian.Uint64(p.Ref.Hash[:part]))
	}
	slices.Sort(starts)
	return x.lists.sweep(ctx, func(name string) bool {
		b, err := hex.DecodeString(name)
		if err != nil || len(b) != len(pack.Hash{}) {
			return false
		}
		_, found := slices.BinarySearch(starts, binary.BigEndian.Uint64(b[:part]))
		return found
	})
}

func (x *Index) readNext() error {
	return x.db.View(func(txn *badger.Txn) error {
		v, ok, err := x.sealer.get(txn, nextKey())
		if err != nil {
			return err
		}
		x.next, _ = parseNumber(v)
		if !ok { // empty; or lost, then go on above all that are given
			o := badger.DefaultIteratorOptions
			o.Prefix, o.Reverse, o.PrefetchValues = []byte{prefixNumber}, true, false
			it := txn.NewIterator(o)
			defer it.Close()
			it.Seek([]byte{prefixNumber, 0xff, 0xff, 0xff, 0xff, 0xff})
			if it.Valid() {
				n, _ := parseNumber(it.Item().Key()[1:])
				x.next = n + 1
			}
		}
		return nil
	})
}

// comparePacks holds what is known of packs against the listing.
func (x *Index) comparePacks(ctx context.Context, listed *chunkstore.PackList, d *difference) error {
	known := make([]uint64, (listed.Len()+63)/64) // bits
	d.gonePacks = map[chunkstore.PackRef]packEntry{}
	err := x.sealer.scan(ctx, x.db, prefixPack, func(key, value []byte, ok bool) error {
		e, good := parsePackEntry(value)
		ref, good2 := parseRef(key[1:])
		if !ok || !good || !good2 {
			return nil // absent
		}
		if n, there := listed.Find(ref); there {
			known[n/64] |= 1 << (n % 64)
		} else {
			d.gonePacks[ref] = e
		}
		return nil
	})
	for n := range listed.Len() {
		if known[n/64]>>(n%64)&1 == 0 {
			d.newPacks = append(d.newPacks, uint32(n))
		}
	}
	return err
}

func (x *Index) comparePoints(ctx context.Context, d *difference) error {
	listed := map[chunkstore.SessionID]bool{}
	err := x.store.Committed(ctx, func(id chunkstore.SessionID) error {
		listed[id] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the points: %w", err)
	}
	err = x.sealer.scan(ctx, x.db, prefixPoint, func(key, value []byte, ok bool) error {
		var id chunkstore.SessionID
		copy(id[:], key[1:])
		_, good := parseDecision(value)
		switch {
		case !listed[id]:
			d.gonePoints = append(d.gonePoints, id)
		case ok && good:
			delete(listed, id)
		}
		return nil
	})
	for id := range listed {
		d.newPoints = append(d.newPoints, id)
	}
	slices.SortFunc(d.newPoints, func(a, b chunkstore.SessionID) int { return bytes.Compare(a[:], b[:]) })
	return err
}

// apply drops what is gone and reads what is new. Objects that cannot be read
// because they are damaged are named in the log and left out; check finds
// them too.
func (x *Index) apply(ctx context.Context, d difference) error {
	for ref, e := range d.gonePacks {
		if err := x.change(ctx, func() error { return x.dropPack(ref, e) }); err != nil {
			return err
		}
	}
	for _, id := range d.gonePoints {
		if err := x.change(ctx, func() error { return x.dropDecision(id) }); err != nil {
			return err
		}
	}
	if len(d.newPacks)+len(d.newPoints) == 0 {
		return nil
	}
	if err := x.readNew(ctx, d); err != nil {
		return err
	}
	return x.change(ctx, x.db.Sync)
}

// change runs one change of the database. When it fails the database is not
// what it should be, and the next Open builds it anew.
func (x *Index) change(ctx context.Context, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkFree(x.opts.free, x.dir, reserveFree); err != nil {
		return err
	}
	err := fn()
	x.fail(err)
	return err
}

// readNew reads several objects at once and takes them in one at a time.
func (x *Index) readNew(ctx context.Context, d difference) error {
	var writer sync.Mutex
	done, total := 0, len(d.newPacks)+len(d.newPoints)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	// take runs the change, if the object could be read, and counts it.
	take := func(object string, err error, change func() error) error {
		skip, err := x.passOver(object, err)
		if err != nil {
			return err
		}
		writer.Lock()
		defer writer.Unlock()
		if !skip {
			if err := x.change(gctx, change); err != nil {
				return err
			}
		}
		done++
		x.opts.Progress(done, total)
		return nil
	}
	for _, id := range d.newPoints {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			value, err := readDecision(gctx, x.store, id)
			return take("points/"+id.String(), err, func() error { return x.putDecision(id, value) })
		})
	}
	for _, n := range d.newPacks {
		if gctx.Err() != nil {
			break
		}
		ref := d.listed.At(int(n)).Ref
		g.Go(func() error {
			kind, ids, err := x.readPack(gctx, ref)
			if errors.Is(err, spread.ErrAway) && gctx.Err() == nil { // the next run tries again; absent costs an upload at most
				x.opts.Log.Warn("left out of the index", "object", ref.String(), "error", err.Error())
				err = backend.ErrNotExist
			}
			return take(ref.String(), err, func() error { return x.addPack(ref, kind, ids) })
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// passOver says whether an object is to be left out for the error met.
func (x *Index) passOver(what string, err error) (bool, error) {
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, backend.ErrNotExist): // went away since it was listed
		return true, nil
	case pack.IsDamage(err), errors.Is(err, errNotAPoint), errors.Is(err, errTooLarge):
		x.opts.Log.Warn("left out of the index", "object", what, "error", err.Error())
		return true, nil
	}
	return false, fmt.Errorf("read %s: %w", what, err)
}

// readPack gives what a pack is and, of a data pack, its chunk IDs.
func (x *Index) readPack(ctx context.Context, ref chunkstore.PackRef) (packKind, []chunk.ID, error) {
	if ids, ok := x.lists.read(ref); ok {
		return packData, ids, nil
	}
	// Names do not tell data packs from map packs, so the footer must.
	f, err := x.store.ReadFooter(ctx, ref)
	if err != nil {
		return 0, nil, err
	}
	if f.Kind == pack.KindMap {
		return packMap, nil, nil
	}
	ids, err := x.store.ChunkIDs(ctx, ref)
	return packData, ids, err
}

// errNotAPoint: a commit that this cairn does not understand.
var errNotAPoint = errors.New("not a manifest that this cairn knows")

// readDecision reads how a session was decided, and gives it as a 'c' value.
func readDecision(ctx context.Context, store Store, id chunkstore.SessionID) ([]byte, error) {
	body, err := store.ReadCommit(ctx, id)
	if errors.Is(err, chunkstore.ErrAborted) || errors.Is(err, chunkstore.ErrNotPoint) { // the catalogue of a point that is gone
		return decision{kind: pointAborted}.value()
	}
	if err != nil {
		return nil, err
	}
	var m restorepoint.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("%w: %v", errNotAPoint, err)
	}
	if m.Version != restorepoint.ManifestVersion || m.ID != id.String() {
		return nil, fmt.Errorf("%w: version %d, id %q", errNotAPoint, m.Version, m.ID)
	}
	return decision{pointCommitted, m.Summary()}.value()
}
