package chunkstore

import (
	"context"
	"errors"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// maxKnown bounds the chunk IDs that a session holds at once. An entry costs
// some 45 bytes in the table and 16 in its pack's list.
const maxKnown = 800_000

// maxLists bounds the chunk IDs in lists that were loaded only to compare
// with a parent, 16 bytes each.
const maxLists = 1_500_000

// known finds chunks by ID among the packs that the session loaded or wrote.
// It is the pipeline's sorter's alone.
type known struct {
	session *Session
	table   map[chunk.ID]Loc
	groups  map[uint64]*group // of table's entries, by what they were loaded with
	tick    int64

	lists map[uint32]*idList // by pack in Session.refs
	held  int                // IDs in lists
}

// group is a set of IDs that come and go together: a pack's.
type group struct {
	ids   []chunk.ID
	first Loc
	used  int64
}

type idList struct {
	ids   []chunk.ID // nil: could not be read, do not try again
	moved bool       // the pack is gone, and forwards say where its chunks are
	used  int64
}

func newKnown(w *Session) *known {
	return &known{session: w, table: make(map[chunk.ID]Loc), groups: map[uint64]*group{}, lists: map[uint32]*idList{}}
}

// find gives a chunk's Loc.
func (k *known) find(id chunk.ID) (Loc, bool) {
	l, ok := k.table[id]
	return l, ok
}

// add takes the IDs of consecutive chunks from first on, under a group key
// that must be new. The slice becomes the table's.
func (k *known) add(key uint64, first Loc, ids []chunk.ID) {
	for len(k.table)+len(ids) > maxKnown && len(k.groups) > 0 {
		k.evict()
	}
	k.tick++
	k.groups[key] = &group{ids, first, k.tick}
	for i, id := range ids {
		if _, ok := k.table[id]; !ok {
			k.table[id] = first + Loc(i)
		}
	}
}

// evict drops the group that was loaded or hit longest ago.
func (k *known) evict() {
	var oldest uint64
	var old *group
	for key, g := range k.groups {
		if old == nil || g.used < old.used {
			oldest, old = key, g
		}
	}
	for i, id := range old.ids {
		if k.table[id] == old.first+Loc(i) {
			delete(k.table, id)
		}
	}
	delete(k.groups, oldest)
}

// list gives the chunk IDs of a stored pack, or nil when they cannot be read:
// then nothing in it is found, which costs space and no more.
func (k *known) list(ctx context.Context, i uint32) ([]chunk.ID, error) {
	k.tick++
	if l := k.lists[i]; l != nil {
		l.used = k.tick
		return l.ids, nil
	}
	k.session.mu.Lock()
	ref := k.session.refs[i]
	k.session.mu.Unlock()
	ids, moved, err := k.session.store.chunkIDs(ctx, ref, 0)
	if err != nil && !pack.IsDamage(err) && !errors.Is(err, backend.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		ids = nil
	}
	for k.held+len(ids) > maxLists && len(k.lists) > 0 {
		k.dropList()
	}
	k.lists[i] = &idList{ids, moved, k.tick}
	k.held += len(ids)
	return ids, nil
}

func (k *known) dropList() {
	var oldest uint32
	var old *idList
	for i, l := range k.lists {
		if old == nil || l.used < old.used {
			oldest, old = i, l
		}
	}
	k.held -= len(old.ids)
	delete(k.lists, oldest)
}

// load asks the index for hooks and takes the ID lists of the packs that it
// names. It says whether the index knew any of the hooks.
func (k *known) load(ctx context.Context, hooks []chunk.ID) (bool, error) {
	refs, err := k.session.index.Packs(ctx, hooks)
	if err != nil {
		return false, err
	}
	for _, ref := range refs {
		if _, ok := k.session.condemned[ref]; ok {
			continue
		}
		first := k.session.Loc(ref, 0)
		i, _ := k.session.ref(first)
		if g := k.groups[uint64(i)]; g != nil {
			k.tick++
			g.used = k.tick
			continue
		}
		ids, err := k.list(ctx, i)
		if err != nil {
			return false, err
		}
		// Only what maps that are there need keeps a forward: nothing new is
		// found by one.
		if len(ids) > 0 && !k.lists[i].moved {
			k.add(uint64(i), first, ids)
		}
	}
	return len(refs) > 0, nil
}
