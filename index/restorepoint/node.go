package restorepoint

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cairn/chunkstore/chunk"
)

// Geometry of the disk map. Part of the on-disk format, do not change.
const (
	leafChunks   = 4096                           // chunks in a leaf: 16 MiB
	middleLeaves = 256                            // leaves in a middle node: 4 GiB
	LeafSize     = int64(leafChunks) * chunk.Size // bytes
	middleSize   = middleLeaves * LeafSize        // bytes
	MaxDiskSize  = int64(1) << 50                 // bytes: 1 PiB
	maxNodePacks = leafChunks                     // packs named in a node
)

// ErrCorrupt: a map node does not hold what its place asks for.
var ErrCorrupt = errors.New("damaged disk map")

// Kinds of nodes. Part of the on-disk format.
const (
	nodeLeaf   = 1
	nodeMiddle = 2
)

// run is consecutive chunks of a disk that lie consecutively in one pack.
type run struct {
	first uint16 // chunk in the leaf
	count uint16 // 1..leafChunks
	pack  uint16 // in leaf.packs
	chunk uint32 // first chunk in the pack
}

// leaf is a decoded leaf: runs in order, without overlaps; what no run covers
// is a hole.
type leaf struct {
	packs []chunk.PackRef
	runs  []run
}

// encodeLeaf gives a leaf's record. Part of the on-disk format, do not
// change:
//
//	1 · uvarint packs · each: session (16), hash (32)
//	  · uvarint runs · each, uvarints: chunks since the last run's end,
//	    count-1, pack, first chunk in the pack
func encodeLeaf(l *leaf) []byte {
	b := appendPacks([]byte{nodeLeaf}, l.packs)
	b = binary.AppendUvarint(b, uint64(len(l.runs)))
	end := 0
	for _, r := range l.runs {
		b = binary.AppendUvarint(b, uint64(int(r.first)-end))
		b = binary.AppendUvarint(b, uint64(r.count-1))
		b = binary.AppendUvarint(b, uint64(r.pack))
		b = binary.AppendUvarint(b, uint64(r.chunk))
		end = int(r.first) + int(r.count)
	}
	return b
}

func decodeLeaf(b []byte) (*leaf, error) {
	d := decoder{b: b}
	d.kind(nodeLeaf)
	l := &leaf{packs: d.packs()}
	n := d.number(leafChunks)
	l.runs = make([]run, 0, n)
	end := 0
	for range n {
		first := end + d.number(leafChunks)
		count := d.number(leafChunks) + 1
		r := run{first: uint16(first), count: uint16(count), pack: uint16(d.number(len(l.packs) - 1)), chunk: uint32(d.number(1<<24 - 1))}
		end = first + count
		if end > leafChunks {
			d.fail("a run leaves the leaf")
		}
		if int(r.chunk)+count > 1<<24 {
			d.fail("a run leaves the pack")
		}
		if d.err != nil {
			break
		}
		l.runs = append(l.runs, r)
	}
	return l, d.end()
}

// nodeRef names a node: a record of a map pack.
type nodeRef struct {
	pack   chunk.PackRef
	record int
}

// middle is a decoded middle node; a leaf without a nodeRef is a hole.
type middle struct {
	leaves map[int]nodeRef
}

// child is one leaf's place on its way into a middle node's record.
type child struct {
	index  int
	self   bool // in the same map pack as the node
	pack   chunk.PackRef
	record int
}

// encodeMiddle gives a middle node's record, children in order of index.
// Part of the on-disk format, do not change:
//
//	2 · uvarint packs · each: session (16), hash (32)
//	  · uvarint children · each, uvarints: index since the last one,
//	    pack (0: the map pack that holds this node; else number+1), record
func encodeMiddle(children []child) []byte {
	var packs []chunk.PackRef
	number := map[chunk.PackRef]int{}
	for _, c := range children {
		if _, ok := number[c.pack]; !ok && !c.self {
			number[c.pack] = len(packs)
			packs = append(packs, c.pack)
		}
	}
	b := appendPacks([]byte{nodeMiddle}, packs)
	b = binary.AppendUvarint(b, uint64(len(children)))
	next := 0
	for _, c := range children {
		at := 0
		if !c.self {
			at = number[c.pack] + 1
		}
		b = binary.AppendUvarint(b, uint64(c.index-next))
		b = binary.AppendUvarint(b, uint64(at))
		b = binary.AppendUvarint(b, uint64(c.record))
		next = c.index + 1
	}
	return b
}

// decodeMiddle reads a middle node that lies in the map pack self.
func decodeMiddle(b []byte, self chunk.PackRef) (*middle, error) {
	d := decoder{b: b}
	d.kind(nodeMiddle)
	packs := d.packs()
	n := d.number(middleLeaves)
	m := &middle{leaves: make(map[int]nodeRef, n)}
	next := 0
	for range n {
		i := next + d.number(middleLeaves-1)
		at, rec := d.number(len(packs)), d.number(1<<24-1)
		if i >= middleLeaves {
			d.fail("a child leaves the node")
		}
		if d.err != nil {
			break
		}
		ref := nodeRef{self, rec}
		if at > 0 {
			ref.pack = packs[at-1]
		}
		m.leaves[i] = ref
		next = i + 1
	}
	return m, d.end()
}

func appendPacks(b []byte, packs []chunk.PackRef) []byte {
	b = binary.AppendUvarint(b, uint64(len(packs)))
	for _, p := range packs {
		b = append(b, p.Session[:]...)
		b = append(b, p.Hash[:]...)
	}
	return b
}

// decoder reads a node and keeps its first error.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	d.b = nil
}

func (d *decoder) kind(k byte) {
	if len(d.b) == 0 || d.b[0] != k {
		d.fail("a node of another kind")
		return
	}
	d.b = d.b[1:]
}

// number reads a uvarint of at most limit.
func (d *decoder) number(limit int) int {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || limit < 0 || v > uint64(limit) {
		d.fail("a number out of bounds")
		return 0
	}
	d.b = d.b[n:]
	return int(v)
}

func (d *decoder) packs() []chunk.PackRef {
	n := d.number(maxNodePacks)
	const size = 16 + 32
	if len(d.b) < n*size {
		d.fail("packs cut short")
		return nil
	}
	out := make([]chunk.PackRef, n)
	for i := range out {
		copy(out[i].Session[:], d.b)
		copy(out[i].Hash[:], d.b[16:])
		d.b = d.b[size:]
	}
	return out
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes behind the node")
	}
	return d.err
}
