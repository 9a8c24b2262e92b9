package xfs

import (
	"errors"
	"maps"
	"slices"
	"sort"
)

const (
	// overlayBytes bounds the sectors that a replayed log may change.
	overlayBytes = 128 << 20

	pageSectors = 8
	slabSectors = 2048
)

var errOverlayFull = errors.New("it changes more than 128 MiB of metadata")

// overlay holds the sectors that the log changed. After the replay it is only
// read.
type overlay struct {
	pages map[int64]*page // by disk address / pageSectors
	slabs [][]byte
	count int // sectors
	fresh []span
}

// page names the changed sectors of 4 KiB of the image.
type page struct {
	changed uint8
	slot    [pageSectors]int32
}

// span is sectors [start, end).
type span struct{ start, end int64 }

// sector gives a changed sector's contents; nil when it is not changed.
func (o *overlay) sector(n int64) []byte {
	p := o.pages[n/pageSectors]
	if p == nil || p.changed>>(n%pageSectors)&1 == 0 {
		return nil
	}
	return o.slot(p.slot[n%pageSectors])
}

func (o *overlay) slot(i int32) []byte {
	return o.slabs[i/slabSectors][int(i%slabSectors)*sectorSize:][:sectorSize:sectorSize]
}

// patch replaces what was changed in bytes read from byte off on.
func (o *overlay) patch(p []byte, off int64) {
	if o.count == 0 {
		return
	}
	end := off + int64(len(p))
	for n := off / sectorSize; n*sectorSize < end; n++ {
		if n%pageSectors == 0 && o.pages[n/pageSectors] == nil {
			n += pageSectors - 1
			continue
		}
		if s := o.sector(n); s != nil {
			from, to := max(off, n*sectorSize), min(end, (n+1)*sectorSize)
			copy(p[from-off:to-off], s[from-n*sectorSize:to-n*sectorSize])
		}
	}
}

// touches says whether any sector of a range of bytes is changed.
func (o *overlay) touches(off int64, length int) bool {
	if o.count == 0 {
		return false
	}
	for n := off / sectorSize; n*sectorSize < off+int64(length); n++ {
		if o.sector(n) != nil {
			return true
		}
	}
	return false
}

// add makes a sector changeable and gives its memory, which is zero.
func (o *overlay) add(n int64) ([]byte, error) {
	if o.count >= overlayBytes/sectorSize {
		return nil, errOverlayFull
	}
	if o.pages == nil {
		o.pages = make(map[int64]*page)
	}
	p := o.pages[n/pageSectors]
	if p == nil {
		p = &page{}
		o.pages[n/pageSectors] = p
	}
	if o.count%slabSectors == 0 {
		o.slabs = append(o.slabs, make([]byte, slabSectors*sectorSize))
	}
	p.changed |= 1 << (n % pageSectors)
	p.slot[n%pageSectors] = int32(o.count)
	o.count++
	return o.slot(int32(o.count - 1)), nil
}

// isFresh says whether the log has made the sector a part of new inodes,
// whatever lies on the disk.
func (o *overlay) isFresh(n int64) bool {
	i := sort.Search(len(o.fresh), func(i int) bool { return o.fresh[i].start > n }) - 1
	return i >= 0 && n < o.fresh[i].end
}

// renew makes the sectors of a range zero and fresh.
func (o *overlay) renew(s span) {
	for n := s.start; n < s.end; n++ {
		if b := o.sector(n); b != nil {
			clear(b)
		}
	}
	i := sort.Search(len(o.fresh), func(i int) bool { return o.fresh[i].start >= s.start })
	if i < len(o.fresh) && o.fresh[i].start == s.start {
		o.fresh[i].end = max(o.fresh[i].end, s.end)
		return
	}
	o.fresh = slices.Insert(o.fresh, i, s)
}

// each calls fn for the changed ranges in bytes, ascending.
func (o *overlay) each(fn func(start, end int64)) {
	var start, end int64
	for _, k := range slices.Sorted(maps.Keys(o.pages)) {
		for i := range int64(pageSectors) {
			if o.pages[k].changed>>i&1 == 0 {
				continue
			}
			off := (k*pageSectors + i) * sectorSize
			if off != end {
				if end > start {
					fn(start, end)
				}
				start = off
			}
			end = off + sectorSize
		}
	}
	if end > start {
		fn(start, end)
	}
}
