package chunkstore

import (
	"container/list"
	"context"
	"fmt"
	"sync"

	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// maxIDLists bounds the ID lists that an IDReader keeps: some 100 KiB each.
const maxIDLists = 48

// An IDReader gives the IDs of stored chunks, and keeps the lists that were
// asked for last. It may be used by many goroutines.
type IDReader struct {
	store *Store

	mu    sync.Mutex
	lists map[PackRef]*packIDs
	lru   list.List // of *packIDs, newest first
}

type packIDs struct {
	ref   PackRef
	elem  *list.Element
	ready chan struct{} // closed when ids or err is set
	ids   []chunk.ID
	err   error
}

// NewIDReader gives an IDReader with nothing in it.
func (s *Store) NewIDReader() *IDReader {
	return &IDReader{store: s, lists: map[PackRef]*packIDs{}}
}

// ReadIDs fills dst with the IDs of the chunks first… of a data pack.
func (r *IDReader) ReadIDs(ctx context.Context, ref PackRef, first int, dst []chunk.ID) error {
	for {
		l, shared, err := r.load(ctx, ref)
		if err != nil {
			if shared && retry(ctx, err) {
				continue
			}
			return err
		}
		if first < 0 || len(dst) > len(l.ids) || first > len(l.ids)-len(dst) {
			return fmt.Errorf("%s: %w: chunks %d+%d of %d", packName(ref), pack.ErrCorrupt, first, len(dst), len(l.ids))
		}
		copy(dst, l.ids[first:])
		return nil
	}
}

// load gives a pack's list; shared says that another caller's read was waited
// for.
func (r *IDReader) load(ctx context.Context, ref PackRef) (l *packIDs, shared bool, err error) {
	r.mu.Lock()
	if l = r.lists[ref]; l != nil {
		r.lru.MoveToFront(l.elem)
		r.mu.Unlock()
		select {
		case <-l.ready:
			return l, true, l.err
		case <-ctx.Done():
			return nil, true, ctx.Err()
		}
	}
	l = &packIDs{ref: ref, ready: make(chan struct{})}
	l.elem = r.lru.PushFront(l)
	r.lists[ref] = l
	if r.lru.Len() > maxIDLists {
		delete(r.lists, r.lru.Remove(r.lru.Back()).(*packIDs).ref)
	}
	r.mu.Unlock()
	l.ids, l.err = r.store.ChunkIDs(ctx, ref)
	if l.err != nil { // not kept: the next one tries again
		r.mu.Lock()
		if r.lists[ref] == l {
			r.lru.Remove(l.elem)
			delete(r.lists, ref)
		}
		r.mu.Unlock()
	}
	close(l.ready)
	return l, false, l.err
}
