package xfs

import (
	"context"
	"fmt"
	"math/bits"
	"sort"
	"strings"

	"cairn/guest/filesystem"
)

// Magic numbers of the blocks that index names by their hash (Directories,
// "Leaf Directories", "Node Directories"; Extended Attributes). Version 5 has
// the high byte 0x3E or 0x3D, 0x3B.
const (
	magicNode, magicNodeV5   = 0xFEBE, 0x3EBE
	magicLeaf1, magicLeaf1V5 = 0xD2F1, 0x3DF1
	magicLeafN, magicLeafNV5 = 0xD2FF, 0x3DFF
	magicAttr, magicAttrV5   = 0xFBEE, 0x3BEE
)

// maxNodeDepth is the depth of an index (XFS_DA_NODE_MAXDEPTH).
const maxNodeDepth = 5

// Lookup finds a name through the directory's index, or by a walk of all its
// entries when there is none that can be trusted.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	in, err := fs.directory(ctx, dir)
	if err != nil {
		return 0, err
	}
	missing := func() error {
		return fmt.Errorf("%q in directory inode %d: %w", name, dir, filesystem.ErrNotExist)
	}
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return 0, missing()
	}
	if in.format() != formatLocal && !fs.sb.ci {
		ino, sure := fs.lookupIndex(&in, name)
		if ino != 0 {
			return filesystem.Ino(ino), nil
		}
		if sure {
			return 0, missing()
		}
	}
	var found filesystem.Ino
	err = fs.ReadDir(ctx, dir, 0, func(e filesystem.Entry) bool {
		if e.Name == name {
			found = e.Ino
		}
		return e.Name != name
	})
	if found != 0 {
		return found, nil
	}
	if err != nil {
		return 0, err
	}
	return 0, missing()
}

// hashName is the hash of names in directories and attributes.
func hashName(name string) uint32 {
	var h uint32
	for ; len(name) >= 4; name = name[4:] {
		h = uint32(name[0])<<21 ^ uint32(name[1])<<14 ^ uint32(name[2])<<7 ^ uint32(name[3]) ^ bits.RotateLeft32(h, 28)
	}
	switch len(name) {
	case 3:
		return uint32(name[0])<<14 ^ uint32(name[1])<<7 ^ uint32(name[2]) ^ bits.RotateLeft32(h, 21)
	case 2:
		return uint32(name[0])<<7 ^ uint32(name[1]) ^ bits.RotateLeft32(h, 14)
	case 1:
		return uint32(name[0]) ^ bits.RotateLeft32(h, 7)
	}
	return h
}

// lookupIndex finds a name by its hash. sure says that the index is whole, so
// that a name which is not found is not there.
func (fs *FS) lookupIndex(in *inode, name string) (ino uint64, sure bool) {
	f := in.dataMap()
	hash := hashName(name)
	perDir := uint64(fs.sb.dirBlock)
	leaf := dirLimit / perDir
	b, hole, err := fs.dirBlock(&f, leaf, kindDirIndex)
	if err != nil {
		return 0, false
	}
	if hole > 0 {
		return fs.lookupBlockForm(&f, name, hash)
	}
	depth := 0
	for isNode(b) {
		if depth++; depth > maxNodeDepth {
			return 0, false
		}
		next, ok := fs.nodeChild(b, hash)
		if !ok {
			return 0, fs.sb.v5
		}
		if b, hole, err = fs.dirBlock(&f, uint64(next)/(perDir/uint64(fs.sb.blockSize)), kindDirIndex); err != nil || hole > 0 {
			return 0, false
		}
	}
	for range 1 << 16 { // names with one hash may go on in the next leaf
		ino, past, ok := fs.searchLeaf(&f, fs.leafEntries(b), name, hash)
		if ino != 0 || !ok {
			return ino, false
		}
		forward := be.Uint32(b)
		if past || forward == 0 {
			return 0, fs.sb.v5
		}
		if b, hole, err = fs.dirBlock(&f, uint64(forward)/(perDir/uint64(fs.sb.blockSize)), kindDirIndex); err != nil || hole > 0 || isNode(b) {
			return 0, false
		}
	}
	return 0, false
}

// lookupBlockForm searches the index at the end of the only block.
func (fs *FS) lookupBlockForm(f *fork, name string, hash uint32) (ino uint64, sure bool) {
	b, hole, err := fs.dirBlock(f, 0, kindDirData)
	if err != nil || hole > 0 || !isBlockForm(b) {
		return 0, false
	}
	end, err := fs.entriesEnd(b)
	if err != nil {
		return 0, false
	}
	ino, _, ok := fs.searchLeaf(f, b[end:len(b)-8], name, hash)
	return ino, ok && fs.sb.v5
}

// searchLeaf tries the entries with a hash. past says that there are higher
// ones; ok that nothing was damaged.
func (fs *FS) searchLeaf(f *fork, entries []byte, name string, hash uint32) (ino uint64, past, ok bool) {
	n := len(entries) / 8
	first := sort.Search(n, func(i int) bool { return be.Uint32(entries[i*8:]) >= hash })
	for i := first; i < n; i++ {
		if be.Uint32(entries[i*8:]) != hash {
			return 0, true, true
		}
		at := uint64(be.Uint32(entries[i*8+4:])) * 8
		if at == 0 {
			continue // deleted
		}
		b, hole, err := fs.dirBlock(f, at/uint64(fs.sb.dirBlock), kindDirData)
		if err != nil || hole > 0 {
			return 0, false, false
		}
		d, err := fs.dirent(b, int(at%uint64(fs.sb.dirBlock)))
		if err != nil {
			return 0, false, false
		}
		if string(d.name) == name {
			return d.ino, false, true
		}
	}
	return 0, false, true
}

func isNode(b []byte) bool {
	m := be.Uint16(b[8:])
	return m == magicNode || m == magicNodeV5
}

// nodeHeader is the length of the header of a node; that of a directory's leaf
// is the same.
func (s *super) nodeHeader() int {
	if s.v5 {
		return 64
	}
	return 16
}

// nodeCount is the number of entries of a node or a leaf.
func (s *super) nodeCount(b []byte) int {
	if s.v5 {
		return int(be.Uint16(b[56:]))
	}
	return int(be.Uint16(b[12:]))
}

// nodeChild gives the block below a node where a hash would be.
func (fs *FS) nodeChild(b []byte, hash uint32) (block uint32, ok bool) {
	entries := b[fs.sb.nodeHeader():]
	n := fs.sb.nodeCount(b)
	i := sort.Search(n, func(i int) bool { return be.Uint32(entries[i*8:]) >= hash })
	if i == n {
		return 0, false
	}
	return be.Uint32(entries[i*8+4:]), true
}

// leafEntries are the hashes and addresses in a leaf.
func (fs *FS) leafEntries(b []byte) []byte {
	return b[fs.sb.nodeHeader():][:fs.sb.nodeCount(b)*8]
}

// checkIndex verifies a node or a leaf of a directory's or an attribute
// fork's index.
func (fs *FS) checkIndex(b []byte, ino uint64, place int64, changed bool) error {
	head := fs.sb.nodeHeader()
	switch magic := be.Uint16(b[8:]); {
	case fs.sb.v5 && (magic == magicNodeV5 || magic == magicLeaf1V5 || magic == magicLeafNV5):
	case !fs.sb.v5 && (magic == magicNode || magic == magicLeaf1 || magic == magicLeafN):
	case fs.sb.v5 && magic == magicAttrV5, !fs.sb.v5 && magic == magicAttr:
		head = fs.sb.attrHeader()
	default:
		return corrupt("magic number %#x", magic)
	}
	if fs.sb.v5 {
		switch {
		case !changed && !fs.checksumFits(b, 12):
			return corrupt("checksum")
		case be.Uint64(b[16:]) != uint64(place/sectorSize):
			return corrupt("it lies in a wrong place")
		case be.Uint64(b[48:]) != ino:
			return corrupt("it belongs to inode %d", be.Uint64(b[48:]))
		}
	}
	if n := fs.sb.nodeCount(b); n > (len(b)-head)/8 {
		return corrupt("%d entries", n)
	}
	return nil
}
