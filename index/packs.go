package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
)

// Packs gives the packs that hold these hooks, each once; a hook that is not
// known is passed over. Of several packs that hold a hook it gives one, an
// already given one before others.
func (x *Index) Packs(ctx context.Context, hooks []chunk.ID) ([]chunkstore.PackRef, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	x.life.RLock()
	defer x.life.RUnlock()
	if x.closed {
		return nil, errClosed
	}
	if !x.usable() {
		return nil, nil
	}
	var refs []chunkstore.PackRef
	err := x.db.View(func(txn *badger.Txn) error {
		given := map[uint32]bool{}
		for _, id := range hooks {
			numbers, err := x.holders(txn, hookOf(id))
			if err != nil {
				return err
			}
			if slices.ContainsFunc(numbers, func(n uint32) bool { return given[n] }) {
				continue
			}
			for _, n := range numbers {
				ref, ok, err := x.refOf(txn, n)
				if err != nil {
					return err
				}
				if ok {
					given[n] = true
					refs = append(refs, ref)
					break
				}
			}
		}
		return nil
	})
	if err != nil {
		x.fail(err)
		return nil, nil
	}
	return refs, nil
}

// holders gives the numbers of the packs that hold a hook.
func (x *Index) holders(txn *badger.Txn, h hook) ([]uint32, error) {
	v, ok, err := x.sealer.get(txn, hookKey(h))
	if err != nil || !ok {
		return nil, err
	}
	numbers, _ := parseHolders(v)
	return numbers, nil
}

// refOf gives the pack of a number.
func (x *Index) refOf(txn *badger.Txn, n uint32) (chunkstore.PackRef, bool, error) {
	v, ok, err := x.sealer.get(txn, numberKey(n))
	if err != nil || !ok {
		return chunkstore.PackRef{}, false, err
	}
	ref, ok := parseRef(v)
	return ref, ok, nil
}

// entry gives what is known of a pack.
func (x *Index) entry(txn *badger.Txn, r chunkstore.PackRef) (packEntry, bool, error) {
	v, ok, err := x.sealer.get(txn, packKey(r))
	if err != nil || !ok {
		return packEntry{}, false, err
	}
	e, ok := parsePackEntry(v)
	return e, ok, nil
}

// Add tells of a durable data pack and its chunk IDs in order. When the index
// fails this is no error: see Err.
func (x *Index) Add(ctx context.Context, ref chunkstore.PackRef, ids []chunk.ID) error {
	return x.write(ctx, func() error { return x.addPack(ref, packData, ids) })
}

// ChunkIDs gives a data pack's chunk IDs in order; false when they are not
// known here and the store must be asked.
func (x *Index) ChunkIDs(ctx context.Context, ref chunkstore.PackRef) ([]chunk.ID, bool) {
	x.life.RLock()
	defer x.life.RUnlock()
	if ctx.Err() != nil || !x.usable() {
		return nil, false
	}
	known := false
	err := x.db.View(func(txn *badger.Txn) error {
		e, ok, err := x.entry(txn, ref)
		known = ok && e.kind == packData
		return err
	})
	x.fail(err)
	if err != nil || !known {
		return nil, false
	}
	return x.lists.read(ref)
}

// addPack writes a pack that is not known yet. It needs x.mu.
func (x *Index) addPack(ref chunkstore.PackRef, kind packKind, ids []chunk.ID) error {
	if x.next == math.MaxUint32 {
		return errors.New("the index has no pack numbers left")
	}
	if len(ids) > maxList {
		return fmt.Errorf("%s: %d chunks are over the limit", ref, len(ids))
	}
	hooks := hooksOf(ids)
	b := x.db.NewWriteBatch()
	defer b.Cancel()
	known := false
	err := x.db.View(func(txn *badger.Txn) (err error) {
		if _, known, err = x.entry(txn, ref); err != nil || known {
			return err
		}
		for _, h := range hooks {
			numbers, err := x.holders(txn, h)
			if err != nil {
				return err
			}
			if len(numbers) == maxHolders {
				continue
			}
			// x.next is above all others: the list stays sorted.
			if err := x.set(b, hookKey(h), holdersValue(append(numbers, x.next))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || known {
		return err
	}
	if kind == packData {
		if err := x.lists.write(ref, ids); err != nil {
			return err
		}
	}
	err = errors.Join(
		x.set(b, nextKey(), numberValue(x.next+1)),
		x.set(b, numberKey(x.next), appendRef(nil, ref)),
		x.set(b, packKey(ref), packEntry{x.next, kind, uint32(len(ids))}.value()))
	if err != nil {
		return err
	}
	x.next++
	return b.Flush()
}

// dropPack forgets a pack. It needs x.mu.
func (x *Index) dropPack(ref chunkstore.PackRef, e packEntry) error {
	// Without its list a pack's hooks stay. They lead to a number that no
	// pack has any more, nor ever gets again: they are absent.
	ids, _ := x.lists.read(ref)
	b := x.db.NewWriteBatch()
	defer b.Cancel()
	err := x.db.View(func(txn *badger.Txn) error {
		for _, h := range hooksOf(ids) {
			numbers, err := x.holders(txn, h)
			if err != nil {
				return err
			}
			i := slices.Index(numbers, e.number)
			switch {
			case i < 0:
				continue
			case len(numbers) == 1:
				err = b.Delete(hookKey(h))
			default:
				err = x.set(b, hookKey(h), holdersValue(slices.Delete(numbers, i, i+1)))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = errors.Join(b.Delete(numberKey(e.number)), b.Delete(packKey(ref)))
	}
	if err == nil {
		err = b.Flush()
	}
	if err != nil {
		return err
	}
	return x.lists.remove(ref)
}

// hooksOf gives the hooks among IDs, sorted, each once.
func hooksOf(ids []chunk.ID) []hook {
	var hooks []hook
	for _, id := range ids {
		if id.IsHook() {
			hooks = append(hooks, hookOf(id))
		}
	}
	slices.SortFunc(hooks, func(a, b hook) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(hooks)
}
