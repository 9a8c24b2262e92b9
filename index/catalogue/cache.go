package catalogue

import (
	"container/list"
	"context"
	"fmt"
	"sync"
)

// Cache gives directories, and keeps those that were asked for lately. It may
// be used by many goroutines.
type Cache struct {
	src   Records
	limit int64

	mu    sync.Mutex
	nodes map[place]*list.Element
	lru   list.List // of *cached, newest first
	used  int64
}

type cached struct {
	at   place
	node *node
}

// NewCache gives a Cache over stored nodes that keeps some limit bytes.
func NewCache(src Records, limit int64) *Cache {
	return &Cache{src: src, limit: limit, nodes: map[place]*list.Element{}}
}

// Directory implements Nodes. The error wraps ErrCorrupt when the node is
// damaged; others are the store's.
func (c *Cache) Directory(ctx context.Context, ref Ref) (*Directory, error) {
	n, err := c.load(ctx, ref.place())
	if err != nil {
		return nil, err
	}
	return &n.Directory, nil
}

func (c *Cache) load(ctx context.Context, at place) (*node, error) {
	if n := c.known(at); n != nil {
		return n, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, err := c.read(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("catalogue, %s, record %d: %w", at.pack, at.record, err)
	}
	c.keep(at, n)
	return n, nil
}

// known gives a node that is kept, or nil.
func (c *Cache) known(at place) *node {
	if c.limit == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.nodes[at]
	if e == nil {
		return nil
	}
	c.lru.MoveToFront(e)
	return e.Value.(*cached).node
}

// keep remembers a node, unless it alone would take much of the room.
func (c *Cache) keep(at place, n *node) {
	if c.limit == 0 || n.size > c.limit/2 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes[at] != nil {
		return // somebody else read it meanwhile
	}
	c.nodes[at] = c.lru.PushFront(&cached{at, n})
	c.used += n.size
	for c.used > c.limit {
		old := c.lru.Remove(c.lru.Back()).(*cached)
		delete(c.nodes, old.at)
		c.used -= old.node.size
	}
}
