package btrfs

import "sync"

// cacheBytes is the memory that one filesystem's node cache may hold, and
// plainBytes that of its cache of decompressed extents.
const (
	cacheBytes = 8 << 20
	plainBytes = 4 << 20
)

const cacheShards = 8

// nodeCache is a clock cache of a fixed number of nodes.
type nodeCache struct {
	shards [cacheShards]clock[nodeKey, *node]
}

// nodeKey has the transaction as well: a node that two pointers expect from
// different transactions is right for one of them only.
type nodeKey struct{ bytenr, gen uint64 }

func newNodeCache(nodeSize int) *nodeCache {
	c := &nodeCache{}
	for i := range c.shards {
		c.shards[i].init(max(4, cacheBytes/nodeSize/cacheShards))
	}
	return c
}

func (c *nodeCache) shard(bytenr uint64) *clock[nodeKey, *node] {
	return &c.shards[bytenr>>12*0x9E3779B97F4A7C15>>61]
}

func (c *nodeCache) get(ref nodeRef) *node {
	n, _ := c.shard(ref.bytenr).get(nodeKey{ref.bytenr, ref.gen})
	return n
}

func (c *nodeCache) put(ref nodeRef, n *node) {
	c.shard(ref.bytenr).put(nodeKey{ref.bytenr, ref.gen}, n)
}

// clock is a map of a bounded number of values that forgets one that was not
// used for a while.
type clock[K comparable, V any] struct {
	mu    sync.Mutex
	index map[K]int
	slots []clockSlot[K, V]
	limit int
	hand  int
}

type clockSlot[K comparable, V any] struct {
	key   K
	value V
	used  bool
}

func (c *clock[K, V]) init(limit int) {
	c.index, c.limit = make(map[K]int), limit
}

func (c *clock[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.index[k]
	if !ok {
		return v, false
	}
	c.slots[i].used = true
	return c.slots[i].value, true
}

func (c *clock[K, V]) put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.index[k]; ok { // another goroutine read it meanwhile
		c.slots[i].value = v
		return
	}
	if len(c.slots) < c.limit {
		c.index[k] = len(c.slots)
		c.slots = append(c.slots, clockSlot[K, V]{key: k, value: v})
		return
	}
	for c.slots[c.hand].used {
		c.slots[c.hand].used = false
		c.hand = (c.hand + 1) % len(c.slots)
	}
	delete(c.index, c.slots[c.hand].key)
	c.slots[c.hand] = clockSlot[K, V]{key: k, value: v}
	c.index[k] = c.hand
	c.hand = (c.hand + 1) % len(c.slots)
}
