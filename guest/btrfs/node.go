package btrfs

import (
	"context"
	"fmt"
)

// Keys and item types ("On-disk format", "Btrees").
const (
	typeInode      = 1
	typeInodeRef   = 12
	typeInodeExtRf = 13
	typeXattr      = 24
	typeOrphan     = 48
	typeLogDirItem = 60
	typeLogDirIdx  = 72
	typeDirItem    = 84
	typeDirIndex   = 96
	typeExtentData = 108
	typeExtentCsum = 128
	typeRoot       = 132
	typeRootBack   = 144
	typeRootRef    = 156
	typeExtent     = 168
	typeMetadata   = 169
	typeDevExtent  = 204
	typeDevItem    = 216
	typeChunk      = 228
)

// Object ids with a fixed meaning.
const (
	treeRoot         = 1
	treeExtent       = 2
	treeDevice       = 4
	treeFS           = 5
	treeCsum         = 7
	firstFreeID      = 256
	lastFreeID       = 1<<64 - 256
	extentCsumObject = 1<<64 - 10
	treeLogObject    = 1<<64 - 6
)

const keySize = 17

// key orders the items of a tree.
type key struct {
	oid uint64
	typ uint8
	off uint64
}

var maxKey = key{1<<64 - 1, 255, 1<<64 - 1}

func parseKey(b []byte) key {
	_ = b[16]
	return key{le.Uint64(b), b[8], le.Uint64(b[9:])}
}

func (k key) compare(o key) int {
	switch {
	case k.oid != o.oid:
		if k.oid < o.oid {
			return -1
		}
		return 1
	case k.typ != o.typ:
		return int(k.typ) - int(o.typ)
	case k.off != o.off:
		if k.off < o.off {
			return -1
		}
		return 1
	}
	return 0
}

func (k key) less(o key) bool { return k.compare(o) < 0 }

const (
	nodeHead  = 101
	leafItem  = 25
	childItem = 33
	maxLevels = 8
)

// nodeRef is a pointer to a node and what must be found there.
type nodeRef struct {
	bytenr uint64
	gen    uint64 // the transaction that wrote it
	level  uint8
}

// node is a node of a tree that was verified once: its keys ascend and its
// items lie inside. It is never changed.
type node struct {
	b     []byte
	n     int
	level uint8
}

func (n *node) entrySize() int {
	if n.level == 0 {
		return leafItem
	}
	return childItem
}

func (n *node) key(i int) key {
	return parseKey(n.b[nodeHead+i*n.entrySize():])
}

// item gives the data of an item of a leaf.
func (n *node) item(i int) []byte {
	e := n.b[nodeHead+i*leafItem+keySize:]
	off, size := nodeHead+int(le.Uint32(e)), int(le.Uint32(e[4:]))
	return n.b[off : off+size : off+size]
}

// child gives the pointer of an inner node.
func (n *node) child(i int) nodeRef {
	e := n.b[nodeHead+i*childItem+keySize:]
	return nodeRef{le.Uint64(e), le.Uint64(e[8:]), n.level - 1}
}

// floor gives the last entry whose key is not above k, or -1.
func (n *node) floor(k key) int {
	size := n.entrySize()
	lo, hi := 0, n.n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		e := n.b[nodeHead+mid*size:]
		var above bool
		if oid := le.Uint64(e); oid != k.oid {
			above = oid > k.oid
		} else if e[8] != k.typ {
			above = e[8] > k.typ
		} else {
			above = le.Uint64(e[9:]) > k.off
		}
		if above {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo - 1
}

// checkNode verifies what was read for ref.
func (fs *FS) checkNode(b []byte, ref nodeRef) (*node, error) {
	switch {
	case !fs.skipSums && !fs.sb.sum.fits(b, b[sumField:]):
		return nil, corrupt("wrong checksum")
	case string(b[32:48]) != string(fs.sb.metadataUUID[:]):
		return nil, corrupt("it belongs to another filesystem")
	case le.Uint64(b[48:]) != ref.bytenr:
		return nil, corrupt("it says that it lies at %d", le.Uint64(b[48:]))
	case le.Uint64(b[80:]) != ref.gen:
		return nil, corrupt("written by transaction %d, not %d", le.Uint64(b[80:]), ref.gen)
	case b[100] != ref.level:
		return nil, corrupt("its level is %d, not %d", b[100], ref.level)
	}
	n := &node{b: b, level: ref.level}
	count := le.Uint32(b[96:])
	if uint64(count)*uint64(n.entrySize()) > uint64(len(b)-nodeHead) {
		return nil, corrupt("%d items", count)
	}
	n.n = int(count)
	last := key{}
	for i := range n.n {
		k := n.key(i)
		if i > 0 && !last.less(k) {
			return nil, corrupt("item %d is out of order", i)
		}
		last = k
		if n.level > 0 {
			continue
		}
		e := b[nodeHead+i*leafItem+keySize:]
		off, size := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:]))
		if off < uint64(n.n*leafItem) || nodeHead+off+size > uint64(len(b)) {
			return nil, corrupt("item %d lies at %d+%d", i, off, size)
		}
	}
	return n, nil
}

// node gives the node at ref, from the cache or verified anew. A copy that
// is damaged is replaced by another one.
func (fs *FS) node(ctx context.Context, ref nodeRef) (*node, error) {
	if n := fs.nodes.get(ref); n != nil {
		if n.level != ref.level {
			return nil, corrupt("node at %d: its level is %d, not %d", ref.bytenr, n.level, ref.level)
		}
		return n, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := make([]byte, fs.sb.nodeSize)
	var n *node
	err := fs.readChecked(b, ref.bytenr, func(b []byte) (err error) {
		n, err = fs.checkNode(b, ref)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("node at %d: %w", ref.bytenr, err)
	}
	fs.nodes.put(ref, n)
	return n, nil
}
