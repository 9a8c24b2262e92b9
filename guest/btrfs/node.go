package btrfs

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"

	"cairn/guest/filesystem"
)

// key of an item (btrfs_tree.h: btrfs_disk_key).
type key struct {
	object uint64
	kind   uint8
	offset uint64
}

func (k key) less(l key) bool {
	switch {
	case k.object != l.object:
		return k.object < l.object
	case k.kind != l.kind:
		return k.kind < l.kind
	}
	return k.offset < l.offset
}

func keyAt(b []byte) key { return key{le.Uint64(b), b[8], le.Uint64(b[9:])} }

// Types of items.
const (
	typeInode    = 1
	typeInodeRef = 12
	typeXattr    = 24
	typeDirItem  = 84
	typeDirIndex = 96
	typeExtent   = 108 // of a file
	typeRoot     = 132
	typeBackref  = 144
	typeRootRef  = 156
	typeExtItem  = 168
	typeMetaItem = 169
	typeChunk    = 228

	firstChunkTree = 256
	extentTree     = 2
	fsTree         = 5
	firstFree      = 256
	lastFree       = ^uint64(0) - 255
)

// treeRoot is where a tree begins.
type treeRoot struct {
	logical uint64
	level   uint8
}

const (
	headerSize = 101
	itemSize   = 25
	ptrSize    = 33
	maxLevel   = 7
)

// block gives a verified block of a tree.
func (fs *FS) block(logical uint64, level uint8) ([]byte, error) {
	if b := fs.cache.get(logical); b != nil {
		if b[100] != level {
			return nil, corrupt("tree block %d is of level %d, not %d", logical, b[100], level)
		}
		return b, nil
	}
	if logical > 1<<62 {
		return nil, corrupt("tree block at %d", logical)
	}
	c, err := fs.find(int64(logical))
	if err != nil {
		return nil, err
	}
	if int64(logical)-c.logical+fs.super.node > c.size {
		return nil, corrupt("tree block %d ends outside of its chunk", logical)
	}
	b := make([]byte, fs.super.node)
	places, together := c.copies(int64(logical) - c.logical)
	if together < fs.super.node { // over the border of stripes
		places = places[:1]
	}
	var first error
	for _, s := range places {
		if together < fs.super.node {
			err = fs.read(b, int64(logical))
		} else {
			err = fs.readDevice(b, s)
		}
		if err == nil {
			err = fs.checkBlock(b, logical, level)
		}
		if err == nil {
			fs.cache.put(logical, b)
			return b, nil
		}
		if first == nil || errors.Is(first, errMissing) {
			first = err
		}
	}
	return nil, fmt.Errorf("tree block %d: %w", logical, missing(first))
}

// checkBlock verifies all that reading the block relies on.
func (fs *FS) checkBlock(b []byte, logical uint64, level uint8) error {
	if !fs.unverified {
		if err := verify(fs.super.sum, b); err != nil {
			return err
		}
	}
	if le.Uint64(b[0x30:]) != logical {
		return corrupt("it belongs to %d", le.Uint64(b[0x30:]))
	}
	if b[100] != level {
		return corrupt("level %d, not %d", b[100], level)
	}
	n := int64(le.Uint32(b[96:]))
	each := int64(ptrSize)
	if level == 0 {
		each = itemSize
	}
	if n > (fs.super.node-headerSize)/each {
		return corrupt("%d items", n)
	}
	if level > 0 {
		return nil
	}
	for i := range n {
		item := b[headerSize+i*itemSize:]
		off, size := int64(le.Uint32(item[17:])), int64(le.Uint32(item[21:]))
		if off+size > fs.super.node-headerSize || off < n*itemSize {
			return corrupt("item %d at %d of %d bytes", i, off, size)
		}
	}
	return nil
}

// search calls fn for the items from a key on, in order, until fn says no.
// What lies under a damaged block is passed over, and the damage told at the
// end.
func (fs *FS) search(ctx context.Context, root treeRoot, from key, fn func(k key, data []byte) (bool, error)) error {
	s := &searcher{ctx: ctx, fs: fs, from: from, fn: fn}
	if root.level > maxLevel {
		return corrupt("a tree of level %d", root.level)
	}
	_, err := s.in(root.logical, root.level)
	if err != nil {
		return err
	}
	return s.damage
}

type searcher struct {
	ctx    context.Context
	fs     *FS
	from   key
	fn     func(k key, data []byte) (bool, error)
	damage error
	last   key
	some   bool
}

// in searches below a block. Levels go down at each step, so it ends.
func (s *searcher) in(logical uint64, level uint8) (more bool, err error) {
	if err := s.ctx.Err(); err != nil {
		return false, err
	}
	b, err := s.fs.block(logical, level)
	if err != nil {
		if !errors.Is(err, filesystem.ErrCorrupt) {
			return false, err
		}
		if s.damage == nil {
			s.damage = err
		}
		return true, nil
	}
	n := int(le.Uint32(b[96:]))
	if level > 0 {
		at := func(i int) []byte { return b[headerSize+i*ptrSize:] }
		// The last child that begins at or before the key, and all behind it.
		first := max(0, sort.Search(n, func(i int) bool { return s.from.less(keyAt(at(i))) })-1)
		for i := first; i < n; i++ {
			if more, err := s.in(le.Uint64(at(i)[17:]), level-1); !more || err != nil {
				return more, err
			}
		}
		return true, nil
	}
	at := func(i int) []byte { return b[headerSize+i*itemSize:] }
	for i := sort.Search(n, func(i int) bool { return !keyAt(at(i)).less(s.from) }); i < n; i++ {
		k := keyAt(at(i))
		if s.some && !s.last.less(k) { // a hostile tree may lead back
			if s.damage == nil {
				s.damage = corrupt("tree block %d: keys out of order", logical)
			}
			return false, nil
		}
		s.last, s.some = k, true
		off, size := le.Uint32(at(i)[17:]), le.Uint32(at(i)[21:])
		if more, err := s.fn(k, b[headerSize+off:][:size]); !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

// item gives the data of one item; nil when there is none.
func (fs *FS) item(ctx context.Context, root treeRoot, want key) ([]byte, error) {
	var found []byte
	err := fs.search(ctx, root, want, func(k key, data []byte) (bool, error) {
		if k == want {
			found = data
		}
		return false, nil
	})
	if found != nil {
		return found, nil
	}
	return nil, err
}

// cacheBytes is what the blocks of trees take in memory.
const cacheBytes = 8 << 20

// blockCache keeps the blocks that were read last. They are never changed.
type blockCache struct {
	mu     sync.Mutex
	limit  int
	blocks map[uint64]*cachedBlock
	ring   []uint64
	hand   int
}

type cachedBlock struct {
	b    []byte
	used bool
}

func newCache(node int64) *blockCache {
	return &blockCache{limit: int(cacheBytes / node), blocks: map[uint64]*cachedBlock{}}
}

func (c *blockCache) get(logical uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.blocks[logical]; e != nil {
		e.used = true
		return e.b
	}
	return nil
}

func (c *blockCache) put(logical uint64, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[logical] != nil {
		return
	}
	if len(c.ring) < c.limit {
		c.ring = append(c.ring, logical)
	} else {
		for c.blocks[c.ring[c.hand]].used {
			c.blocks[c.ring[c.hand]].used = false
			c.hand = (c.hand + 1) % len(c.ring)
		}
		delete(c.blocks, c.ring[c.hand])
		c.ring[c.hand] = logical
		c.hand = (c.hand + 1) % len(c.ring)
	}
	c.blocks[logical] = &cachedBlock{b: b}
}
