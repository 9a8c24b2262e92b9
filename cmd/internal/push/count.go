package push

import (
	"context"
	"path"

	"cairn/fs/tree"
	"cairn/guest"
)

// counter is a tree.Sink that counts what a put announces, and what cannot be
// read, as far as that shows without reading contents.
type counter struct {
	ctx            context.Context
	view           *tree.View
	above          string           // path of the folder that the tree is in
	result         *guest.PutResult // for failures
	entries, bytes int64
	add            func(int64)
}

// Enter implements tree.Sink.
func (c *counter) Enter(*tree.Item) error {
	c.count()
	return nil
}

// Leave implements tree.Sink.
func (c *counter) Leave(*tree.Item) error { return nil }

func (c *counter) count() {
	c.entries++
	c.add(1)
}

// Take implements tree.Sink.
func (c *counter) Take(i *tree.Item) error {
	if i.Again {
		return nil
	}
	c.count()
	if !i.Attr.IsRegular() {
		return nil
	}
	f, err := c.view.Tree().Open(c.ctx, i.Node)
	if err != nil {
		return err
	}
	return tree.Extents(c.ctx, f, func(start, end int64) error {
		c.bytes += end - start
		return nil
	})
}

// Failed implements tree.Sink.
func (c *counter) Failed(p string, why error) error {
	c.result.Failed(path.Join(c.above, p), why)
	c.result.Lost++
	return nil
}
