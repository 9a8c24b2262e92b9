package pages

import "sync"

// Size of a page in bytes.
const Size = 4096

const (
	cacheBytes  = 4 << 20
	cacheShards = 16
)

// cache is a clock cache of pages of the image, which are never changed.
type cache struct {
	shards [cacheShards]cacheShard
}

type cacheShard struct {
	mu    sync.Mutex
	index map[int64]int // page number to slot
	slots []cacheSlot
	hand  int
}

type cacheSlot struct {
	page int64
	data []byte
	used bool
}

const shardSlots = cacheBytes / Size / cacheShards

func newCache() *cache {
	c := &cache{}
	for i := range c.shards {
		c.shards[i].index = make(map[int64]int)
	}
	return c
}

func (c *cache) shard(page int64) *cacheShard {
	return &c.shards[uint64(page)%cacheShards]
}

func (c *cache) get(page int64) []byte {
	s := c.shard(page)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[page]
	if !ok {
		return nil
	}
	s.slots[i].used = true
	return s.slots[i].data
}

func (c *cache) put(page int64, data []byte) {
	s := c.shard(page)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.index[page]; ok { // another goroutine read it meanwhile
		return
	}
	if len(s.slots) < shardSlots {
		s.index[page] = len(s.slots)
		s.slots = append(s.slots, cacheSlot{page: page, data: data})
		return
	}
	for s.slots[s.hand].used {
		s.slots[s.hand].used = false
		s.hand = (s.hand + 1) % len(s.slots)
	}
	delete(s.index, s.slots[s.hand].page)
	s.slots[s.hand] = cacheSlot{page: page, data: data}
	s.index[page] = s.hand
	s.hand = (s.hand + 1) % len(s.slots)
}
