package volume

import (
	"fmt"
	"io"
	"slices"
)

// Part is one of the volumes that a filesystem lies on.
type Part struct {
	Image io.ReaderAt
	Size  int64 // bytes
}

// several is what a volume says of the filesystem of which it is a part.
type several struct {
	filesystem string // UUID
	part       string // UUID of this volume in it
	number     uint64
	count      uint64 // volumes that the filesystem has
}

// joinSeveral makes one volume of those that one filesystem lies on: the one
// with the lowest number shows it. A copy of a volume is no part of the same one.
func (s *scanner) joinSeveral() {
	sets := map[string][]*Volume{}
	var order []string
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if v.several == nil || v.overlaps || v.device == nil {
			continue
		}
		id := v.several.filesystem
		if len(sets[id]) == 0 {
			order = append(order, id)
		}
		sets[id] = append(sets[id], v)
	}
	for _, id := range order {
		left := sets[id]
		for len(left) > 0 {
			left = s.join(id, left)
		}
	}
}

// join makes one filesystem of volumes that are different parts of it, and gives
// the others.
func (s *scanner) join(id string, volumes []*Volume) (copies []*Volume) {
	seen := map[string]bool{}
	var parts []*Volume
	for _, v := range volumes {
		if seen[v.several.part] {
			copies = append(copies, v)
			continue
		}
		seen[v.several.part] = true
		parts = append(parts, v)
	}
	slices.SortStableFunc(parts, func(a, b *Volume) int { return int(min(1, max(-1, int64(a.several.number)-int64(b.several.number)))) })
	first := parts[0]
	if n := uint64(len(parts)); n < first.several.count {
		s.note(first.Name, "%d of the %d devices of this %s are missing", first.several.count-n, first.several.count, first.Type)
	}
	if len(parts) == 1 {
		return copies
	}
	for _, v := range parts {
		first.parts = append(first.parts, Part{v.device, v.Size})
		if v != first {
			v.Reason = fmt.Sprintf("a device of the %s %s, shown as %s", v.Type, id, first.Name)
		}
	}
	return copies
}
