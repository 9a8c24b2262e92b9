package catalogue

import (
	"container/list"
	"context"
	"sync"
)

// maxCached is how many entries the directories in a cache hold together:
// about 200 bytes each.
const maxCached = 64 << 10

// cache keeps directories that were read lately, by hash: what several points
// share is read once.
type cache struct {
	mu      sync.Mutex
	byHash  map[Hash]*list.Element
	order   list.List // of *cachedDirectory, last used in front
	entries int
}

type cachedDirectory struct {
	hash      Hash
	directory *Directory
}

func newCache() *cache { return &cache{byHash: map[Hash]*list.Element{}} }

// weight counts an empty directory, too.
func (c *cachedDirectory) weight() int { return len(c.directory.Entries) + 1 }

func (c *cache) get(h Hash) *Directory {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byHash[h]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cachedDirectory).directory
}

func (c *cache) put(h Hash, d *Directory) {
	fresh := &cachedDirectory{h, d}
	if fresh.weight() > maxCached/4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byHash[h] != nil {
		return
	}
	c.byHash[h] = c.order.PushFront(fresh)
	for c.entries += fresh.weight(); c.entries > maxCached; {
		last := c.order.Back()
		old := c.order.Remove(last).(*cachedDirectory)
		delete(c.byHash, old.hash)
		c.entries -= old.weight()
	}
}

// cachedNodes are a point's nodes behind a cache.
type cachedNodes struct {
	nodes Nodes
	cache *cache
}

// Directory implements Nodes.
func (n cachedNodes) Directory(ctx context.Context, ref Ref) (*Directory, error) {
	if d := n.cache.get(ref.Hash); d != nil {
		return d, nil
	}
	d, err := n.nodes.Directory(ctx, ref)
	if err == nil {
		n.cache.put(ref.Hash, d)
	}
	return d, err
}
