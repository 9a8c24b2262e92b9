package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// Index is what a Session asks where chunks may be, and tells where they are
// now. It is a hint: a wrong answer costs space or a read, never data.
type Index interface {
	// Packs gives the packs that hold these hooks (chunk.ID.IsHook), each
	// once; a hook that is not known is passed over.
	Packs(ctx context.Context, hooks []chunk.ID) ([]PackRef, error)
	// Add tells of a durable data pack.
	Add(ctx context.Context, ref PackRef, ids []chunk.ID) error
}

// targetPack is the stored size at which a pack is closed, in bytes.
const targetPack = 16 << 20

// commitTimeout bounds storing the commit and reading it back.
const commitTimeout = time.Minute

const (
	newBit    = Loc(1) << 63
	packShift = 24 // chunk in pack: pack.MaxChunks is less than 1<<24
)

// isNew says whether the chunk is one of the session's own.
func isNew(l Loc) bool { return l&newBit != 0 }

// Statistics counts what a session did.
type Statistics struct {
	ChunksNew   int64
	ChunksZero  int64
	ChunksKnown int64 // found stored, in the parent or elsewhere
	BytesStored int64 // of all objects
	Packs       int64
}

// A Session stores chunks and records and commits them as one. Append,
// AddRecord, Flush and Commit are for one goroutine. After an error only
// Close makes sense.
type Session struct {
	store *Store
	index Index
	id    SessionID
	kind  RecordKind // of what it commits

	// ctx is that of the session's goroutines, which end with it: by the
	// caller's end, by fail and by Close.
	ctx    context.Context
	cancel context.CancelCauseFunc
	beats  sync.WaitGroup

	condemned condemned // nothing new may lie in these packs

	decided bool // a commit was tried

	parent     SessionID // what it was built on, and its body
	parentHash [32]byte

	pipe *pipeline // nil: it takes records only
	maps mapWriter

	sharded bool // a listing may show packs of which too little is left
	known   *known

	mu       sync.Mutex
	refs     []PackRef // table of Loc's packs
	refIndex map[PackRef]uint32
	used     map[uint32]bool // stored packs that the session's own maps name
	starts   []packStart     // own data packs, by first chunk
	resolved uint64          // own chunks below this number have a pack
	stats    Statistics
}

// packStart says which pack holds the session's new chunks from first on.
type packStart struct {
	first uint64
	ref   PackRef
}

// Begin starts a session: its intent is stored first of all.
func (s *Store) Begin(ctx context.Context, index Index, intent []byte) (*Session, error) {
	return s.begin(ctx, randomSession(), recordPoint, index, intent)
}

// begin starts a session that will commit a record of a kind. Without an index
// it takes records only.
func (s *Store) begin(ctx context.Context, id SessionID, kind RecordKind, index Index, intent []byte) (*Session, error) {
	if index != nil {
		if err := s.MayBackUp(); err != nil {
			return nil, err
		}
	}
	w := &Session{store: s, index: index, id: id, kind: kind, refIndex: map[PackRef]uint32{}, used: map[uint32]bool{}}
	name := intentsPrefix + id.String()
	body, err := s.sealRecord(name, recordIntent, intent)
	if err != nil {
		return nil, err
	}
	err = s.place.Put(ctx, name, body)
	if kind == recordCatalogue && errors.Is(err, backend.ErrExist) { // an earlier try's, or of one that runs now
		body, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("store the session's intent: %w", err)
	}
	w.stats.BytesStored = int64(len(body))
	// Only now, with the intent stored, what is being removed is read.
	if w.condemned, err = s.readCondemned(ctx); err != nil {
		return nil, err
	}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.beats.Go(w.beat)
	if index != nil {
		w.known = newKnown(w)
		w.pipe = startPipeline(w)
	}
	w.maps = mapWriter{session: w}
	w.sharded = s.Config.Shards != nil
	return w, nil
}

func randomSession() (id SessionID) {
	parsed, err := ParseSessionID(randomHex(len(id)))
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return parsed
}

// ID names the session.
func (w *Session) ID() SessionID { return w.id }

// fail ends the session's work with its first error.
func (w *Session) fail(err error) {
	if err != nil {
		w.cancel(err)
	}
}

// err gives what ended the session, if anything did.
func (w *Session) err() error { return context.Cause(w.ctx) }

// Close ends the session's goroutines and waits for them. What was not
// committed stays: a later session uses it, on whatever host, and gc keeps it
// for a while.
func (w *Session) Close() {
	w.cancel(errors.New("the session was closed"))
	if w.pipe != nil {
		w.pipe.wait()
	}
	w.beats.Wait()
	if w.kind != recordPoint || w.decided {
		return // a catalogue's session is also another host's that makes the same
	}
	// It will never commit: gc need not wait for it. That this fails is no
	// harm: then gc ends it a day later. Of one that stored something the abort
	// says how long that is kept.
	cause := w.err()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if w.Statistics().Packs > 0 {
		if err := w.store.Abort(ctx, w.id, fmt.Sprintf("it ended before its commit: %v", cause)); err != nil {
			return
		}
	}
	_ = w.store.RemoveIntent(ctx, w.id)
}

// closeTimeout bounds the last word of a session that failed.
const closeTimeout = 10 * time.Second

// beatEvery is how often a session says that it lives. gc ends one that has
// not stored anything for hours.
const beatEvery = 20 * time.Minute

// beat stores a sign of life now and then. That one fails is no harm: the next
// follows, and packs are signs of life, too.
func (w *Session) beat() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
			_ = w.store.place.Put(w.ctx, fmt.Sprintf("%s%s/%06d", beatsPrefix, w.id, n), nil)
		case <-w.ctx.Done():
			return
		}
	}
}

// Statistics gives the counts so far.
func (w *Session) Statistics() Statistics {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Loc gives the Loc of a chunk in a stored pack of the verified parent.
func (w *Session) Loc(ref PackRef, n int) Loc {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.loc(ref, n)
}

// loc needs w.mu.
func (w *Session) loc(ref PackRef, n int) Loc {
	i, ok := w.refIndex[ref]
	if !ok {
		i = uint32(len(w.refs))
		w.refs = append(w.refs, ref)
		w.refIndex[ref] = i
	}
	return Loc(i+1)<<packShift | Loc(n)
}

// Refer tells that a record of the session names a stored pack: Commit makes
// sure that it is there.
func (w *Session) Refer(ref PackRef) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, _ := w.ref(w.loc(ref, 0))
	w.used[i] = true
}

// ref gives the pack of a Loc that is neither a hole nor new.
func (w *Session) ref(l Loc) (uint32, int) {
	return uint32(l>>packShift) - 1, int(l & (1<<packShift - 1))
}

// Resolve says where a chunk, and up to n-1 that follow it in Loc, lie: the
// pack, the first chunk in it, and how many of the n are in that pack. With
// ok false the pack is not closed yet. Who asks names the pack in a map:
// Commit makes sure that it is there.
func (w *Session) Resolve(l Loc, n int) (ref PackRef, first, count int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !isNew(l) {
		i, c := w.ref(l)
		w.used[i] = true
		return w.refs[i], c, n, true
	}
	num := uint64(l &^ newBit)
	if num >= w.resolved {
		return PackRef{}, 0, 0, false
	}
	lo, hi := 0, len(w.starts) // the last start at or below num
	for lo+1 < hi {
		if mid := (lo + hi) / 2; w.starts[mid].first <= num {
			lo = mid
		} else {
			hi = mid
		}
	}
	end := w.resolved
	if lo+1 < len(w.starts) {
		end = w.starts[lo+1].first
	}
	return w.starts[lo].ref, int(num - w.starts[lo].first), int(min(uint64(n), end-num)), true
}

// closed tells that a data pack of the session has its name: the chunks
// first… up to end are in it.
func (w *Session) closed(ref PackRef, first, end uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts = append(w.starts, packStart{first, ref})
	w.resolved = end
}

func (w *Session) count(f func(*Statistics)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.stats)
}

// putPack stores a closed pack durably and counts it.
func (w *Session) putPack(ref PackRef, stored []byte) error {
	err := w.store.place.Put(w.ctx, packName(ref), stored)
	if err != nil {
		return fmt.Errorf("store a pack: %w", err)
	}
	w.count(func(s *Statistics) { s.BytesStored += int64(len(stored)); s.Packs++ })
	return nil
}

// Flush makes all appended chunks durable and every Loc resolvable.
func (w *Session) Flush(ctx context.Context) error { return w.pipe.flush(ctx) }

// Commit stores the session's result: body, under the session's name. Every
// pack that its own maps name is durable and there when Commit returns nil,
// and the commit was read back. body must refer to nothing but what Flush and
// FlushRecords made durable.
func (w *Session) Commit(ctx context.Context, body []byte) error {
	if err := w.checkReferences(ctx); err != nil {
		return err
	}
	name := pointsPrefix + w.id.String()
	if w.kind == recordPoint {
		var err error
		if body, err = w.store.wrapPoint(ctx, w.id, w.parent, w.parentHash, body); err != nil {
			return err
		}
	}
	sealed, err := w.store.sealRecord(name, w.kind, body)
	if err != nil {
		return err
	}
	// A caller that gives up from here on must still hear whether its point
	// exists.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	w.decided = true // perhaps: an error does not say that nothing was stored
	put := w.store.place.Put(ctx, name, sealed)
	if put != nil && !errors.Is(put, backend.ErrExist) {
		return fmt.Errorf("store the commit: %w", put)
	}
	// Read back: after ErrExist the slot says whether this was our own put
	// whose answer was lost, or an abort.
	back, err := w.store.readDecision(ctx, w.id, w.kind)
	if err == nil && w.kind == recordCatalogue && put != nil && string(back) != string(body) {
		return fmt.Errorf("%s: %w", name, ErrDecided)
	}
	if err != nil {
		return fmt.Errorf("read the commit back: %w", err)
	}
	if string(back) != string(body) {
		return fmt.Errorf("read the commit back: %w: it is not what was written", pack.ErrCorrupt)
	}
	w.count(func(s *Statistics) { s.BytesStored += int64(len(sealed)) })
	if w.kind == recordPoint && body[0] == 1 { // seen by its maker, too
		if _, sig, err := unwrapPoint(body); err == nil {
			w.store.saw(w.id, &sig)
		}
	}
	return nil
}

// checkReferences makes sure, right before the commit, that the session may
// commit and that every stored pack that its own maps name is still there.
// What the parent's unchanged nodes name is the parent's: check looks at it.
func (w *Session) checkReferences(ctx context.Context) error {
	if err := w.err(); err != nil {
		return err
	}
	if _, err := w.store.place.Size(ctx, intentsPrefix+w.id.String()); err != nil {
		return fmt.Errorf("the session's intent: %w", err)
	}
	again := "--full-read"
	if w.kind == recordCatalogue {
		again = "--rebuild"
	}
	for _, i := range slices.Sorted(maps.Keys(w.used)) {
		ok, err := w.store.HasPack(ctx, w.refs[i])
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%s, which earlier points need too, is gone: %w; run it again with %s, and cairn check", w.refs[i], backend.ErrNotExist, again)
		}
	}
	return w.syncReferences(ctx)
}

// syncReferences makes sure that the packs of others are durable. Those of a
// session that committed are; one that was killed may have left packs that are
// only seen yet, and a cut of the power would take them from our point.
func (w *Session) syncReferences(ctx context.Context) error {
	if !backend.Syncs(w.store.place) {
		return nil
	}
	done := map[SessionID]bool{w.id: true}
	for _, i := range slices.Sorted(maps.Keys(w.used)) {
		id := w.refs[i].Session
		if done[id] {
			continue
		}
		done[id] = true
		if _, err := w.store.ReadCommit(ctx, id); err == nil {
			continue
		}
		if err := backend.Sync(ctx, w.store.place, packsPrefix+id.String()+"/"); err != nil {
			return fmt.Errorf("make packs of an earlier run durable: %w", err)
		}
	}
	return nil
}
