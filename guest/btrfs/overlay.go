package btrfs

import (
	"slices"
	"sort"
)

// overlay holds items of a replayed log, by key. They stand over the items of
// the subvolume's tree; a nil item stands for one that the log took away.
// Blocks of items keep putting one in cheap.
type overlay struct {
	blocks [][]overItem // none is empty
	count  int
	bytes  int // of all items
}

type overItem struct {
	key  key
	item []byte
}

const overlayBlock = 256 // items

// overPos is a place in an overlay.
type overPos struct{ block, i int }

// search gives the place of the first item that is not below k.
func (o *overlay) search(k key) overPos {
	b := sort.Search(len(o.blocks), func(b int) bool {
		last := o.blocks[b][len(o.blocks[b])-1].key
		return !last.less(k)
	})
	if b == len(o.blocks) {
		return overPos{b, 0}
	}
	items := o.blocks[b]
	return overPos{b, sort.Search(len(items), func(i int) bool { return !items[i].key.less(k) })}
}

// at gives the item of a place; nil at the end.
func (o *overlay) at(p overPos) *overItem {
	if p.block < 0 || p.block >= len(o.blocks) {
		return nil
	}
	return &o.blocks[p.block][p.i]
}

func (o *overlay) after(p overPos) overPos {
	if p.i++; p.i >= len(o.blocks[p.block]) {
		return overPos{p.block + 1, 0}
	}
	return p
}

func (o *overlay) before(p overPos) overPos {
	if p.i--; p.i < 0 {
		if p.block--; p.block >= 0 {
			p.i = len(o.blocks[p.block]) - 1
		}
	}
	return p
}

// has says whether the overlay decides over an item.
func (o *overlay) has(k key) bool {
	e := o.at(o.search(k))
	return e != nil && e.key == k
}

// set puts an item in; nil takes it away.
func (o *overlay) set(k key, item []byte) {
	p := o.search(k)
	o.bytes += len(item)
	if e := o.at(p); e != nil && e.key == k {
		o.bytes -= len(e.item)
		e.item = item
		return
	}
	o.count++
	if p.block == len(o.blocks) {
		if p.block == 0 {
			o.blocks = append(o.blocks, []overItem{{k, item}})
			return
		}
		p.block--
		p.i = len(o.blocks[p.block])
	}
	b := slices.Insert(o.blocks[p.block], p.i, overItem{k, item})
	if len(b) > overlayBlock {
		rest := slices.Clone(b[overlayBlock/2:])
		b = b[:overlayBlock/2]
		o.blocks = slices.Insert(o.blocks, p.block+1, rest)
	}
	o.blocks[p.block] = b
}

// floor is cursor.seek and current with the overlay in the way.
func (o *overlay) floor(c *cursor, root nodeRef, k key) (key, []byte, error) {
	if err := c.seek(root, k); err != nil {
		return key{}, nil, err
	}
	below, item := c.current()
	for item != nil && o.has(below) {
		if err := c.previous(); err != nil {
			return key{}, nil, err
		}
		below, item = c.current()
	}
	p := o.search(k)
	if e := o.at(p); e == nil || e.key != k {
		p = o.before(p)
	}
	for o.at(p) != nil && o.at(p).item == nil {
		p = o.before(p)
	}
	if e := o.at(p); e != nil && (item == nil || below.less(e.key)) {
		return e.key, e.item, nil
	}
	return below, item, nil
}

// scan is cursor.scan with the overlay merged in.
func (o *overlay) scan(c *cursor, root nodeRef, lo, hi key, fn func(k key, item []byte) error) error {
	if err := c.start(root, lo); err != nil {
		return err
	}
	p := o.search(lo)
	for {
		k, item := c.current()
		inTree := item != nil && !hi.less(k)
		e := o.at(p)
		inOver := e != nil && !hi.less(e.key)
		if !inTree && !inOver {
			return nil
		}
		useOver := inOver && (!inTree || !k.less(e.key))
		replaced := useOver && inTree && k == e.key
		if useOver {
			k, item = e.key, e.item
			p = o.after(p)
		}
		if item != nil {
			if err := fn(k, item); err != nil {
				return err
			}
		}
		if !useOver || replaced {
			if err := c.next(); err != nil {
				return err
			}
		}
	}
}
