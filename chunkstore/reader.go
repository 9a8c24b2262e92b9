package chunkstore

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// maxFooters bounds the frame tables that a Reader keeps (some 10 KiB each).
const maxFooters = 512

// A Reader gives chunks and records, through a cache of decoded frames that
// all its users share. It may be used by many goroutines: those that want the
// same frame wait for one that reads it.
type Reader struct {
	store *Store
	limit int64 // bytes of decoded frames

	mu      sync.Mutex
	packs   map[PackRef]*openPack
	packLRU list.List // of *openPack, newest first
	frames  map[frameKey]*frame
	lru     list.List // of *frame, newest first
	used    int64
	free    [][]byte
}

// scratches serve all Readers: mounts and checks make one for each point.
var scratches = sync.Pool{New: func() any { return &scratch{dec: pack.NewDecoder()} }}

// scratch is what decoding one frame needs.
type scratch struct {
	dec             *pack.Decoder
	sealed, encoded []byte
}

type openPack struct {
	ref     PackRef
	elem    *list.Element
	ready   chan struct{} // closed when foot or err is set
	foot    *pack.Footer
	offsets []int32 // map pack: each record's offset in its frame, then its end
	err     error
}

type frameKey struct {
	ref PackRef
	n   int32
}

type frame struct {
	key   frameKey
	elem  *list.Element // nil while it is read, or when it is out
	ready chan struct{}
	data  []byte
	err   error
	users int
	out   bool
}

// NewReader gives a Reader with a cache of about cacheBytes.
func (s *Store) NewReader(cacheBytes int64) *Reader {
	return &Reader{store: s, limit: cacheBytes, packs: map[PackRef]*openPack{}, frames: map[frameKey]*frame{}}
}

// retry says whether err, met by another caller's read, is that caller's own
// end and no reason for ours.
func retry(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// footer gives a pack's opened footer.
func (r *Reader) footer(ctx context.Context, ref PackRef) (*openPack, error) {
	for {
		p, shared, err := r.sharedFooter(ctx, ref)
		if err == nil || !shared || !retry(ctx, err) {
			return p, err
		}
	}
}

// sharedFooter also says whether another caller's read was waited for.
func (r *Reader) sharedFooter(ctx context.Context, ref PackRef) (*openPack, bool, error) {
	r.mu.Lock()
	p := r.packs[ref]
	if p != nil {
		r.packLRU.MoveToFront(p.elem)
		r.mu.Unlock()
		select {
		case <-p.ready:
			return p, true, p.err
		case <-ctx.Done():
			return nil, true, ctx.Err()
		}
	}
	p = &openPack{ref: ref, ready: make(chan struct{})}
	p.elem = r.packLRU.PushFront(p)
	r.packs[ref] = p
	if r.packLRU.Len() > maxFooters {
		old := r.packLRU.Remove(r.packLRU.Back()).(*openPack)
		delete(r.packs, old.ref)
	}
	r.mu.Unlock()

	p.foot, p.err = r.store.ReadFooter(ctx, ref)
	if p.err == nil {
		p.foot.OpenKey(r.store.keys)
	}
	if p.err == nil && p.foot.Kind == pack.KindMap {
		p.offsets, p.err = r.store.recordOffsets(ctx, ref, p.foot)
	}
	if p.err != nil { // not kept: the next one tries again
		r.mu.Lock()
		if r.packs[ref] == p {
			r.packLRU.Remove(p.elem)
			delete(r.packs, ref)
		}
		r.mu.Unlock()
	}
	close(p.ready)
	return p, false, p.err
}

// recordOffsets gives, per record, its offset in its frame.
func (s *Store) recordOffsets(ctx context.Context, ref PackRef, f *pack.Footer) ([]int32, error) {
	sealed, err := s.readIndex(ctx, ref, f)
	if err != nil {
		return nil, err
	}
	lens, err := f.OpenRecords(sealed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", packName(ref), err)
	}
	offsets := make([]int32, 0, len(lens)+len(f.Frames))
	for _, fr := range f.Frames {
		off := int32(0)
		for _, n := range lens[fr.First : int(fr.First)+int(fr.Count)] {
			offsets = append(offsets, off)
			if off += int32(n); off > pack.MaxMapFrameSize {
				return nil, fmt.Errorf("%s: %w: records longer than their frame", packName(ref), pack.ErrCorrupt)
			}
		}
		offsets = append(offsets, off)
	}
	return offsets, nil
}

// decodeSlack is what a decoder may want behind a frame, in bytes.
const decodeSlack = 64

// frameSize is the decoded length of frame n in bytes.
func (p *openPack) frameSize(n int) int {
	fr := p.foot.Frames[n]
	if p.foot.Kind == pack.KindData {
		return int(fr.Count) * chunk.Size
	}
	return int(p.offsets[int(fr.First)+n+int(fr.Count)]) // one extra entry per frame before
}

// decode reads, opens and decodes frame n of p into dst[:0].
func (r *Reader) decode(ctx context.Context, p *openPack, n int, dst []byte) ([]byte, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	fr := p.foot.Frames[n]
	if cap(s.sealed) < int(fr.Stored) {
		s.sealed = make([]byte, max(int(fr.Stored), pack.MaxFrameSize+64))
	}
	s.sealed = s.sealed[:fr.Stored]
	name := packName(p.ref)
	if err := r.store.place.ReadAt(ctx, name, s.sealed, fr.Offset); err != nil {
		return nil, err
	}
	var err error
	if s.encoded, err = p.foot.OpenFrame(s.encoded, r.store.keys, n, s.sealed); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if dst, err = s.dec.Decode(dst, fr.Enc, s.encoded, p.frameSize(n)); err != nil {
		return nil, fmt.Errorf("%s: frame %d: %w", name, n, err)
	}
	return dst, nil
}

// acquire gives a decoded frame from the cache, or reads it; release must
// follow. With peek it gives nil when the frame is neither there nor being
// read.
func (r *Reader) acquire(ctx context.Context, p *openPack, n int, peek bool) (*frame, error) {
	for {
		f, shared, err := r.share(ctx, p, n, peek)
		if err == nil || !shared || !retry(ctx, err) {
			return f, err
		}
	}
}

// share is acquire's one try; it also says whether another caller's read was
// waited for.
func (r *Reader) share(ctx context.Context, p *openPack, n int, peek bool) (*frame, bool, error) {
	key := frameKey{p.ref, int32(n)}
	r.mu.Lock()
	f := r.frames[key]
	if f != nil {
		f.users++
		if f.elem != nil {
			r.lru.MoveToFront(f.elem)
		}
		r.mu.Unlock()
		select {
		case <-f.ready:
		case <-ctx.Done():
			r.release(f)
			return nil, true, ctx.Err()
		}
		if f.err != nil {
			r.release(f)
			return nil, true, f.err
		}
		return f, true, nil
	}
	if peek {
		r.mu.Unlock()
		return nil, false, nil
	}
	f = &frame{key: key, ready: make(chan struct{}), users: 1}
	r.frames[key] = f
	var buf []byte
	if k := len(r.free); k > 0 {
		buf, r.free = r.free[k-1], r.free[:k-1]
	}
	r.mu.Unlock()
	if want := p.frameSize(n) + decodeSlack; cap(buf) < want {
		buf = make([]byte, 0, want)
	}
	data, err := r.decode(ctx, p, n, buf)
	r.mu.Lock()
	if f.err = err; err != nil {
		delete(r.frames, key)
		f.out = true
	} else {
		f.data = data
		f.elem = r.lru.PushFront(f)
		r.used += int64(cap(data))
		r.evict()
	}
	r.mu.Unlock()
	close(f.ready)
	if err != nil {
		r.release(f)
		return nil, false, err
	}
	return f, false, nil
}

// evict drops the oldest frames over the limit. It needs r.mu.
func (r *Reader) evict() {
	for r.used > r.limit && r.lru.Len() > 1 {
		f := r.lru.Remove(r.lru.Back()).(*frame)
		delete(r.frames, f.key)
		f.elem, f.out = nil, true
		r.used -= int64(cap(f.data))
		r.recycle(f)
	}
}

// recycle keeps the buffer of a frame that nobody can see any more. It needs
// r.mu.
func (r *Reader) recycle(f *frame) {
	if f.users == 0 && f.out && f.data != nil && len(r.free) < 16 {
		r.free = append(r.free, f.data[:0])
		f.data = nil
	}
}

func (r *Reader) release(f *frame) {
	r.mu.Lock()
	f.users--
	r.recycle(f)
	r.mu.Unlock()
}

// ReadChunks fills dst (n chunks of chunk.Size) from the chunks first… of a
// data pack. Whole frames that are not in the cache are decoded straight into
// dst and not kept. Of a pack that gc removed they are read where it put them.
func (r *Reader) ReadChunks(ctx context.Context, ref PackRef, first int, dst []byte) error {
	return r.readChunks(ctx, ref, first, dst, 0)
}

func (r *Reader) readChunks(ctx context.Context, ref PackRef, first int, dst []byte, hops int) error {
	err := r.readStored(ctx, ref, first, dst)
	if !elsewhere(err) {
		return err
	}
	r.forget(ref)
	return r.store.moved(ctx, ref, first, len(dst)/chunk.Size, hops, err, func(to PackRef, at, k, done int) error {
		return r.readChunks(ctx, to, at, dst[done*chunk.Size:(done+k)*chunk.Size], hops+1)
	})
}

// elsewhere says whether what could not be read may lie where gc put it: the
// pack is gone, or it is bad and about to go.
func elsewhere(err error) bool {
	return errors.Is(err, backend.ErrNotExist) || pack.IsDamage(err)
}

// forget drops a pack's footer: the pack is gone, or bad.
func (r *Reader) forget(ref PackRef) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.packs[ref]; p != nil {
		r.packLRU.Remove(p.elem)
		delete(r.packs, ref)
	}
}

// readStored is ReadChunks of a pack that is there.
func (r *Reader) readStored(ctx context.Context, ref PackRef, first int, dst []byte) error {
	p, err := r.footer(ctx, ref)
	if err != nil {
		return err
	}
	if p.foot.Kind != pack.KindData {
		return fmt.Errorf("%s: %w: not a data pack", packName(ref), pack.ErrCorrupt)
	}
	for len(dst) > 0 {
		n, err := p.foot.FrameOf(first)
		if err != nil {
			return fmt.Errorf("%s: %w", packName(ref), err)
		}
		fr := p.foot.Frames[n]
		skip, size := (first-int(fr.First))*chunk.Size, int(fr.Count)*chunk.Size
		whole := skip == 0 && len(dst) >= size
		f, err := r.acquire(ctx, p, n, whole)
		if err != nil {
			return err
		}
		var k int
		if f == nil {
			out, err := r.decode(ctx, p, n, dst[:0:size])
			if err != nil {
				return err
			}
			if k = size; &out[0] != &dst[0] { // the decoder wanted more room
				copy(dst, out)
			}
		} else {
			k = copy(dst, f.data[skip:])
			r.release(f)
		}
		dst = dst[k:]
		first += k / chunk.Size
	}
	return nil
}

// Prefetch brings the frames of n chunks from first on into the cache, and in
// any case the pack's footer. Its errors are the later reader's to see, and of
// a pack that gc moved nothing is made ready.
func (r *Reader) Prefetch(ctx context.Context, ref PackRef, first, n int) {
	p, err := r.footer(ctx, ref)
	if err != nil || p.foot.Kind != pack.KindData {
		return
	}
	for end := first + n; first < end; {
		i, err := p.foot.FrameOf(first)
		if err != nil {
			return
		}
		f, err := r.acquire(ctx, p, i, false)
		if err != nil {
			return
		}
		r.release(f)
		first = int(p.foot.Frames[i].First) + int(p.foot.Frames[i].Count)
	}
}

// ReadRecord gives record n of a map pack. Of a pack that gc removed it is read
// where that put it.
func (r *Reader) ReadRecord(ctx context.Context, ref PackRef, n int) ([]byte, error) {
	return r.readRecord(ctx, ref, n, 0)
}

func (r *Reader) readRecord(ctx context.Context, ref PackRef, n, hops int) ([]byte, error) {
	b, err := r.storedRecord(ctx, ref, n)
	if !elsewhere(err) {
		return b, err
	}
	r.forget(ref)
	err = r.store.moved(ctx, ref, n, 1, hops, err, func(to PackRef, at, _, _ int) error {
		var rerr error
		b, rerr = r.readRecord(ctx, to, at, hops+1)
		return rerr
	})
	return b, err
}

// storedRecord is ReadRecord of a pack that is there.
func (r *Reader) storedRecord(ctx context.Context, ref PackRef, n int) ([]byte, error) {
	p, err := r.footer(ctx, ref)
	if err != nil {
		return nil, err
	}
	if p.foot.Kind != pack.KindMap {
		return nil, fmt.Errorf("%s: %w: not a map pack", packName(ref), pack.ErrCorrupt)
	}
	i, err := p.foot.FrameOf(n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", packName(ref), err)
	}
	f, err := r.acquire(ctx, p, i, false)
	if err != nil {
		return nil, err
	}
	defer r.release(f)
	at := n + i // one extra offset per frame before
	return append([]byte(nil), f.data[p.offsets[at]:p.offsets[at+1]]...), nil
}

// ChunkIDs gives the IDs of a data pack's chunks in order. Of a pack that gc
// rewrote those that were not kept are zero.
func (s *Store) ChunkIDs(ctx context.Context, ref PackRef) ([]chunk.ID, error) {
	ids, _, err := s.chunkIDs(ctx, ref, 0)
	return ids, err
}

// chunkIDs is ChunkIDs; moved says that the pack is gone, or bad.
func (s *Store) chunkIDs(ctx context.Context, ref PackRef, hops int) (ids []chunk.ID, moved bool, err error) {
	f, err := s.ReadFooter(ctx, ref)
	if err == nil {
		ids, err = s.storedIDs(ctx, ref, f)
	}
	if elsewhere(err) {
		ids, err = s.movedIDs(ctx, ref, hops, err)
		return ids, true, err
	}
	return ids, false, err
}

// storedIDs reads the IDs of a pack that is there.
func (s *Store) storedIDs(ctx context.Context, ref PackRef, f *pack.Footer) ([]chunk.ID, error) {
	sealed, err := s.readIndex(ctx, ref, f)
	if err != nil {
		return nil, err
	}
	ids, err := f.OpenIndex(sealed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", packName(ref), err)
	}
	return ids, nil
}
