package chunkstore

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
)

// BatchSize is the most bytes in a Batch.
const BatchSize = 1 << 20

const batchChunks = BatchSize / chunk.Size

// Batch is a piece of a disk on its way into the store.
type Batch struct {
	// Data is at most BatchSize bytes, a multiple of chunk.Size, from Buffer.
	// Append takes it over. Without Data the batch only calls Placed in its
	// turn.
	Data []byte
	// Parent gives, where the parent has them, the Locs of the chunks at the
	// same place; nil for none.
	Parent []Loc
	// Placed gets one Loc for each chunk. It is called in the order of the
	// Appends, from one goroutine, and must not keep the slice. Its error
	// ends the session.
	Placed func([]Loc) error

	ids    [batchChunks]chunk.ID
	zero   [batchChunks]bool
	hashed chan struct{}
	flush  chan struct{} // not nil: no data, a request to flush
}

// rawFrame is up to MaxFrameChunks new chunks on their way into a pack.
type rawFrame struct {
	raw     []byte
	ids     []byte
	enc     pack.Encoding
	encoded []byte
	ready   chan struct{}
	flush   chan struct{} // not nil: close the pack and pass this on
}

// pipeline is the way of the bytes: Append → hashers → sorter (deduplicates,
// in order) → encoders → packer (seals, in order) → storers. Each arrow is a
// bounded channel; the first error ends the session and with it all stages.
type pipeline struct {
	w        *Session
	batches  chan *Batch // in order, for the sorter
	hashing  chan *Batch
	frames   chan *rawFrame // in order, for the packer
	encoding chan *rawFrame
	storing  chan storeJob
	buffers  chan []byte   // made, and free
	unmade   chan struct{} // one for each that may still be made
	rawPool  chan *rawFrame
	packPool chan []byte
	storers  int // packs that are stored at once
	wg       sync.WaitGroup

	// The sorter's own:
	patience, waited int        // batches until the open pack is closed, and so far
	next             uint64     // number of the next new chunk
	open             *rawFrame  // unfinished frame
	misses           int        // batches in a row that the index knew nothing of
	own              []chunk.ID // new chunks that are in known's table but in no group yet
	locs             [batchChunks]Loc
	hooks            []chunk.ID
}

type storeJob struct {
	ref    PackRef
	stored []byte
	ids    []chunk.ID
	flush  chan struct{}
}

// ownGroup is how many of the session's own chunks known forgets at once.
const ownGroup = 8192

// stage sizes. Batches in flight, frames in flight and packs in flight bound
// the session's memory: 12 MiB, 24 × 0.3 MiB, and 17 MiB for the pack that is
// filled and each that is being stored.
const (
	batchesInFlight = 12
	framesInFlight  = 24
	maxStorers      = 8
	firstCapacity   = 256 << 10 // of a pack; it grows, and stays as large as it became
)

// maxWait is how many batches may pass until the open pack is closed, full or
// not. Where nearly everything is known a pack would not fill for terabytes,
// and whoever waits for its name (restorepoint.Builder, up to 64 KiB for each
// 16 MiB of disk) would need memory without a bound.
const maxWait = 4096

func startPipeline(w *Session) *pipeline {
	storers := min(backend.PutsAtOnce(w.store.place), maxStorers)
	packsInFlight := storers + 1
	p := &pipeline{
		w:       w,
		batches: make(chan *Batch, batchesInFlight), hashing: make(chan *Batch, batchesInFlight),
		frames: make(chan *rawFrame, framesInFlight), encoding: make(chan *rawFrame, framesInFlight),
		storing: make(chan storeJob),
		buffers: make(chan []byte, batchesInFlight), unmade: make(chan struct{}, batchesInFlight), rawPool: make(chan *rawFrame, framesInFlight),
		packPool: make(chan []byte, packsInFlight),
		storers:  storers,
		patience: maxWait,
	}
	for range batchesInFlight {
		p.unmade <- struct{}{}
	}
	for range framesInFlight {
		p.rawPool <- nil
	}
	for range packsInFlight {
		p.packPool <- nil
	}
	for range runtime.GOMAXPROCS(0) {
		p.wg.Go(p.hash)
		p.wg.Go(p.encode)
	}
	p.wg.Go(func() { w.fail(p.sort()) })
	p.wg.Go(func() { w.fail(p.pack()) })
	p.wg.Go(func() { w.fail(p.store()) })
	return p
}

// What one session worked with serves the next one of this process: a run
// over many VMs would zero some 20 MiB for each.
var (
	encoders  = sync.Pool{New: func() any { return pack.NewEncoder() }}
	oldBatch  sync.Pool // of *[BatchSize]byte
	oldFrames sync.Pool // of *rawFrame
	oldPacks  sync.Pool // of *[firstCapacity]byte: one that grew is the collector's
)

// wait waits until all stages have ended, and keeps what they worked with.
func (p *pipeline) wait() {
	p.wg.Wait()
	for len(p.buffers) > 0 {
		oldBatch.Put((*[BatchSize]byte)(<-p.buffers))
	}
	for len(p.rawPool) > 0 {
		if f := <-p.rawPool; f != nil {
			oldFrames.Put(f)
		}
	}
	for len(p.packPool) > 0 {
		if b := <-p.packPool; cap(b) == firstCapacity {
			oldPacks.Put((*[firstCapacity]byte)(b[:firstCapacity]))
		}
	}
}

func newPackBuffer() []byte {
	if b, ok := oldPacks.Get().(*[firstCapacity]byte); ok {
		return b[:0]
	}
	return make([]byte, 0, firstCapacity)
}

func newBatchBuffer() []byte {
	if b, ok := oldBatch.Get().(*[BatchSize]byte); ok {
		return b[:]
	}
	return make([]byte, BatchSize)
}

func newRawFrame() *rawFrame {
	if f, ok := oldFrames.Get().(*rawFrame); ok {
		return f
	}
	return &rawFrame{raw: make([]byte, 0, pack.MaxFrameSize), encoded: make([]byte, 0, pack.MaxFrameSize+4096)}
}

// send and receive end with the session. Every stage uses them alone.
func send[T any](p *pipeline, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-p.w.ctx.Done():
		return p.w.err()
	}
}

func receive[T any](p *pipeline, ch <-chan T) (T, error) {
	select {
	case v := <-ch:
		return v, nil
	case <-p.w.ctx.Done():
		var zero T
		return zero, p.w.err()
	}
}

// Buffer gives BatchSize bytes for a Batch's Data. It waits while too many
// are on their way.
func (w *Session) Buffer(ctx context.Context) ([]byte, error) {
	select {
	case b := <-w.pipe.buffers: // a small session gets along with few
		return b, nil
	default:
	}
	select {
	case b := <-w.pipe.buffers:
		return b, nil
	case <-w.pipe.unmade:
		return newBatchBuffer(), nil
	case <-w.ctx.Done():
		return nil, w.err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Append stores a batch's chunks. It returns before they are durable.
func (w *Session) Append(ctx context.Context, b *Batch) error {
	if n := len(b.Data); n > BatchSize || n%chunk.Size != 0 {
		panic(fmt.Sprintf("internal error: a batch of %d bytes", n))
	}
	if len(b.Data) == 0 {
		return send(w.pipe, w.pipe.batches, b)
	}
	b.hashed = make(chan struct{})
	if err := send(w.pipe, w.pipe.batches, b); err != nil {
		return err
	}
	return send(w.pipe, w.pipe.hashing, b)
}

// flush waits until all that was appended is durable.
func (p *pipeline) flush(ctx context.Context) error {
	done := make(chan struct{})
	if err := send(p, p.batches, &Batch{flush: done}); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-p.w.ctx.Done():
		return p.w.err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hash computes IDs, any batch as it comes.
func (p *pipeline) hash() {
	h := chunk.NewHasher(p.w.store.ChunkKey())
	for {
		b, err := receive(p, p.hashing)
		if err != nil {
			return
		}
		for i := range len(b.Data) / chunk.Size {
			c := b.Data[i*chunk.Size : (i+1)*chunk.Size]
			if b.zero[i] = chunk.IsZero(c); !b.zero[i] {
				b.ids[i] = h.Sum(c)
			}
		}
		close(b.hashed)
	}
}

// sort finds each chunk's place, in the order of the disk.
func (p *pipeline) sort() error {
	for {
		b, err := receive(p, p.batches)
		if err != nil {
			return nil
		}
		if p.waited++; p.waited > p.patience {
			p.waited = 0
			if err := p.flushFrames(make(chan struct{})); err != nil {
				return err
			}
		}
		if len(b.Data) == 0 && b.flush == nil {
			if b.Placed == nil {
				continue
			}
			if err := b.Placed(nil); err != nil {
				return err
			}
			continue
		}
		if b.flush != nil {
			if err := p.flushFrames(b.flush); err != nil {
				return err
			}
			continue
		}
		if _, err := receive(p, b.hashed); err != nil {
			return nil
		}
		err = p.place(b)
		p.buffers <- b.Data[:BatchSize]
		if err != nil {
			return err
		}
	}
}

// place gives every chunk of a batch its Loc (DESIGN.md section 3, "Dedup
// order"): hole, parent's, known, or new.
func (p *pipeline) place(b *Batch) error {
	n := len(b.Data) / chunk.Size
	locs := p.locs[:n]
	p.hooks = p.hooks[:0]
	var zero, known, fresh int64
	for i := range locs {
		if locs[i] = Hole; b.zero[i] {
			zero++
			continue
		}
		same, err := p.sameAsParent(b, i)
		if err != nil {
			return err
		}
		if same {
			locs[i] = b.Parent[i]
		} else if l, ok := p.w.known.find(b.ids[i]); ok {
			locs[i] = l
		} else if b.ids[i].IsHook() {
			p.hooks = append(p.hooks, b.ids[i])
		}
	}
	if err := p.askIndex(); err != nil {
		return err
	}
	for i := range locs {
		if b.zero[i] {
			continue
		}
		if locs[i] == Hole {
			locs[i], _ = p.w.known.find(b.ids[i])
		}
		if locs[i] != Hole {
			known++
			continue
		}
		fresh++
		l, err := p.appendNew(b.ids[i], b.Data[i*chunk.Size:(i+1)*chunk.Size])
		if err != nil {
			return err
		}
		locs[i] = l
	}
	p.w.count(func(s *Statistics) { s.ChunksZero += zero; s.ChunksKnown += known; s.ChunksNew += fresh })
	if b.Placed != nil {
		if err := b.Placed(locs); err != nil {
			return err
		}
	}
	return nil
}

// After missesBeforeProbe batches that the index knew nothing of, only the
// first probeHooks hooks of a batch are asked for, and the others only if one
// of these is known: asking costs as much as hashing where all is new.
const (
	missesBeforeProbe = 4
	probeHooks        = 8
)

// askIndex takes the ID lists of the packs that hold p.hooks.
func (p *pipeline) askIndex() error {
	if len(p.hooks) == 0 {
		return nil
	}
	first := len(p.hooks)
	if p.misses >= missesBeforeProbe {
		first = min(first, probeHooks)
	}
	knows, err := p.w.known.load(p.w.ctx, p.hooks[:first])
	if err == nil && knows && first < len(p.hooks) {
		_, err = p.w.known.load(p.w.ctx, p.hooks[first:])
	}
	if err != nil {
		return fmt.Errorf("ask the index: %w", err)
	}
	if p.misses++; knows {
		p.misses = 0
	}
	return nil
}

// sameAsParent compares a chunk's ID with that of the parent's chunk at the
// same place.
func (p *pipeline) sameAsParent(b *Batch, i int) (bool, error) {
	if i >= len(b.Parent) || b.Parent[i] == Hole {
		return false, nil
	}
	at, n := p.w.ref(b.Parent[i])
	ids, err := p.w.known.list(p.w.ctx, at)
	if err != nil {
		return false, fmt.Errorf("read the parent's chunk IDs: %w", err)
	}
	return n < len(ids) && ids[n] == b.ids[i], nil
}

// appendNew puts a chunk into the open frame.
func (p *pipeline) appendNew(id chunk.ID, data []byte) (Loc, error) {
	if p.open == nil {
		f, err := receive(p, p.rawPool)
		if err != nil {
			return 0, err
		}
		if f == nil {
			f = newRawFrame()
		}
		f.raw, f.ids, f.ready = f.raw[:0], f.ids[:0], make(chan struct{})
		p.open = f
	}
	l := newBit | Loc(p.next)
	p.w.known.table[id] = l
	p.own = append(p.own, id)
	p.next++
	p.open.raw = append(p.open.raw, data...)
	p.open.ids = append(p.open.ids, id[:]...)
	if len(p.open.raw) == pack.MaxFrameSize {
		return l, p.sendFrame()
	}
	return l, nil
}

func (p *pipeline) sendFrame() error {
	f := p.open
	p.open = nil
	if f == nil {
		return nil
	}
	if len(p.own) >= ownGroup { // the table has them already; now they can be evicted
		first := newBit | Loc(p.next-uint64(len(p.own)))
		p.w.known.add(uint64(first), first, p.own)
		p.own = make([]chunk.ID, 0, ownGroup+pack.MaxFrameChunks)
	}
	if err := send(p, p.frames, f); err != nil {
		return err
	}
	return send(p, p.encoding, f)
}

func (p *pipeline) flushFrames(done chan struct{}) error {
	if err := p.sendFrame(); err != nil {
		return err
	}
	return send(p, p.frames, &rawFrame{flush: done})
}

// encode compresses, any frame as it comes.
func (p *pipeline) encode() {
	e := encoders.Get().(*pack.Encoder)
	defer encoders.Put(e)
	for {
		f, err := receive(p, p.encoding)
		if err != nil {
			return
		}
		if f.enc, f.encoded, err = e.Encode(f.encoded, f.raw); err != nil {
			p.w.fail(err)
			return
		}
		close(f.ready)
	}
}

// pack seals frames into packs, in order.
func (p *pipeline) pack() error {
	var b *pack.Builder
	var first uint64 // number of the open pack's first chunk
	closePack := func() error {
		if b == nil {
			return nil
		}
		hash, stored, err := b.Close()
		if err != nil {
			return err
		}
		ref := PackRef{Session: p.w.id, Hash: hash}
		ids := make([]chunk.ID, b.Count())
		for i := range ids {
			ids[i] = chunk.ID(b.Index()[i*chunk.IDSize:])
		}
		p.w.closed(ref, first, first+uint64(len(ids)))
		first += uint64(len(ids))
		b = nil
		return send(p, p.storing, storeJob{ref: ref, stored: stored, ids: ids})
	}
	for {
		f, err := receive(p, p.frames)
		if err != nil {
			return nil
		}
		if f.flush != nil {
			if err := closePack(); err != nil {
				return err
			}
			if err := send(p, p.storing, storeJob{flush: f.flush}); err != nil {
				return err
			}
			continue
		}
		if _, err := receive(p, f.ready); err != nil {
			return nil
		}
		if b == nil {
			buf, err := receive(p, p.packPool)
			if err != nil {
				return nil
			}
			if buf == nil {
				buf = newPackBuffer()
			}
			if b, err = pack.NewBuilder(pack.KindData, p.w.store.keys, buf); err != nil {
				return err
			}
		}
		if err := b.Append(f.enc, f.encoded, len(f.raw)/chunk.Size, f.ids); err != nil {
			return err
		}
		p.rawPool <- f
		if b.Len() >= targetPack || b.Count()+pack.MaxFrameChunks > pack.MaxChunks {
			if err := closePack(); err != nil {
				return err
			}
		}
	}
}

// store makes packs durable, several at once, and tells the index of each:
// durable, then indexed (STORE-RULES.md section 1.2). A flush is answered when
// all that came before it is both.
func (p *pipeline) store() error {
	var working sync.WaitGroup
	defer working.Wait()
	var indexing sync.Mutex // an Index takes one Add at a time
	free := make(chan struct{}, p.storers)
	for range p.storers {
		free <- struct{}{}
	}
	for {
		j, err := receive(p, p.storing)
		if err != nil {
			return nil
		}
		if j.flush != nil {
			working.Wait()
			if err := p.w.err(); err != nil { // one of them failed
				return nil
			}
			close(j.flush)
			continue
		}
		if _, err := receive(p, free); err != nil {
			return nil
		}
		working.Go(func() {
			p.w.fail(p.storePack(j, &indexing))
			free <- struct{}{}
		})
	}
}

// storePack makes one pack durable and tells the index.
func (p *pipeline) storePack(j storeJob, indexing *sync.Mutex) error {
	if err := p.w.putPack(j.ref, j.stored); err != nil {
		return err
	}
	indexing.Lock()
	defer indexing.Unlock()
	if err := p.w.index.Add(p.w.ctx, j.ref, j.ids); err != nil {
		return fmt.Errorf("tell the index: %w", err)
	}
	p.packPool <- j.stored
	return nil
}
