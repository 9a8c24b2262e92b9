package ext4

import "sync"

// cacheBytes is the memory that one filesystem's metadata cache may hold.
const cacheBytes = 4 << 20

const cacheShards = 16

// blockKind is what a metadata block was verified as.
type blockKind uint8

const (
	kindDescriptors blockKind = iota
	kindInodes
	kindDirectory
	kindExtents
	kindIndirect
	kindXattr
)

// blockKey names a verified block. The same block read as something else, or
// for another inode, needs another check and has another key.
type blockKey struct {
	block uint64
	owner uint32 // inode (its first, for inode tables); 0 when none
	kind  blockKind
}

// verified is a block that was read and checked once. It is never changed.
type verified struct {
	data []byte
	err  error    // the block as a whole is damaged
	bad  []uint64 // bit set: this inode or descriptor has a wrong checksum; nil: none
}

func (v *verified) isBad(i int) bool {
	return v.bad != nil && v.bad[i/64]>>(i%64)&1 != 0
}

func (v *verified) markBad(i, total int) {
	if v.bad == nil {
		v.bad = make([]uint64, (total+63)/64)
	}
	v.bad[i/64] |= 1 << (i % 64)
}

// cache is a clock cache of a fixed number of blocks.
type cache struct {
	shards [cacheShards]cacheShard
}

type cacheShard struct {
	mu    sync.Mutex
	index map[blockKey]int
	slots []cacheSlot
	limit int
	hand  int
}

type cacheSlot struct {
	key   blockKey
	block *verified
	used  bool
}

func newCache(blockSize int64) *cache {
	c := &cache{}
	for i := range c.shards {
		c.shards[i].index = make(map[blockKey]int)
		c.shards[i].limit = max(4, int(cacheBytes/blockSize/cacheShards))
	}
	return c
}

func (c *cache) shard(k blockKey) *cacheShard {
	h := (k.block ^ uint64(k.kind)<<59) * 0x9E3779B97F4A7C15
	return &c.shards[h>>60%cacheShards]
}

func (c *cache) get(k blockKey) *verified {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[k]
	if !ok {
		return nil
	}
	s.slots[i].used = true
	return s.slots[i].block
}

func (c *cache) put(k blockKey, v *verified) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.index[k]; ok { // another goroutine read it meanwhile
		s.slots[i].block = v
		return
	}
	if len(s.slots) < s.limit {
		s.index[k] = len(s.slots)
		s.slots = append(s.slots, cacheSlot{key: k, block: v})
		return
	}
	for s.slots[s.hand].used {
		s.slots[s.hand].used = false
		s.hand = (s.hand + 1) % len(s.slots)
	}
	delete(s.index, s.slots[s.hand].key)
	s.slots[s.hand] = cacheSlot{key: k, block: v}
	s.index[k] = s.hand
	s.hand = (s.hand + 1) % len(s.slots)
}
