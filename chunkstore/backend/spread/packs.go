package spread

import (
	"bytes"
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/zeebo/blake3"

	"cairn/chunkstore/backend"
)

// ErrIncomplete: of a pack too few shards are left. It does not exist for
// those who would read it.
var ErrIncomplete = fmt.Errorf("too few shards: %w", backend.ErrNotExist)

// errShort is the contract's, for a range over the end.
var errShort = io.ErrUnexpectedEOF

// Notes for Repair. Part of the on-disk format: repair/<pack> says that not
// all shards of packs/<pack> were stored, repair/gone/<pack> that it was
// deleted while a place was away.
const (
	notesPrefix = "repair/"
	gonePrefix  = "repair/gone/"
)

type note struct {
	Pack string `json:"pack"`
}

func noteName(prefix, pack string) string { return prefix + strings.TrimPrefix(pack, packsPrefix) }

// maxHeaders bounds the packs whose headers are kept: some 2 KiB each shard.
const maxHeaders = 1024

// packInfo is what is known of a pack that was read.
type packInfo struct {
	name  string
	elem  *list.Element
	order []int // shard i belongs to member order[i % len(order)]
	geometry

	mu      sync.Mutex
	headers []*header
}

// at gives the member that shard i belongs to.
func (s *Spread) at(order []int, i int) *member { return s.members[order[i%len(order)]] }

// errMemory: a bit that flipped in memory must not become a sealed lie.
var errMemory = errors.New("parity does not fit what was encoded: this machine's memory or CPU is faulty; nothing wrong was stored")

// encodeShards makes the shard objects of a pack.
func (s *Spread) encodeShards(name string, data []byte) ([][]byte, error) {
	g := newGeometry(s.shards.K, s.shards.M, int64(len(data)))
	content, named := contentOf(name)
	if !named {
		content = backend.PackName(data)
	}
	e := encoding{s: s, data: data, geometry: g, shards: make([][]byte, s.shards.Total()), headers: make([]header, s.shards.Total())}
	objects := make([][]byte, s.shards.Total())
	for i := range objects {
		objects[i] = s.buffer(int(g.objectSize()))
		e.shards[i] = objects[i][g.headerSize():]
		e.headers[i] = header{geometry: g, i: i, name: blake3.Sum256([]byte(name)), content: content, sums: make([]sum, g.blocks())}
	}
	workers := min(runtime.GOMAXPROCS(0), g.blocks())
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			again := make([]byte, g.m*blockSize)
			for n := w; n < g.blocks() && errs[w] == nil; n += workers {
				errs[w] = e.stripe(n, again)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for i := range objects {
		e.headers[i].encode(objects[i])
	}
	return objects, nil
}

// encoding is a pack on its way into shards.
type encoding struct {
	geometry
	s       *Spread
	data    []byte
	shards  [][]byte
	headers []header
}

// stripe fills in block n of every shard, and their sums: all that is done with
// these bytes at once, while the processor has them at hand. again has room for
// the parity of a stripe.
func (e *encoding) stripe(n int, again []byte) error {
	from, to := n*blockSize, min((n+1)*blockSize, e.shardLen)
	blocks := make([][]byte, len(e.shards))
	for i, shard := range e.shards {
		blocks[i] = shard[from:to]
		if i < e.k {
			rest := e.data[min(i*e.shardLen+from, len(e.data)):]
			clear(blocks[i][copy(blocks[i], rest):])
		}
	}
	if err := e.s.rs.Encode(blocks); err != nil {
		return fmt.Errorf("internal error: parity: %w", err)
	}
	for i, b := range blocks {
		e.headers[i].sums[n] = blake3.Sum256(b)
	}
	parity := slices.Clone(blocks[e.k:])
	for i := range parity {
		blocks[e.k+i] = again[i*blockSize:][:to-from]
	}
	if err := e.s.rs.Encode(blocks); err != nil || !slices.EqualFunc(parity, blocks[e.k:], bytes.Equal) {
		return errMemory
	}
	return nil
}

// buffer gives n bytes that may hold anything; recycle takes back what nobody
// reads any more.
func (s *Spread) buffer(n int) []byte {
	if b, ok := s.buffers.Get().(*[]byte); ok && cap(*b) >= n && cap(*b) <= 2*n {
		return (*b)[:n]
	}
	return make([]byte, n, n+n/16) // the next pack may be a little longer
}

func (s *Spread) recycle(objects [][]byte) {
	for _, o := range objects {
		s.buffers.Put(&o)
	}
}

// leastShards is how many must be durable so that a pack counts as stored.
func (s *Spread) leastShards() int {
	if len(s.members) == 1 {
		return s.shards.Total()
	}
	return s.shards.K
}

// putPack stores a pack's shards, each in its place.
func (s *Spread) putPack(ctx context.Context, name string, data []byte) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if len(data) > maxPack {
		return fmt.Errorf("%s: %d bytes are more than a pack can have", name, len(data))
	}
	need := s.leastShards()
	if err := s.enough("storing a pack", s.commitQuorum()); err != nil {
		return err
	}
	objects, err := s.encodeShards(name, data)
	if err != nil {
		return err
	}
	order := s.order(name)
	errs := make([]error, len(objects))
	var wg sync.WaitGroup
	for i, o := range objects {
		wg.Go(func() { errs[i] = s.at(order, i).putShard(ctx, shardName(name, i), o) })
	}
	wg.Wait()
	stored, taken := 0, 0
	for _, err := range errs {
		switch {
		case err == nil:
			stored++
		case errors.Is(err, backend.ErrExist):
			taken++
		}
	}
	switch {
	case stored == len(objects): // so no put is still at work
		s.recycle(objects)
		return nil
	case ctx.Err() != nil && stored < need:
		return ctx.Err()
	case stored < need && taken > 0:
		return fmt.Errorf("%s: %w", name, errors.Join(errs...))
	case stored < need:
		return s.awayError("storing a pack", s.commitQuorum(), errs)
	}
	return s.degraded(ctx, name, order, errs)
}

// degraded notes that a stored pack misses shards. Without the note it does
// not count as stored.
func (s *Spread) degraded(ctx context.Context, name string, order []int, errs []error) error {
	perMember := make([]error, len(s.members))
	for i, err := range errs {
		if err != nil {
			perMember[order[i%len(order)]] = err
		}
	}
	s.missed(name, perMember)
	return s.putNote(ctx, notesPrefix, name)
}

func (s *Spread) putNote(ctx context.Context, prefix, pack string) error {
	body, err := json.Marshal(note{pack})
	if err != nil {
		return err
	}
	if err := s.putControl(ctx, noteName(prefix, pack), body, s.commitQuorum(), false); err != nil {
		return fmt.Errorf("note what the places miss: %w", err)
	}
	return nil
}

// putShard stores a shard object. The same bytes under that name are good: an
// earlier try's whose answer was lost.
func (m *member) putShard(ctx context.Context, name string, data []byte) error {
	err := m.put(ctx, name, data)
	if !errors.Is(err, backend.ErrExist) {
		return err
	}
	n, serr := m.size(ctx, name)
	if serr != nil || n != int64(len(data)) {
		return errors.Join(err, serr)
	}
	there, rerr := m.read(ctx, name, 0, len(data))
	if rerr == nil && bytes.Equal(there, data) {
		return nil
	}
	return errors.Join(err, rerr)
}

// presence asks all places for their shards' sizes.
type presence struct {
	sizes  []int64 // by shard; 0 where it is not known or absent
	absent int
	errs   []error // of those that cannot be asked
}

func (p *presence) present() int {
	n := 0
	for _, s := range p.sizes {
		if s > 0 {
			n++
		}
	}
	return n
}

// usual is the size that most shards have.
func (p *presence) usual() int64 {
	count, best := map[int64]int{}, int64(0)
	for _, s := range p.sizes {
		if s > 0 {
			if count[s]++; count[s] > count[best] || best == 0 {
				best = s
			}
		}
	}
	return best
}

func (s *Spread) presence(ctx context.Context, name string, order []int) *presence {
	n := s.shards.Total()
	p := &presence{sizes: make([]int64, n)}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { p.sizes[i], errs[i] = s.at(order, i).size(ctx, shardName(name, i)) })
	}
	wg.Wait()
	for _, err := range errs {
		if errors.Is(err, backend.ErrNotExist) {
			p.absent++
		} else if err != nil {
			p.errs = append(p.errs, err)
		}
	}
	return p
}

// verdict is nil when a pack's shards suffice, or may.
func (s *Spread) verdict(name string, p *presence) error {
	switch n := p.present(); {
	case n >= s.shards.K:
		return nil
	case n == 0 && p.absent > s.shards.M:
		return fmt.Errorf("%s: %w", name, backend.ErrNotExist)
	case p.absent > s.shards.M:
		return fmt.Errorf("%s: %d of %s shards are left, and %d are needed: %w", name, n, s.shards, s.shards.K, ErrIncomplete)
	}
	return s.awayError("reading "+name, s.commitQuorum(), p.errs)
}

// sizePack gives a pack's length, when enough shards are there.
func (s *Spread) sizePack(ctx context.Context, name string) (int64, error) {
	order := s.order(name)
	p := s.presence(ctx, name, order)
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := s.verdict(name, p); err != nil {
		s.forget(name)
		return 0, err
	}
	info, err := s.infoFrom(ctx, name, order, p)
	if err != nil {
		return 0, err
	}
	return info.packLen, nil
}

// info gives what is known of a pack, or finds it out.
func (s *Spread) info(ctx context.Context, name string) (*packInfo, error) {
	if x := s.cached(name); x != nil {
		return x, nil
	}
	order := s.order(name)
	p := s.presence(ctx, name, order)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.verdict(name, p); err != nil {
		return nil, err
	}
	return s.infoFrom(ctx, name, order, p)
}

// infoFrom reads the header of one shard: of the last with data first, since
// a pack's readers begin at its end.
func (s *Spread) infoFrom(ctx context.Context, name string, order []int, p *presence) (*packInfo, error) {
	if x := s.cached(name); x != nil {
		return x, nil
	}
	usual := p.usual()
	var errs []error
	n := s.shards.Total()
	for try := range 2 * n { // the usual size first: of two copies neither is
		i := (s.shards.K - 1 + 2*n - try) % n // k-1 … 0, then parity from behind
		if p.sizes[i] == 0 || (p.sizes[i] == usual) != (try < n) {
			continue
		}
		h, err := s.readHeader(ctx, name, order, i, p.sizes[i])
		if err != nil {
			errs = append(errs, s.hurt(s.at(order, i), shardName(name, i), err))
			continue
		}
		x := &packInfo{name: name, order: order, geometry: h.geometry, headers: make([]*header, n)}
		x.headers[i] = h
		return s.remember(x), nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s: no shard's header can be read: %w", name, notGone(errors.Join(errs...)))
}

// readHeader reads and checks a shard's header; objectSize is the shard
// object's.
func (s *Spread) readHeader(ctx context.Context, name string, order []int, i int, objectSize int64) (*header, error) {
	m := s.at(order, i)
	shardLen := shardLenOf(objectSize)
	if shardLen < 1 {
		return nil, fmt.Errorf("%w: %d bytes are no shard", errShard, objectSize)
	}
	b, err := m.read(ctx, shardName(name, i), 0, int(objectSize)-shardLen)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(b)
	if err == nil {
		err = s.checkHeader(h, name, i)
	}
	if err == nil && h.objectSize() != objectSize {
		err = fmt.Errorf("%w: it is not as long as its header says", errShard)
	}
	return h, err
}

// checkHeader makes sure that the header is that of shard i of the pack.
func (s *Spread) checkHeader(h *header, name string, i int) error {
	content, named := contentOf(name)
	if h.i != i || h.k != s.shards.K || h.m != s.shards.M || h.name != blake3.Sum256([]byte(name)) || named && h.content != content {
		return fmt.Errorf("%w: it is another object's", errShard)
	}
	return nil
}

func (s *Spread) cached(name string) *packInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.packs[name]
	if x != nil {
		s.lru.MoveToFront(x.elem)
	}
	return x
}

// remember keeps x, or gives what another reader kept.
func (s *Spread) remember(x *packInfo) *packInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.packs[x.name]; old != nil {
		return old
	}
	x.elem = s.lru.PushFront(x)
	s.packs[x.name] = x
	if s.lru.Len() > maxHeaders {
		delete(s.packs, s.lru.Remove(s.lru.Back()).(*packInfo).name)
	}
	return x
}

func (s *Spread) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.packs[name]; x != nil {
		s.lru.Remove(x.elem)
		delete(s.packs, name)
	}
}

// header gives the header of a pack's shard i.
func (s *Spread) header(ctx context.Context, x *packInfo, i int) (*header, error) {
	x.mu.Lock()
	h := x.headers[i]
	x.mu.Unlock()
	if h != nil {
		return h, nil
	}
	h, err := s.readHeader(ctx, x.name, x.order, i, x.objectSize())
	if err != nil {
		return nil, err
	}
	if h.packLen != x.packLen {
		return nil, fmt.Errorf("%w: it says another length than the others", errShard)
	}
	x.mu.Lock()
	x.headers[i] = h
	x.mu.Unlock()
	return h, nil
}

// readPack reads a range: from the shards that hold it, or, where one of them
// is missing, wrong or slow, from k others.
func (s *Spread) readPack(ctx context.Context, name string, p []byte, off int64) error {
	x, err := s.info(ctx, name)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > x.packLen {
		return fmt.Errorf("%s: %w", name, errShort)
	}
	for rest := p; len(rest) > 0; {
		i, a := int(off/int64(x.shardLen)), int(off%int64(x.shardLen))
		n := min(len(rest), x.shardLen-a)
		if err := s.readPart(ctx, x, i, a, rest[:n]); err != nil {
			s.forget(name) // its headers may be of what is gone
			return err
		}
		rest, off = rest[n:], off+int64(n)
	}
	if content, named := contentOf(name); named && int64(len(p)) == x.packLen && backend.PackName(p) != content {
		return s.readTrue(ctx, x, p)
	}
	return nil
}

// readTrue reads a whole pack of which a place gave shards that fit
// themselves, and not the pack's name.
func (s *Spread) readTrue(ctx context.Context, x *packInfo, p []byte) error {
	a, err := s.assemble(ctx, x.name, x.order)
	if err != nil {
		return err
	}
	for i, err := range a.bad {
		if err != nil && !errors.Is(err, backend.ErrNotExist) {
			s.served(s.at(x.order, i), shardName(x.name, i), err)
		}
	}
	if copy(p, a.data) < len(p) {
		return fmt.Errorf("%s: %w", x.name, errShort)
	}
	return nil
}

// readPart reads the bytes from a on of shard i, all of one shard.
func (s *Spread) readPart(ctx context.Context, x *packInfo, i, a int, p []byte) error {
	err := s.readBlocks(ctx, x, i, a, p)
	if err == nil || ctx.Err() != nil {
		return err
	}
	errs := s.rebuildPart(ctx, x, i, a, p)
	if errs == nil {
		s.served(s.at(x.order, i), shardName(x.name, i), err)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p1 := s.presence(ctx, x.name, x.order)
	if v := s.verdict(x.name, p1); v != nil {
		return v
	}
	return fmt.Errorf("%s: %w; and it cannot be made from others: %w", x.name, notGone(err), notGone(errs))
}

// notGone is the error of a pack that cannot be read now, and may exist: that
// one place misses its shard does not say that there is no such pack.
func notGone(err error) error {
	if errors.Is(err, backend.ErrNotExist) {
		return errors.New(err.Error())
	}
	return err
}

// span gives the whole blocks around n bytes from a on: where they begin, and
// their length.
func (g geometry) span(a, n int) (from, length int) {
	from = a / blockSize * blockSize
	return from, min((a+n+blockSize-1)/blockSize*blockSize, g.shardLen) - from
}

// readBlocks reads from shard i alone, and checks what it reads.
func (s *Spread) readBlocks(ctx context.Context, x *packInfo, i, a int, p []byte) error {
	from, n := x.span(a, len(p))
	b, err := s.blocksOf(ctx, x, i, from, n)
	if err != nil {
		return err
	}
	copy(p, b[a-from:])
	return nil
}

// blocksOf gives whole blocks of a shard, checked.
func (s *Spread) blocksOf(ctx context.Context, x *packInfo, i, from, n int) ([]byte, error) {
	h, err := s.header(ctx, x, i)
	if err != nil {
		return nil, err
	}
	b, err := s.at(x.order, i).read(ctx, shardName(x.name, i), int64(x.headerSize()+from), n)
	if err != nil {
		return nil, err
	}
	return b, h.checkBlocks(from/blockSize, b)
}

// rebuildPart makes the bytes from a on of shard i from k others.
func (s *Spread) rebuildPart(ctx context.Context, x *packInfo, i, a int, p []byte) error {
	from, n := x.span(a, len(p))
	shards := make([][]byte, s.shards.Total())
	var others []int
	for j := range shards {
		if j != i {
			others = append(others, j)
		}
	}
	got, err := s.gather(ctx, x, others, from, n, shards)
	if got < s.shards.K {
		return fmt.Errorf("%d of %d other shards can be read: %w", got, s.shards.K, err)
	}
	need := make([]bool, len(shards))
	need[i] = true
	if err := s.rs.ReconstructSome(shards, need); err != nil {
		return err
	}
	x.mu.Lock()
	h := x.headers[i]
	x.mu.Unlock()
	if h != nil && h.checkBlocks(from/blockSize, shards[i]) != nil { // one of the others lies, or this one's header
		whole, err := s.assemble(ctx, x.name, x.order)
		if err != nil {
			return err
		}
		lo := int64(i)*int64(x.shardLen) + int64(a)
		copy(p, whole.data[lo:])
		return nil
	}
	copy(p, shards[i][a-from:])
	return nil
}

// gather reads blocks of k of the shards named, at once; where one fails the
// next is asked.
func (s *Spread) gather(ctx context.Context, x *packInfo, from []int, off, n int, into [][]byte) (int, error) {
	next := make(chan int, len(from))
	for _, gone := range []bool{false, true} { // the passed over ones last
		for _, j := range from {
			if s.at(x.order, j).away() == gone {
				next <- j
			}
		}
	}
	close(next)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	got := 0
	for range s.shards.K {
		wg.Go(func() {
			for j := range next {
				b, err := s.blocksOf(ctx, x, j, off, n)
				if err != nil {
					err = s.hurt(s.at(x.order, j), shardName(x.name, j), err)
				}
				mu.Lock()
				if err == nil {
					into[j] = b
					got++
				} else {
					errs = append(errs, err)
				}
				mu.Unlock()
				if err == nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return got, errors.Join(errs...)
}

// deletePack removes a pack's shards.
func (s *Spread) deletePack(ctx context.Context, name string) error {
	s.forget(name)
	order := s.order(name)
	errs := make([]error, s.shards.Total())
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = s.at(order, i).remove(ctx, shardName(name, i)) })
	}
	wg.Wait()
	left := 0
	for _, err := range errs {
		if err != nil {
			left++
		}
	}
	if err := ctx.Err(); err != nil || left == 0 {
		return err
	}
	if left >= s.shards.K {
		return s.awayError("deleting "+name, len(s.members)-s.shards.K+1, errs)
	}
	return s.putNote(ctx, gonePrefix, name)
}

// exactUpTo is the shard size up to which a listing reads a header to give a
// pack's exact length.
const exactUpTo = 4 << 10

// listedSize gives a pack's length from what a listing shows.
func (s *Spread) listedSize(ctx context.Context, o *object) (int64, error) {
	if x := s.cached(o.name); x != nil {
		return x.packLen, nil
	}
	n := shardLenOf(o.size)
	if n <= exactUpTo {
		order := s.order(o.name)
		for i := range s.shards.Total() {
			if o.on&(1<<i) == 0 {
				continue
			}
			if h, err := s.readHeader(ctx, o.name, order, i, o.size); err == nil {
				return h.packLen, nil
			}
		}
	}
	return int64(n) * int64(s.shards.K), ctx.Err()
}

// complete says whether all shards are listed.
func (s *Spread) complete(o *object) bool { return bits.OnesCount32(o.on) == s.shards.Total() }
