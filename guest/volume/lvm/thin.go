package lvm

import (
	"container/list"
	"fmt"
	"hash/crc32"
	"io"
	"sort"
	"sync"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
)

const (
	// metaBlock is the size of a block of a pool's metadata.
	metaBlock = 4096
	// maxTree bounds the depth of a tree; real ones have four levels.
	maxTree = 16
	// maxNodes is how many blocks of the metadata are kept: 1 MiB a pool.
	maxNodes = 256
)

// Salts of the checksums (dm-thin-metadata.c, dm-btree-spine.c).
const (
	superSalt = 160774
	nodeSalt  = 121107
)

// blockSum is the checksum of a block of metadata behind its first word.
func blockSum(b []byte, salt uint32) uint32 {
	return ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli)) ^ salt
}

// pool is a thin pool: trees that map blocks of thin volumes to blocks of data.
type pool struct {
	meta, data device.Device
	block      int64 // bytes
	root       uint64
	err        error

	mu    sync.Mutex
	nodes map[uint64]*list.Element
	order list.List // of *node, the last used first
}

// openPool reads a pool's superblock. dm-thin writes it last, so that the trees
// below it are whole whenever the machine stops.
func openPool(meta, data device.Device) (*pool, error) {
	b := make([]byte, metaBlock)
	if n, err := meta.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("LVM: thin pool's metadata: %w", err)
	}
	const magic = 27022010
	if le.Uint64(b[32:]) != magic || le.Uint32(b) != blockSum(b, superSalt) || le.Uint64(b[8:]) != 0 {
		return nil, corrupt("thin pool's superblock")
	}
	p := &pool{meta: meta, data: data, block: int64(le.Uint32(b[336:])) * sector, root: le.Uint64(b[320:]), nodes: map[uint64]*list.Element{}}
	if version := le.Uint32(b[40:]); version < 1 || version > 2 {
		return nil, fmt.Errorf("thin pool's metadata of version %d: %w", version, filesystem.ErrUnsupported)
	}
	if p.block < 64<<10 || p.block > 1<<30 || le.Uint32(b[340:]) != metaBlock/sector {
		return nil, corrupt("thin pool's blocks of %d bytes", p.block)
	}
	return p, nil
}

// node is a block of a B-tree whose values are of 8 bytes.
type node struct {
	block    uint64
	internal bool
	keys     []uint64
	values   []uint64
}

// decodeNode reads a node (struct btree_node in dm-btree-internal.h).
func decodeNode(b []byte, block uint64) (*node, error) {
	const header, internal = 32, 1
	n, most := int(le.Uint32(b[16:])), int(le.Uint32(b[20:]))
	switch {
	case le.Uint32(b) != blockSum(b, nodeSalt):
		return nil, corrupt("thin pool's metadata: block %d: checksum", block)
	case le.Uint64(b[8:]) != block || le.Uint32(b[24:]) != 8 || most > (metaBlock-header)/16 || n > most:
		return nil, corrupt("thin pool's metadata: block %d is no node", block)
	}
	x := &node{block: block, internal: le.Uint32(b[4:])&internal != 0, keys: make([]uint64, n), values: make([]uint64, n)}
	for i := range n {
		x.keys[i], x.values[i] = le.Uint64(b[header+8*i:]), le.Uint64(b[header+8*most+8*i:])
		if i > 0 && x.keys[i] <= x.keys[i-1] {
			return nil, corrupt("thin pool's metadata: block %d: keys are not in order", block)
		}
	}
	return x, nil
}

// node gives a node, from memory if it is there.
func (p *pool) node(block uint64) (*node, error) {
	p.mu.Lock()
	if e := p.nodes[block]; e != nil {
		p.order.MoveToFront(e)
		p.mu.Unlock()
		return e.Value.(*node), nil
	}
	p.mu.Unlock()
	if block > uint64(p.meta.Size()/metaBlock) {
		return nil, corrupt("thin pool's metadata: block %d leaves it", block)
	}
	b := make([]byte, metaBlock)
	if n, err := p.meta.ReadAt(b, int64(block)*metaBlock); n < len(b) {
		return nil, fmt.Errorf("LVM: thin pool's metadata: block %d: %w", block, err)
	}
	x, err := decodeNode(b, block)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes[block] == nil {
		p.nodes[block] = p.order.PushFront(x)
		for p.order.Len() > maxNodes {
			delete(p.nodes, p.order.Remove(p.order.Back()).(*node).block)
		}
	}
	return x, nil
}

// leaf finds the leaf that would hold a key, and the first key behind it, 0 if
// there is none.
func (p *pool) leaf(root, key uint64) (x *node, bound uint64, err error) {
	block := root
	for range maxTree {
		if x, err = p.node(block); err != nil || !x.internal {
			return x, bound, err
		}
		i := sort.Search(len(x.keys), func(i int) bool { return x.keys[i] > key })
		if i < len(x.keys) {
			bound = x.keys[i]
		}
		if i == 0 {
			return &node{}, bound, nil
		}
		block = x.values[i-1]
	}
	return nil, 0, corrupt("thin pool's metadata: the tree of block %d is too deep", root)
}

// device gives the tree of a thin volume.
func (p *pool) device(id uint64) (uint64, error) {
	x, _, err := p.leaf(p.root, id)
	if err != nil {
		return 0, err
	}
	i := sort.Search(len(x.keys), func(i int) bool { return x.keys[i] >= id })
	if i == len(x.keys) || x.keys[i] != id {
		return 0, corrupt("thin volume %d is not in its pool", id)
	}
	return x.values[i], nil
}

// thin gives a thin volume.
func (b *builder) thin(s *segment) (device.Device, error) {
	p, err := b.pool(s.text("thin_pool"))
	if err != nil {
		return nil, fmt.Errorf("its thin pool: %w", err)
	}
	id := s.number("device_id")
	if id < 0 {
		return nil, corrupt("thin volume %d", id)
	}
	root, err := p.device(uint64(id))
	if err != nil {
		return nil, err
	}
	t := &thin{pool: p, root: root, size: s.extents * b.group.extent}
	if name := s.text("external_origin"); name != "" {
		if t.origin, err = b.logical(name); err != nil {
			return nil, fmt.Errorf("its external origin: %w", err)
		}
	}
	return t, nil
}

func (b *builder) pool(name string) (*pool, error) {
	if p := b.pools[name]; p != nil {
		return p, p.err
	}
	p, err := b.newPool(name)
	if err != nil {
		p = &pool{err: err}
	}
	b.pools[name] = p
	return p, err
}

func (b *builder) newPool(name string) (*pool, error) {
	l := b.group.logical[name]
	if l == nil || len(l.segments) != 1 || l.segments[0].kind != "thin-pool" {
		return nil, corrupt("volume %q is no thin pool", name)
	}
	meta, err := b.logical(l.segments[0].text("metadata"))
	if err != nil {
		return nil, err
	}
	data, err := b.logical(l.segments[0].text("pool"))
	if err != nil {
		return nil, err
	}
	return openPool(meta, data)
}

// thin is a thin volume.
type thin struct {
	pool   *pool
	root   uint64
	size   int64
	origin device.Device // what shows where nothing was written; nil: zeros
}

func (t *thin) Size() int64 { return t.size }

func (t *thin) Weight() int {
	below := []device.Device{t.pool.data, t.pool.meta}
	if t.origin != nil {
		below = append(below, t.origin)
	}
	return device.Sum(below...)
}

func (t *thin) Locate(int64, int64, func(device.Extent) bool) bool { return false }

func (t *thin) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at byte %d", off)
	}
	if off >= t.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > t.size-off {
		p, end = p[:t.size-off], io.EOF
	}
	for done := 0; done < len(p); {
		n, err := t.run(p[done:], off+int64(done))
		if done += n; err != nil {
			return done, err
		}
	}
	return len(p), end
}

// run reads as much as lies side by side, at least one byte.
func (t *thin) run(p []byte, off int64) (int, error) {
	first, in := uint64(off/t.pool.block), off%t.pool.block
	x, bound, err := t.pool.leaf(t.root, first)
	if err != nil {
		return 0, err
	}
	i := sort.Search(len(x.keys), func(i int) bool { return x.keys[i] >= first })
	if i == len(x.keys) || x.keys[i] != first {
		if i < len(x.keys) {
			bound = x.keys[i]
		}
		n := len(p)
		if bound > first && bound-first < uint64(len(p)) {
			n = int(min(int64(n), int64(bound-first)*t.pool.block-in))
		}
		return t.unwritten(p[:n], off)
	}
	const timeBits = 24
	stored := x.values[i] >> timeBits
	blocks := int64(1)
	for k := i + 1; k < len(x.keys) && blocks*t.pool.block-in < int64(len(p)) &&
		x.keys[k] == first+uint64(blocks) && x.values[k]>>timeBits == stored+uint64(blocks); k++ {
		blocks++
	}
	if stored > uint64(t.pool.data.Size()/t.pool.block) {
		return 0, corrupt("thin volume: block %d at block %d, outside its pool", first, stored)
	}
	p = p[:min(int64(len(p)), blocks*t.pool.block-in)]
	n, err := t.pool.data.ReadAt(p, int64(stored)*t.pool.block+in)
	if n == len(p) {
		return n, nil
	}
	return n, fmt.Errorf("LVM: thin pool's data at block %d: %w", stored, err)
}

// unwritten reads where the volume has no block of its own.
func (t *thin) unwritten(p []byte, off int64) (int, error) {
	clear(p)
	if t.origin == nil || off >= t.origin.Size() {
		return len(p), nil
	}
	piece := p[:min(int64(len(p)), t.origin.Size()-off)]
	if n, err := t.origin.ReadAt(piece, off); n < len(piece) {
		return n, err
	}
	return len(p), nil
}
