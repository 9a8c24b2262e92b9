package xfs

import (
	"sync"
	"testing"
)

// TestCacheIsBounded puts many times as much into a cache as it may hold, from
// several goroutines.
func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	key := func(i int) blockKey { return blockKey{offset: int64(i) * 4096, owner: uint64(i % 3), kind: kindInodes} }
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < 20_000; i += 4 {
				c.put(key(i), &verified{data: make([]byte, 1024<<(i%4))})
				if v := c.get(key(i)); v != nil && len(v.data) != 1024<<(i%4) {
					t.Errorf("block %d has %d bytes", i, len(v.data))
				}
				c.get(key(i / 2))
			}
		})
	}
	wg.Wait()
	held := 0
	for i := range 20_000 {
		if v := c.get(key(i)); v != nil {
			held += len(v.data)
		}
	}
	if held > cacheBytes || held < cacheBytes/2 {
		t.Errorf("%d bytes are held, the limit is %d", held, cacheBytes)
	}
	for i := range c.shards {
		if s := &c.shards[i]; len(s.slots) > 4*cacheBytes/cacheShards/1024 {
			t.Errorf("shard %d has %d slots", i, len(s.slots))
		}
	}
}
