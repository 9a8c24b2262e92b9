package ntfs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"cairn/guest/filesystem"
)

// indexName is "$I30", the index of a directory by name.
const indexName = "$\x00I\x003\x000\x00"

// index is a directory's index: a tree of names whose root is resident.
type index struct {
	fs     *FS
	root   []byte  // entries of the root, from its header on
	blocks *stream // nil: the root is all
	used   []byte  // one bit for each block
	size   int64   // bytes of a block
	unit   int64   // bytes that a block's number counts
}

// openIndex gives the index of a directory.
func (fs *FS) openIndex(ctx context.Context, dir filesystem.Ino) (*index, error) {
	n, err := fs.file(ctx, dir)
	if err != nil {
		return nil, err
	}
	x, err := fs.indexOf(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", dir, err)
	}
	return x, nil
}

func (fs *FS) indexOf(ctx context.Context, n *node) (*index, error) {
	s, err := fs.special(ctx, n)
	if err != nil {
		return nil, err
	}
	if s.mode != filesystem.ModeDir {
		return nil, filesystem.ErrNotDir
	}
	roots := n.find(typeIndexRoot, indexName)
	if len(roots) == 0 || !roots[0].resident || len(roots[0].value) < 32 {
		return nil, corrupt("no index root")
	}
	v := roots[0].value
	x := &index{fs: fs, root: v[16:], size: int64(le.Uint32(v[8:]))}
	if x.size < 512 || x.size > maxIndex || x.size&(x.size-1) != 0 {
		return nil, corrupt("index blocks of %d bytes", x.size)
	}
	x.unit = fs.cluster
	if fs.cluster > x.size {
		x.unit = sectorUnit
	}
	parts := n.find(typeIndexAlloc, indexName)
	if len(parts) == 0 {
		return x, nil
	}
	if x.blocks, err = fs.streamOf(parts); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	maps := n.find(typeBitmap, indexName)
	if len(maps) == 0 {
		return nil, corrupt("an index without a bitmap")
	}
	m, err := fs.streamOf(maps)
	if err != nil {
		return nil, fmt.Errorf("bitmap of the index: %w", err)
	}
	blocks := x.blocks.size / x.size
	if blocks > maxIndexBlocks {
		return nil, corrupt("an index of %d blocks", blocks)
	}
	x.used = make([]byte, min(m.size, (blocks+7)/8))
	if err := m.fill(x.used, 0); err != nil {
		return nil, fmt.Errorf("bitmap of the index: %w", err)
	}
	return x, nil
}

// maxIndexBlocks bounds a directory: 32 GiB of names.
const maxIndexBlocks = 8 << 20

// count is the number of nodes: the root and all blocks.
func (x *index) count() int64 {
	if x.blocks == nil {
		return 1
	}
	return 1 + x.blocks.size/x.size
}

// node gives the entries of the root (0) or of a block (from 1 on), from its
// index header on; nil for a block that is not used.
func (x *index) node(i int64) ([]byte, error) {
	if i == 0 {
		return x.root, nil
	}
	block := i - 1
	if block/8 >= int64(len(x.used)) || x.used[block/8]>>(block%8)&1 == 0 {
		return nil, nil
	}
	b := make([]byte, x.size)
	err := x.blocks.fill(b, block*x.size)
	if err == nil {
		err = fixup(b, "INDX")
	}
	if err != nil {
		return nil, fmt.Errorf("index block %d: %w", block, err)
	}
	return b[24:], nil
}

// entry is one name in an index.
type entry struct {
	ino     filesystem.Ino
	name    string // UTF-16
	space   byte
	flags   uint32 // file attributes
	last    bool   // has no name
	subnode int64  // number of a block below, with smaller names; -1: none
	next    int    // offset of the next entry
}

// start is the offset of a node's first entry.
func start(b []byte) int {
	if len(b) < 16 {
		return len(b)
	}
	return int(min(le.Uint32(b), uint32(len(b))))
}

// entryAt reads the entry at an offset; ok false at the end.
func entryAt(b []byte, off int) (e entry, ok bool, err error) {
	end := int(min(uint64(le.Uint32(b[4:])), uint64(len(b))))
	if off < 16 || off+16 > end {
		return e, false, nil
	}
	size, key := int(le.Uint16(b[off+8:])), int(le.Uint16(b[off+10:]))
	flags := le.Uint16(b[off+12:])
	if size < 16 || off+size > end {
		return e, false, corrupt("an index entry of %d bytes at %d of %d", size, off, end)
	}
	e = entry{next: off + size, last: flags&2 != 0, subnode: -1}
	if flags&1 != 0 && size >= 24 {
		e.subnode = int64(le.Uint64(b[off+size-8:]))
	}
	if e.last {
		return e, true, nil
	}
	k := b[off+16 : off+size]
	if key < 66 || key > len(k) || 66+2*int(k[64]) > key {
		return e, false, corrupt("an index entry with a name of %d bytes", key)
	}
	e.ino = filesystem.Ino(le.Uint64(b[off:]) & refMask)
	e.name, e.space, e.flags = string(k[66:66+2*int(k[64])]), k[65], le.Uint32(k[56:])
	return e, true, nil
}

const nodeShift = 17 // bits of an offset in a cookie; a block has 64 KiB at most

// ReadDir lists a directory: its root and its blocks, in the order in which
// they lie. A block that is damaged is passed over.
func (fs *FS) ReadDir(ctx context.Context, dir filesystem.Ino, cookie uint64, fn func(filesystem.Entry) bool) error {
	x, err := fs.openIndex(ctx, dir)
	if err != nil {
		return err
	}
	var damage error
	off := int(cookie & (1<<nodeShift - 1))
	for i := int64(cookie >> nodeShift); i < x.count(); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := x.node(i)
		if err == nil && b != nil {
			if off == 0 {
				off = start(b)
			}
			var done bool
			if done, err = listNode(b, off, uint64(i)<<nodeShift, fn); done {
				return nil
			}
		}
		if err != nil {
			if !errors.Is(err, filesystem.ErrCorrupt) {
				return fmt.Errorf("directory %d: %w", dir, err)
			}
			if damage == nil {
				damage = fmt.Errorf("directory %d: %w", dir, err)
			}
		}
		off = 0
	}
	return damage
}

// listNode calls fn for the names of a node from an offset on.
func listNode(b []byte, off int, base uint64, fn func(filesystem.Entry) bool) (done bool, err error) {
	for {
		e, ok, err := entryAt(b, off)
		if err != nil || !ok || e.last {
			return false, err
		}
		off = e.next
		if !e.shown() {
			continue
		}
		name := text(e.name)
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			continue // no name that could be looked up
		}
		kind := uint32(0)
		switch {
		case e.flags&(dosReparse|dosSystem) != 0: // it may be a link, a device, …
		case e.flags&0x10000000 != 0:
			kind = filesystem.ModeDir
		default:
			kind = filesystem.ModeRegular
		}
		if !fn(filesystem.Entry{Name: name, Ino: e.ino, Type: kind, Next: base | uint64(off)}) {
			return true, nil
		}
	}
}

// shown leaves out the filesystem's own files and 8.3 names.
func (e *entry) shown() bool { return e.ino >= firstOfUser && e.space != nameDOS }

// Lookup finds a name, exactly as it is written.
func (fs *FS) Lookup(ctx context.Context, dir filesystem.Ino, name string) (filesystem.Ino, error) {
	ino, _, err := fs.lookup(ctx, dir, name, false)
	return ino, err
}

// lookup goes down the index. Names are in the order of their upper case; those
// that differ in case only lie beside each other.
func (fs *FS) lookup(ctx context.Context, dir filesystem.Ino, name string, folded bool) (filesystem.Ino, string, error) {
	x, err := fs.openIndex(ctx, dir)
	if err != nil {
		return 0, "", err
	}
	missing := fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
	want := utf16Bytes(name)
	if want == "" || name == "." || name == ".." || len(want) > 510 || strings.ContainsAny(name, "/\x00") {
		return 0, "", missing
	}
	l := lookup{x: x, want: want, upper: fs.fold(want), folded: folded, left: maxLookup}
	found, err := l.in(ctx, 0, 0)
	switch {
	case err != nil:
		return 0, "", fmt.Errorf("directory %d: %w", dir, err)
	case found == nil:
		return 0, "", missing
	}
	return found.ino, text(found.name), nil
}

const (
	maxLookup = 256 // nodes of an index that one look-up reads
	maxLevels = 32
)

type lookup struct {
	x           *index
	want, upper string
	folded      bool
	left        int
}

func (l *lookup) in(ctx context.Context, node int64, level int) (*entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if l.left--; l.left < 0 || level > maxLevels {
		return nil, corrupt("the index is no tree")
	}
	b, err := l.x.node(node)
	if err != nil || b == nil {
		return nil, err
	}
	for off := start(b); ; {
		e, ok, err := entryAt(b, off)
		if err != nil || !ok {
			return nil, err
		}
		off = e.next
		order := 1 // of the entry, to what is wanted; the last is behind all
		if !e.last {
			order = compare(l.x.fs.fold(e.name), l.upper)
		}
		if order < 0 {
			continue
		}
		if order == 0 && e.shown() && (l.folded || e.name == l.want) {
			return &e, nil
		}
		if e.subnode >= 0 {
			below := e.subnode * l.x.unit
			if below%l.x.size != 0 || below/l.x.size >= l.x.count()-1 {
				return nil, corrupt("the index refers to block %d", e.subnode)
			}
			if found, err := l.in(ctx, below/l.x.size+1, level+1); found != nil || err != nil {
				return found, err
			}
		}
		if order > 0 {
			return nil, nil
		}
	}
}

// compare compares UTF-16 by its units.
func compare(a, b string) int {
	for i := 0; i+1 < len(a) && i+1 < len(b); i += 2 {
		x, y := uint16(a[i])|uint16(a[i+1])<<8, uint16(b[i])|uint16(b[i+1])<<8
		if x != y {
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

// fold gives a name in upper case, by the volume's own table.
func (fs *FS) fold(name string) string {
	table := fs.upcase()
	out := []byte(name)
	for i := 0; i+1 < len(out); i += 2 {
		u := uint16(out[i]) | uint16(out[i+1])<<8
		if int(u) < len(table) {
			u = table[u]
		}
		out[i], out[i+1] = byte(u), byte(u>>8)
	}
	return string(out)
}

// readUpcase reads $UpCase: for each unit of UTF-16 its upper case.
func (fs *FS) readUpcase() []uint16 {
	table := make([]uint16, 1<<16)
	for i := range table {
		table[i] = uint16(i)
		if up := unicode.ToUpper(rune(i)); up < 1<<16 {
			table[i] = uint16(up)
		}
	}
	n, err := fs.node(context.Background(), upcaseFile)
	if err != nil {
		return table
	}
	parts := n.find(typeData, "")
	if len(parts) == 0 {
		return table
	}
	s, err := fs.streamOf(parts)
	if err != nil {
		return table
	}
	b := make([]byte, min(s.size, 2<<16)&^1)
	if s.fill(b, 0) != nil {
		fs.note("the table of upper case cannot be read; Unicode's is used")
		return table
	}
	for i := range len(b) / 2 {
		table[i] = le.Uint16(b[2*i:])
	}
	return table
}
