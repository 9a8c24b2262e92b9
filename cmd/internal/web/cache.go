package web

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"cairn/cmd/internal/wire"
	"cairn/fs/tree"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Bounds of what is kept between requests.
const (
	maxOpenPoints = 16     // manifests, with the filesystems that were opened
	maxPastPoints = 12_000 // points in all Pasts together: some 3 KiB each
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
	past *catalogue.Past
}

// pastCache keeps the pasts of the VMs that were asked about last: what a second
// question asks is open already.
type pastCache struct {
	mu   sync.Mutex
	list []*keptPast
}

func newPastCache() *pastCache { return new(pastCache) }

// open gives the past of a VM: of all its points (whole), or of some. What an
// earlier question opened is not opened again.
func (c *pastCache) open(ctx context.Context, cat *wire.Catalogue, vm string, points []restorepoint.Summary, whole bool) (*catalogue.Past, error) {
	old := c.find(cat, vm)
	var before *catalogue.Past
	if old != nil {
		if before = old.past; samePoints(before.Points(), points) {
			return before, nil
		}
	}
	from := cat.NewOpener()
	from.Walk = func(_ restorepoint.Summary, why error) error {
		return fmt.Errorf("it has no catalogue of files (cairn catalogue --all makes those that are missing): %w", why)
	}
	past, err := catalogue.NewPast(ctx, points, from, before)
	if err != nil {
		return nil, err
	}
	unread := false
	past.Unread(func(int, error) { unread = true })
	if unread || !whole && old != nil { // the next question tries again, or wants what is kept
		return past, nil
	}
	c.keep(&keptPast{cat, vm, past})
	return past, nil
}

// keep keeps a past in place of the VM's earlier one; the pasts that were asked
// longest ago go when there are too many points.
func (c *pastCache) keep(p *keptPast) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := len(p.past.Points())
	if sum > maxPastPoints {
		return
	}
	first := len(c.list)
	for i := len(c.list) - 1; i >= 0; i-- {
		if c.list[i].cat != p.cat || c.list[i].vm != p.vm {
			if sum += len(c.list[i].past.Points()); sum > maxPastPoints {
				break
			}
		}
		first = i
	}
	var list []*keptPast
	for _, o := range c.list[first:] {
		if o.cat != p.cat || o.vm != p.vm {
			list = append(list, o)
		}
	}
	c.list = append(list, p)
}

func samePoints(a, b []restorepoint.Summary) bool {
	return slices.EqualFunc(a, b, func(x, y restorepoint.Summary) bool { return x.ID == y.ID })
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
