package wire

import (
	"context"
	"slices"
	"sync"

	"cairn/fs/tree"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// maxCompared is how many points a Comparer keeps open.
const maxCompared = 4

// Comparer compares files of points by reading them.
type Comparer struct {
	cat *Catalogue

	mu   sync.Mutex
	open []comparedPoint // last opened at the end
}

type comparedPoint struct {
	id   string
	tree *tree.Tree
}

// NewComparer gives a Comparer of the catalogue's points.
func (c *Catalogue) NewComparer() *Comparer { return &Comparer{cat: c} }

// Equal implements catalogue.Equal.
func (c *Comparer) Equal(ctx context.Context, a, b catalogue.Place) (bool, error) {
	one, err := c.tree(ctx, a.Point)
	if err != nil {
		return false, err
	}
	two, err := c.tree(ctx, b.Point)
	if err != nil {
		return false, err
	}
	f, err := one.OpenRegular(ctx, a.Path)
	if err != nil {
		return false, err
	}
	g, err := two.OpenRegular(ctx, b.Path)
	if err != nil {
		return false, err
	}
	return tree.SameContents(ctx, f, g)
}

func (c *Comparer) tree(ctx context.Context, id string) (*tree.Tree, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.IndexFunc(c.open, func(p comparedPoint) bool { return p.id == id }); i >= 0 {
		return c.open[i].tree, nil
	}
	m, err := c.cat.Manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	t, err := tree.Open(ctx, m, func(disk string) (restorepoint.Image, error) { return c.cat.Image(ctx, m, disk) })
	if err != nil {
		return nil, err
	}
	if len(c.open) == maxCompared {
		c.open = slices.Delete(c.open, 0, 1)
	}
	c.open = append(c.open, comparedPoint{id, t})
	return t, nil
}
