package vfat

import "cairn/guest/filesystem/pages"

// The file allocation table: for each cluster the one that follows it.

// Meanings of an entry, the same for all widths.
const (
	entryFree    = 0
	entryBad     = 0xFFFFFFF7
	entryEnd     = 0xFFFFFFFF
	entryInvalid = 1 // names no cluster
)

// tableReader reads entries of the active FAT and keeps its last page. It is
// not for several goroutines.
type tableReader struct {
	fs   *FS
	page []byte
	at   int64 // byte of the image where page begins
}

// bytes gives n bytes of the FAT at off, where they may cross a page.
func (t *tableReader) bytes(off int64, n int) ([]byte, error) {
	if i := off - t.at; t.page != nil && i >= 0 && i+int64(n) <= int64(len(t.page)) {
		return t.page[i:], nil
	}
	start := off / pages.Size * pages.Size
	page, err := t.fs.pages.Page(start)
	if err != nil {
		return nil, err
	}
	t.page, t.at = page, start
	i := off - start
	if i+int64(n) <= int64(len(page)) {
		return page[i:], nil
	}
	// Only FAT12 has entries that cross a page.
	next, err := t.fs.pages.Page(start + pages.Size)
	if err != nil {
		return nil, err
	}
	if i != pages.Size-1 {
		return nil, corrupt("FAT entry at %d: the image ends there", off)
	}
	return []byte{page[i], next[0]}, nil
}

// next gives what the FAT says of a cluster, which must exist: entryFree,
// entryBad, entryEnd, entryInvalid, or the next cluster.
func (t *tableReader) next(c uint32) (uint32, error) {
	g := &t.fs.geo
	base := g.fats[g.active]
	switch g.bits {
	case 12:
		b, err := t.bytes(base+int64(c)*3/2, 2)
		if err != nil {
			return 0, err
		}
		return g.meaning12(le.Uint16(b) >> (c & 1 * 4)), nil
	case 16:
		b, err := t.bytes(base+int64(c)*2, 2)
		if err != nil {
			return 0, err
		}
		return g.meaning(widen(uint32(le.Uint16(b)), 16)), nil
	}
	b, err := t.bytes(base+int64(c)*4, 4)
	if err != nil {
		return 0, err
	}
	v := le.Uint32(b)
	if g.bits == 32 {
		v = widen(v&0x0FFFFFFF, 28) // the upper four bits are reserved
	}
	return g.meaning(v), nil
}

func (g *geometry) meaning12(v uint16) uint32 {
	return g.meaning(widen(uint32(v&0xFFF), 12))
}

// widen moves the marks at the top of a width's range to that of 32 bits.
func widen(v uint32, width int) uint32 {
	if top := uint32(1)<<width - 1; v >= top-8 {
		return v | ^top
	}
	return v
}

func (g *geometry) meaning(v uint32) uint32 {
	switch {
	case g.has(v) || v == entryFree || v == entryBad:
		return v
	case v > entryBad:
		return entryEnd
	}
	return entryInvalid
}
