package btrfs

import (
	"context"
	"errors"
)

// tree is one of the filesystem's trees of items.
type tree struct {
	fs   *FS
	root nodeRef
	// over holds items that replace those of the tree; nil: none.
	over *overlay
}

// How a scan takes nodes that cannot be read.
const (
	strict   = false // it ends there
	tolerant = true  // it goes on behind them and tells at its end
)

// errStop ends a scan without an error.
var errStop = errors.New("stop")

// get finds one item; nil when it is not there.
func (t *tree) get(ctx context.Context, k key) ([]byte, error) {
	found, item, err := t.floor(ctx, k)
	if err != nil || found != k {
		return nil, err
	}
	return item, nil
}

// floor finds the last item whose key is not above k. A nil item means that
// there is none.
func (t *tree) floor(ctx context.Context, k key) (key, []byte, error) {
	c := cursor{ctx: ctx, fs: t.fs}
	if t.over != nil {
		return t.over.floor(&c, t.root, k)
	}
	if err := c.seek(t.root, k); err != nil {
		return key{}, nil, err
	}
	found, item := c.current()
	return found, item, nil
}

// scan calls fn for the items with lo <= key <= hi in order. An error of fn
// ends it; errStop does so without being an error. Items may be kept, but
// not changed.
func (t *tree) scan(ctx context.Context, lo, hi key, mode bool, fn func(k key, item []byte) error) error {
	c := cursor{ctx: ctx, fs: t.fs, tolerant: mode}
	var err error
	if t.over != nil {
		err = t.over.scan(&c, t.root, lo, hi, fn)
	} else {
		err = c.scan(t.root, lo, hi, fn)
	}
	if err == errStop {
		err = nil
	}
	if err == nil {
		err = c.damage
	}
	return err
}

// cursor is a place in a tree. Every node on the way is bound by the keys of
// its parent, so that no node is met twice whatever the pointers say.
type cursor struct {
	ctx      context.Context
	fs       *FS
	tolerant bool
	damage   error // the first of a tolerant cursor

	depth int // the deepest frame that is used, -1: at the end
	stack [maxLevels]frame
}

type frame struct {
	n  *node
	i  int
	hi key // above all keys of n
}

// seek goes to the last item that is not above k, or before the first one.
func (c *cursor) seek(root nodeRef, k key) error {
	n, err := c.fs.node(c.ctx, root)
	if err != nil {
		return c.tolerate(err)
	}
	if n.n == 0 && n.level > 0 {
		return c.tolerate(corrupt("node at %d: empty", root.bytenr))
	}
	c.depth, c.stack[0] = 0, frame{n, n.floor(k), maxKey}
	for {
		f := &c.stack[c.depth]
		if f.n.level == 0 {
			return nil
		}
		f.i = max(f.i, 0)
		if err := c.push(); err != nil {
			return c.tolerateHere(err)
		}
		f = &c.stack[c.depth]
		f.i = f.n.floor(k)
	}
}

// push goes down into the child that the deepest frame stands at.
func (c *cursor) push() error {
	f := &c.stack[c.depth]
	if c.depth+1 >= maxLevels {
		return corrupt("a tree of more than %d levels", maxLevels)
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	ref := f.n.child(f.i)
	n, err := c.fs.node(c.ctx, ref)
	if err != nil {
		return err
	}
	hi := f.hi
	if f.i+1 < f.n.n {
		hi = f.n.key(f.i + 1)
	}
	if n.n == 0 || n.key(0) != f.n.key(f.i) || !n.key(n.n-1).less(hi) && hi != maxKey {
		return corrupt("node at %d: its keys do not fit its parent", ref.bytenr)
	}
	c.depth++
	c.stack[c.depth] = frame{n, 0, hi}
	return nil
}

// tolerateHere keeps an error and stays in the parent of what is damaged.
func (c *cursor) tolerateHere(err error) error {
	if !c.tolerant || c.ctx.Err() != nil {
		return err
	}
	if c.damage == nil {
		c.damage = err
	}
	return nil
}

// tolerate keeps an error and leaves the cursor at the end.
func (c *cursor) tolerate(err error) error {
	c.depth = -1
	return c.tolerateHere(err)
}

// current gives the item that the cursor stands at; nil: it stands nowhere.
func (c *cursor) current() (key, []byte) {
	if c.depth < 0 {
		return key{}, nil
	}
	f := &c.stack[c.depth]
	if f.n.level > 0 || f.i < 0 || f.i >= f.n.n {
		return key{}, nil
	}
	return f.n.key(f.i), f.n.item(f.i)
}

// next goes to the next item; at the end current gives nil.
func (c *cursor) next() error { return c.move(1) }

// previous goes to the item before; at the start current gives nil.
func (c *cursor) previous() error { return c.move(-1) }

func (c *cursor) move(step int) error {
	for c.depth >= 0 {
		f := &c.stack[c.depth]
		if f.i += step; f.i < 0 || f.i >= f.n.n {
			c.depth--
			continue
		}
		for c.stack[c.depth].n.level > 0 {
			if err := c.push(); err != nil {
				if err := c.tolerateHere(err); err != nil {
					return err
				}
				break
			}
			if f := &c.stack[c.depth]; step < 0 {
				f.i = f.n.n - 1
			}
		}
		if c.stack[c.depth].n.level == 0 {
			return nil
		}
	}
	return nil
}

func (c *cursor) scan(root nodeRef, lo, hi key, fn func(k key, item []byte) error) error {
	if err := c.start(root, lo); err != nil {
		return err
	}
	for {
		k, item := c.current()
		if item == nil || hi.less(k) {
			return nil
		}
		if err := fn(k, item); err != nil {
			return err
		}
		if err := c.next(); err != nil {
			return err
		}
	}
}

// start goes to the first item that is not below lo.
func (c *cursor) start(root nodeRef, lo key) error {
	if err := c.seek(root, lo); err != nil {
		return err
	}
	if c.depth < 0 {
		return nil
	}
	if k, item := c.current(); item == nil || k.less(lo) {
		return c.next()
	}
	return nil
}

// notExist is what is told of an object that a tree lacks although something
// points to it.
func notExist(format string, args ...any) error {
	return corrupt(format+" is missing", args...)
}
