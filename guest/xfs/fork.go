package xfs

import (
	"fmt"
	"sort"
)

// fork is the map of an inode's data or attributes (Data Extents; Extended
// Attributes).
type fork struct {
	ino    uint64
	raw    []byte // in the inode
	format uint8
	count  uint64 // extents
}

// dataMap is the fork with the inode's contents.
func (in *inode) dataMap() fork {
	data, _ := in.extents()
	return fork{ino: in.ino, raw: in.dataFork(), format: in.format(), count: data}
}

// attrMap is the fork with the inode's attributes; raw is nil when it has none.
func (in *inode) attrMap() fork {
	o := in.forkOffset()
	if o == 0 {
		return fork{}
	}
	_, attr := in.extents()
	return fork{ino: in.ino, raw: in.raw[o:], format: in.raw[83], count: attr}
}

// run is consecutive blocks of a fork that lie together.
type run struct {
	count     uint64 // blocks, at least 1
	block     uint64 // the first one
	hole      bool
	unwritten bool
}

// maxLogical is the highest block of a fork; extents have 54 bits for it.
const maxLogical = 1<<54 - 1

// extent is one record of 16 bytes.
type extent struct {
	logical, block, count uint64
	unwritten             bool
}

func parseExtent(b []byte) extent {
	high, low := be.Uint64(b), be.Uint64(b[8:])
	return extent{
		logical:   high >> 9 & maxLogical,
		block:     high&0x1FF<<43 | low>>21,
		count:     low & (1<<21 - 1),
		unwritten: high>>63 != 0,
	}
}

// lookup finds block logical of a fork. A hole's count reaches to the next
// extent.
func (fs *FS) lookup(f *fork, logical uint64) (run, error) {
	switch f.format {
	case formatExtents:
		if f.count*16 > uint64(len(f.raw)) || f.count > uint64(len(f.raw)) {
			return run{}, corrupt("%d extents in an inode", f.count)
		}
		return fs.searchExtents(f.raw[:f.count*16], logical, maxLogical+1)
	case formatBtree:
		return fs.lookupTree(f, logical)
	}
	return run{}, corrupt("fork of format %d has no extents", f.format)
}

// searchExtents finds a block in sorted records; what lies behind the last is
// a hole up to limit.
func (fs *FS) searchExtents(b []byte, logical, limit uint64) (run, error) {
	n := len(b) / 16
	i := sort.Search(n, func(i int) bool { return be.Uint64(b[i*16:])>>9&maxLogical > logical })
	if i < n {
		limit = min(limit, be.Uint64(b[i*16:])>>9&maxLogical)
	}
	if i > 0 {
		if e := parseExtent(b[(i-1)*16:]); logical-e.logical < e.count {
			if _, err := fs.sb.offset(e.block, e.count); err != nil {
				return run{}, err
			}
			skip := logical - e.logical
			return run{
				block:     e.block + skip,
				count:     min(e.count-skip, max(1, limit-logical)), // overlapping extents: the later one wins
				unwritten: e.unwritten,
			}, nil
		}
	}
	if limit <= logical {
		return run{}, corrupt("extents are not in order at block %d", logical)
	}
	return run{count: limit - logical, hole: true}, nil
}

// maxTreeLevels bounds every B+tree; XFS_BTREE_MAXLEVELS is 9.
const maxTreeLevels = 9

// lookupTree descends a bmap B+tree to the leaf with a block. Every level
// narrows the range that the next one may speak of.
func (fs *FS) lookupTree(f *fork, logical uint64) (run, error) {
	if len(f.raw) < 20 {
		return run{}, corrupt("extent tree in %d bytes", len(f.raw))
	}
	level, n, room := int(be.Uint16(f.raw)), int(be.Uint16(f.raw[2:])), (len(f.raw)-4)/16
	if level == 0 || level >= maxTreeLevels || n == 0 || n > room {
		return run{}, corrupt("extent tree of level %d with %d entries", level, n)
	}
	keys, pointers := f.raw[4:][:n*8], f.raw[4+room*8:][:n*8]
	limit := uint64(maxLogical + 1)
	for {
		i := sort.Search(n, func(i int) bool { return be.Uint64(keys[i*8:]) > logical })
		if i < n {
			limit = min(limit, be.Uint64(keys[i*8:]))
		}
		if i == 0 { // before the first extent
			if limit <= logical {
				return run{}, corrupt("extent tree is not in order at block %d", logical)
			}
			return run{count: limit - logical, hole: true}, nil
		}
		level--
		block := be.Uint64(pointers[(i-1)*8:])
		b, err := fs.extentBlock(f, block, level)
		if err != nil {
			return run{}, fmt.Errorf("extent block %#x: %w", block, err)
		}
		head := fs.sb.longHeader()
		n = int(be.Uint16(b[6:]))
		if level == 0 {
			return fs.searchExtents(b[head:][:n*16], logical, limit)
		}
		room = (len(b) - head) / 16
		keys, pointers = b[head:][:n*8], b[head+room*8:][:n*8]
	}
}

// longHeader is the length of the header of a B+tree block with long pointers.
func (s *super) longHeader() int {
	if s.v5 {
		return 72
	}
	return 24
}

// extentBlock gives a block of a bmap B+tree (Variable Length Record B+trees,
// "Long Format").
func (fs *FS) extentBlock(f *fork, block uint64, level int) ([]byte, error) {
	off, err := fs.sb.offset(block, 1)
	if err != nil {
		return nil, err
	}
	key := blockKey{offset: off, owner: f.ino, kind: kindExtents}
	v := fs.cache.get(key)
	if v == nil {
		v = &verified{data: make([]byte, fs.sb.blockSize)}
		if err := fs.readMeta(v.data, off); err != nil {
			return nil, err
		}
		v.err = fs.checkExtentBlock(v.data, f, off)
		fs.cache.put(key, v)
	}
	if v.err != nil {
		return nil, v.err
	}
	if got := int(be.Uint16(v.data[4:])); got != level {
		return nil, corrupt("level %d, want %d", got, level)
	}
	return v.data, nil
}

func (fs *FS) checkExtentBlock(b []byte, f *fork, off int64) error {
	magic := "BMAP"
	if fs.sb.v5 {
		magic = "BMA3"
	}
	if string(b[:4]) != magic {
		return corrupt("magic number")
	}
	if fs.sb.v5 {
		switch {
		case !fs.checksumFits(b, 64) && !fs.replayed.touches(off, len(b)):
			return corrupt("checksum")
		case be.Uint64(b[24:]) != uint64(off/sectorSize):
			return corrupt("it lies in a wrong place")
		case be.Uint64(b[56:]) != f.ino:
			return corrupt("it belongs to inode %d", be.Uint64(b[56:]))
		}
	}
	if n := int(be.Uint16(b[6:])); n == 0 || n > (len(b)-fs.sb.longHeader())/16 {
		return corrupt("%d entries", n)
	}
	return nil
}
