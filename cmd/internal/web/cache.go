package web

import (
	"context"
	"fmt"
	"sync"

	"cairn/cmd/internal/library"
	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Bounds of what is kept between requests.
const (
	maxOpenPoints = 16    // manifests, with the filesystems that were opened
	maxPastPoints = 4_000 // points in all Pasts together
)

// openPoint is a point that was opened.
type openPoint struct {
	cat      *wire.Catalogue // that it was opened with: another one when the repository was opened anew
	manifest *restorepoint.Manifest
	tree     *tree.Tree
}

// pointCache keeps the points that were looked at last.
type pointCache struct {
	mu   sync.Mutex
	list []*openPoint // the last one used at the end
}

func newPointCache() *pointCache { return new(pointCache) }

// open gives a point; its tree is not looked into before it is asked.
func (c *pointCache) open(ctx context.Context, cat *wire.Catalogue, id string) (*openPoint, error) {
	if p := c.find(cat, id); p != nil {
		return p, nil
	}
	m, err := cat.Manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	t, err := cat.Tree(ctx, m)
	if err != nil {
		return nil, err
	}
	if p := c.find(cat, id); p != nil {
		return p, nil // somebody was faster
	}
	p := &openPoint{cat, m, t}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, p)
	if len(c.list) > maxOpenPoints {
		c.list = append([]*openPoint(nil), c.list[1:]...)
	}
	return p, nil
}

func (c *pointCache) find(cat *wire.Catalogue, id string) *openPoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.list {
		if p.cat == cat && p.manifest.ID == id {
			c.list = append(append(c.list[:i:i], c.list[i+1:]...), p)
			return p
		}
	}
	return nil
}

// keptPast is the past of a VM in a repository.
type keptPast struct {
	cat  *wire.Catalogue
	vm   string
	asOf *library.Snapshot
	past *catalogue.Past
	n    int
}

// pastCache keeps the pasts of the VMs that were asked about last: what a second
// question asks is open already.
type pastCache struct {
	mu   sync.Mutex
	list []*keptPast
}

func newPastCache() *pastCache { return new(pastCache) }

// open gives the past of a VM: of all its points, or of the few that are named.
// What an earlier question opened is not opened again.
func (c *pastCache) open(ctx context.Context, cat *wire.Catalogue, snap *library.Snapshot, vm string, points []restorepoint.Summary, whole bool) (*catalogue.Past, error) {
	old := c.find(cat, vm)
	if whole && old != nil && old.asOf == snap {
		return old.past, nil
	}
	var before *catalogue.Past
	if old != nil {
		before = old.past
	}
	from := cat.NewOpener()
	from.Walk = func(_ restorepoint.Summary, why error) error {
		return fmt.Errorf("it has no catalogue of files (cairn catalogue --all makes those that are missing): %w", why)
	}
	past, err := catalogue.NewPast(ctx, points, from, before)
	if err != nil || !whole {
		return past, err
	}
	unread := false
	past.Unread(func(int, error) { unread = true })
	if unread {
		return past, nil // the next question tries again
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := len(points)
	var list []*keptPast
	for i := len(c.list) - 1; i >= 0; i-- {
		if o := c.list[i]; (o.cat != cat || o.vm != vm) && sum+o.n <= maxPastPoints {
			sum += o.n
			list = append([]*keptPast{o}, list...)
		}
	}
	c.list = list
	if len(points) <= maxPastPoints {
		c.list = append(c.list, &keptPast{cat, vm, snap, past, len(points)})
	}
	return past, nil
}

func (c *pastCache) find(cat *wire.Catalogue, vm string) *keptPast {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.list {
		if p.cat == cat && p.vm == vm {
			c.list = append(append(c.list[:i:i], c.list[i+1:]...), p)
			return p
		}
	}
	return nil
}
