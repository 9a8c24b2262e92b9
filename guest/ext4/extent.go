package ext4

// maxLogical is the number of blocks a file can have.
const maxLogical = 1 << 32

// run is a piece of a file's block map.
type run struct {
	count uint64 // blocks, at least 1
	phys  uint64 // first block; 0: a hole or unwritten, which read as zeros
}

// mapBlock gives the run that begins at the file's block logical. A hole may
// be given in several runs.
func (fs *FS) mapBlock(in *inode, logical uint64) (run, error) {
	if logical >= maxLogical {
		return run{}, corrupt("file block %d", logical)
	}
	var r run
	var err error
	if in.flags()&flagExtents != 0 {
		r, err = fs.mapExtents(in, uint32(logical))
	} else {
		r, err = fs.mapIndirect(in, logical)
	}
	if err != nil {
		return run{}, err
	}
	if r.phys != 0 && (r.phys >= fs.sb.blocks || r.count > fs.sb.blocks-r.phys) {
		return run{}, corrupt("blocks %d+%d lie outside the filesystem", r.phys, r.count)
	}
	return r, nil
}

// Extent nodes (Documentation/filesystems/ext4/ifork.rst): a header of 12
// bytes, then entries of 12 bytes.
const (
	extentMagic    = 0xF30A
	extentMaxDepth = 5
	extentUnwrit   = 32768 // a longer length means: unwritten, length-32768
)

func extentLen(e []byte) (n uint32, unwritten bool) {
	n = uint32(le.Uint16(e[4:]))
	if n > extentUnwrit {
		return n - extentUnwrit, true
	}
	return n, false
}

// checkExtents verifies that a node is well formed and its entries ascend
// without overlap.
func checkExtents(node []byte) error {
	count, limit, depth := int(le.Uint16(node[2:])), int(le.Uint16(node[4:])), le.Uint16(node[6:])
	if le.Uint16(node) != extentMagic || depth > extentMaxDepth || count > limit || 12+12*limit > len(node) {
		return corrupt("extent node header")
	}
	next := uint64(0) // the first block that the next entry may begin with
	for i := range count {
		e := node[12+12*i:]
		start, n := uint64(le.Uint32(e)), uint32(1)
		if depth == 0 {
			n, _ = extentLen(e)
		}
		if start < next || n == 0 || start+uint64(n) > maxLogical {
			return corrupt("extent node entries")
		}
		next = start + uint64(n)
	}
	return nil
}

// mapExtents descends the extent tree. Every level is one cached block and
// one binary search; nothing is loaded ahead.
func (fs *FS) mapExtents(in *inode, logical uint32) (run, error) {
	node := in.iblock()
	if err := checkExtents(node); err != nil {
		return run{}, err
	}
	limit := uint64(maxLogical) // where the next entry to the right begins
	for depth := le.Uint16(node[6:]); ; depth-- {
		i := searchExtents(node, logical)
		if i+1 < int(le.Uint16(node[2:])) {
			limit = min(limit, uint64(le.Uint32(node[12+12*(i+1):])))
		}
		if depth == 0 {
			return leafRun(node, i, logical, limit), nil
		}
		if i < 0 {
			return run{count: limit - uint64(logical)}, nil
		}
		e := node[12+12*i:]
		child := uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
		var err error
		if node, err = fs.extentBlock(in, child); err != nil {
			return run{}, err
		}
		if le.Uint16(node[6:]) != depth-1 {
			return run{}, corrupt("extent block %d: depth %d under %d", child, le.Uint16(node[6:]), depth)
		}
	}
}

// searchExtents gives the last entry that begins at or before logical, or -1.
func searchExtents(node []byte, logical uint32) int {
	lo, hi := 0, int(le.Uint16(node[2:]))
	for lo < hi {
		mid := (lo + hi) / 2
		if le.Uint32(node[12+12*mid:]) <= logical {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

func leafRun(node []byte, i int, logical uint32, limit uint64) run {
	if i >= 0 {
		e := node[12+12*i:]
		n, unwritten := extentLen(e)
		if skip := logical - le.Uint32(e); skip < n {
			r := run{count: uint64(n - skip)}
			if !unwritten {
				r.phys = uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
				r.phys += uint64(skip)
			}
			return r
		}
	}
	return run{count: max(1, limit-uint64(logical))}
}

// extentBlock reads and verifies a node of the inode's extent tree.
func (fs *FS) extentBlock(in *inode, block uint64) ([]byte, error) {
	key := blockKey{block: block, owner: in.ino, kind: kindExtents}
	v := fs.cache.get(key)
	if v == nil {
		b, err := fs.readBlock(block)
		if err != nil {
			return nil, err
		}
		v = &verified{data: b, err: checkExtents(b)}
		if v.err == nil && fs.sb.metadataCsum() {
			end := 12 + 12*int(le.Uint16(b[4:]))
			if end+4 > len(b) || crc32c(fs.inodeSeed(in), b[:end]) != le.Uint32(b[end:]) {
				v.err = corrupt("checksum")
			}
		}
		if v.err != nil {
			v.err = corruptAt(v.err, "extent block", block)
		}
		fs.cache.put(key, v)
	}
	return v.data, v.err
}
