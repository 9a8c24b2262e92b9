package xfs

import "sync"

// cacheBytes is the memory that one filesystem's metadata cache may hold.
const cacheBytes = 4 << 20

const cacheShards = 16

// blockKind is what a metadata block was verified as.
type blockKind uint8

const (
	kindInodes blockKind = iota
	kindExtents
	kindDirData
	kindDirIndex
	kindAttr
)

// blockKey names a verified block. The same block read as something else, or
// for another inode, needs another check and has another key.
type blockKey struct {
	offset int64  // bytes in the image; of directories and attributes: block in the fork
	owner  uint64 // inode; 0 when none
	kind   blockKind
}

// verified is a block that was read and checked once. It is never changed.
type verified struct {
	data []byte
	err  error    // the block as a whole is damaged
	bad  []uint64 // bit set: this inode has a wrong checksum; nil: none
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

// cache is a clock cache of a fixed number of bytes.
type cache struct {
	shards [cacheShards]cacheShard
}

type cacheShard struct {
	mu    sync.Mutex
	index map[blockKey]int
	slots []cacheSlot
	hand  int
	bytes int
	empty []int // slots without a block
}

type cacheSlot struct {
	key   blockKey
	block *verified
	used  bool
}

func newCache() *cache {
	c := &cache{}
	for i := range c.shards {
		c.shards[i].index = make(map[blockKey]int)
	}
	return c
}

func (c *cache) shard(k blockKey) *cacheShard {
	h := (uint64(k.offset) ^ k.owner<<20 ^ uint64(k.kind)<<59) * 0x9E3779B97F4A7C15
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
	if _, ok := s.index[k]; ok { // another goroutine read it meanwhile
		return
	}
	s.bytes += len(v.data)
	for s.bytes > cacheBytes/cacheShards && len(s.index) > 0 {
		s.evict()
	}
	i := len(s.slots)
	if n := len(s.empty); n > 0 {
		i, s.empty = s.empty[n-1], s.empty[:n-1]
		s.slots[i] = cacheSlot{key: k, block: v}
	} else {
		s.slots = append(s.slots, cacheSlot{key: k, block: v})
	}
	s.index[k] = i
}

// evict drops the next block that was not used since the hand last passed it.
func (s *cacheShard) evict() {
	for {
		i := s.hand
		s.hand = (s.hand + 1) % len(s.slots)
		slot := &s.slots[i]
		switch {
		case slot.block == nil:
		case slot.used:
			slot.used = false
		default:
			s.bytes -= len(slot.block.data)
			delete(s.index, slot.key)
			*slot = cacheSlot{}
			s.empty = append(s.empty, i)
			return
		}
	}
}
