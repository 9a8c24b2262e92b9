package catalogue

import (
	"context"
	"encoding/binary"
	"fmt"
	"unsafe"

	"cairn/chunkstore/chunk"
)

// node is a directory with what only a builder needs of it.
type node struct {
	Directory
	below  [][]span // of each entry with Dir, in order
	leaves []leaf
	size   int64 // in memory, bytes
}

// leaf is one record of a directory: entries in a range of names.
type leaf struct {
	at      place
	base    place // the record that this one differs from; at when it is whole
	full    entryList
	entries entryList
	damaged bool
}

// entryList is entries with the spans of those with Dir.
type entryList struct {
	entries []Entry
	below   [][]span
}

// encodeLeaf gives a whole leaf's record. Part of the on-disk format:
//
//	3 · version · damaged · packs · entries
func encodeLeaf(t *packTable, e *entryEncoder, damaged byte) []byte {
	b := make([]byte, 0, e.size()+16+48*len(t.packs))
	return e.append(t.append(append(b, kindLeaf, nodeVersion, damaged)))
}

// encodeDelta gives the record of a leaf that differs from a whole one by the
// entries that are gone, and those that are new or changed. Part of the
// on-disk format:
//
//	4 · version · damaged · packs · pack, record of the whole leaf
//	  · uvarint entries that are gone · each, by its number in the whole leaf,
//	    uvarint: those skipped since the last one · entries
//
// An entry whose name is in the whole leaf has in place of it a zero byte and
// the same kind of number, and its row is a difference from the entry there,
// not from the row before.
func encodeDelta(t *packTable, e *entryEncoder, damaged byte, base int, record int, gone []int) []byte {
	b := make([]byte, 0, e.size()+64+48*len(t.packs))
	b = t.append(append(b, kindDelta, nodeVersion, damaged))
	b = binary.AppendUvarint(b, uint64(base))
	b = binary.AppendVarint(b, int64(record))
	b = binary.AppendUvarint(b, uint64(len(gone)))
	next := 0
	for _, n := range gone {
		b = binary.AppendUvarint(b, uint64(n-next))
		next = n + 1
	}
	return e.append(b)
}

// encodeIndex gives the record of a directory of several leaves, in the order
// of their names. Part of the on-disk format:
//
//	5 · version · damaged · packs · uvarint leaves
//	  · each: pack, record minus that of the leaf before (varint)
//
// What leaves say of damage does not count then.
func encodeIndex(t *packTable, damaged byte, leaves [][2]int) []byte {
	b := t.append([]byte{kindIndex, nodeVersion, damaged})
	b = binary.AppendUvarint(b, uint64(len(leaves)))
	last := 0
	for _, l := range leaves {
		b = binary.AppendUvarint(b, uint64(l[0]))
		b = binary.AppendVarint(b, int64(l[1]-last))
		last = l[1]
	}
	return b
}

// Records is where nodes are read from; *chunkstore.Reader is one.
type Records interface {
	// ReadRecord gives record n of a map pack.
	ReadRecord(ctx context.Context, ref chunk.PackRef, n int) ([]byte, error)
}

// open reads a record up to its table of packs.
func (c *Cache) open(ctx context.Context, at place) (d decoder, kind byte, damaged bool, err error) {
	b, err := c.src.ReadRecord(ctx, at.pack, at.record)
	if err != nil {
		return d, 0, false, err
	}
	d = decoder{b: b, self: at.pack}
	kind, flags := d.header()
	if flags > 1 {
		d.fail("unknown flags")
	}
	return d, kind, flags&1 != 0, d.err
}

// read reads a directory.
func (c *Cache) read(ctx context.Context, at place) (*node, error) {
	d, kind, damaged, err := c.open(ctx, at)
	if err != nil {
		return nil, err
	}
	n := &node{}
	n.Damaged = damaged
	if kind != kindIndex {
		l, err := c.leaf(ctx, &d, kind, at, damaged)
		if err != nil {
			return nil, err
		}
		n.leaves = []leaf{l}
		n.Entries, n.below = l.entries.entries, l.entries.below
		c.measure(n)
		return n, nil
	}
	places := make([]place, 0, min(d.number(maxLeaves), len(d.b)))
	for range cap(places) {
		last := 0
		if len(places) > 0 {
			last = places[len(places)-1].record
		}
		places = append(places, d.place(last))
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	for _, p := range places {
		if err := c.addLeaf(ctx, n, p); err != nil {
			return nil, err
		}
	}
	c.measure(n)
	return n, nil
}

// addLeaf reads the next leaf of a large directory.
func (c *Cache) addLeaf(ctx context.Context, n *node, at place) error {
	d, kind, damaged, err := c.open(ctx, at)
	if err != nil {
		return err
	}
	l, err := c.leaf(ctx, &d, kind, at, damaged)
	if err != nil {
		return err
	}
	list := l.entries.entries
	if len(list) == 0 || len(n.Entries) > 0 && list[0].Name <= n.Entries[len(n.Entries)-1].Name {
		return fmt.Errorf("%w: leaves out of order", ErrCorrupt)
	}
	if len(n.Entries)+len(list) > maxEntries {
		return fmt.Errorf("%w: more than %d names in a directory", ErrCorrupt, maxEntries)
	}
	n.leaves = append(n.leaves, l)
	n.Entries, n.below = append(n.Entries, list...), append(n.below, l.entries.below...)
	return nil
}

// leaf reads the rest of a record that is a leaf, whole or not.
func (c *Cache) leaf(ctx context.Context, d *decoder, kind byte, at place, damaged bool) (leaf, error) {
	l := leaf{at: at, base: at, damaged: damaged}
	switch kind {
	case kindLeaf:
		l.entries.entries, l.entries.below = d.entries(nil)
		l.full = l.entries
		return l, d.end()
	case kindDelta:
	default:
		return l, fmt.Errorf("%w: a record of another kind", ErrCorrupt)
	}
	l.base = d.place(0)
	gone := make([]int, 0, min(d.number(maxEntries), len(d.b)))
	for next := 0; len(gone) < cap(gone) && d.err == nil; {
		next += d.number(maxEntries)
		gone = append(gone, next)
		next++
	}
	if d.err != nil {
		return l, d.err
	}
	base, err := c.whole(ctx, l.base)
	if err != nil {
		return l, err
	}
	l.full = base.leaves[0].entries
	var changed entryList
	changed.entries, changed.below = d.entries(&l.full)
	if err := d.end(); err != nil {
		return l, err
	}
	l.entries, err = l.full.with(changed, gone)
	return l, err
}

// whole reads a whole leaf, and never goes on to another record: differences
// do not lie on each other.
func (c *Cache) whole(ctx context.Context, at place) (*node, error) {
	n := c.known(at)
	if n == nil {
		d, kind, damaged, err := c.open(ctx, at)
		if err != nil {
			return nil, err
		}
		if kind != kindLeaf {
			return nil, fmt.Errorf("%w: a difference from what is not a whole leaf", ErrCorrupt)
		}
		l, err := c.leaf(ctx, &d, kind, at, damaged)
		if err != nil {
			return nil, err
		}
		n = &node{leaves: []leaf{l}}
		n.Entries, n.below, n.Damaged = l.entries.entries, l.entries.below, damaged
		c.measure(n)
		c.keep(at, n)
	}
	if len(n.leaves) != 1 || n.leaves[0].base != at {
		return nil, fmt.Errorf("%w: a difference from what is not a whole leaf", ErrCorrupt)
	}
	return n, nil
}

// with gives the list without the entries that are gone, by number, and with
// the changed ones; all three are sorted.
func (l entryList) with(changed entryList, gone []int) (entryList, error) {
	out := entryList{entries: make([]Entry, 0, len(l.entries)+len(changed.entries))}
	if n := len(l.below) + len(changed.below); n > 0 {
		out.below = make([][]span, 0, n)
	}
	i, j := 0, 0 // in the lists' below
	take := func(from *entryList, e *Entry, at *int) {
		out.entries = append(out.entries, *e)
		if e.Dir != nil {
			out.below = append(out.below, from.below[*at])
			*at++
		}
	}
	next := 0
	for k := range l.entries {
		e := &l.entries[k]
		for next < len(changed.entries) && changed.entries[next].Name < e.Name {
			take(&changed, &changed.entries[next], &j)
			next++
		}
		removed := len(gone) > 0 && gone[0] == k
		if removed {
			gone = gone[1:]
		}
		if replaced := next < len(changed.entries) && changed.entries[next].Name == e.Name; !replaced && !removed {
			take(&l, e, &i)
		} else if e.Dir != nil {
			i++
		}
	}
	for ; next < len(changed.entries); next++ {
		take(&changed, &changed.entries[next], &j)
	}
	if len(gone) > 0 {
		return entryList{}, fmt.Errorf("%w: an entry is gone that was not there", ErrCorrupt)
	}
	return out, nil
}

// measure says what the node takes in memory: about.
func (c *Cache) measure(n *node) {
	if c.limit == 0 {
		return // nothing is kept
	}
	n.size = 256
	for i := range n.leaves {
		l := &n.leaves[i]
		n.size += l.entries.memory()
		if len(n.leaves) > 1 {
			n.size += int64(len(l.entries.entries)) * int64(unsafe.Sizeof(Entry{}))
		}
	}
}

func (l *entryList) memory() int64 {
	size := int64(len(l.entries)) * int64(unsafe.Sizeof(Entry{}))
	for i := range l.entries {
		e := &l.entries[i]
		size += int64(len(e.Name) + len(e.Target))
	}
	return size + int64(len(l.below))*160
}
