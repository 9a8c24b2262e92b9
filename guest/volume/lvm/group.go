package lvm

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Group is a volume group as one text of metadata describes it.
type Group struct {
	UUID, Name string
	Seqno      int64 // counts changes

	extent   int64 // bytes
	physical map[string]*physical
	logical  map[string]*logical
}

// physical is where a group says that a physical volume is used.
type physical struct {
	uuid    string
	start   int64 // of the extents, bytes
	extents int64
	missing bool // LVM gave it up: its data is old
}

// logical is a logical volume of the metadata.
type logical struct {
	name, uuid string
	visible    bool
	extents    int64
	segments   []segment
	err        error // what is wrong with its description
}

type segment struct {
	kind           string
	start, extents int64
	section
}

// maxExtents keeps all byte counts of a group below 2^61.
const maxExtent, maxExtents = int64(1) << 31, int64(1) << 30

// parseGroup reads the text of a group: one section beside values of the text
// itself.
func parseGroup(text string) (*Group, error) {
	all, err := parseText(text)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s, ok := all[name].(section)
		if !ok || s.text("id") == "" {
			continue
		}
		g := &Group{UUID: s.text("id"), Name: name, Seqno: s.number("seqno"), extent: s.number("extent_size"),
			physical: map[string]*physical{}, logical: map[string]*logical{}}
		if g.extent <= 0 || g.extent > maxExtent/sector {
			return nil, corrupt("group %q: extents of %d sectors", name, g.extent)
		}
		g.extent *= sector
		if err := g.physicals(s.section("physical_volumes")); err != nil {
			return nil, err
		}
		g.logicals(s.section("logical_volumes"))
		return g, nil
	}
	return nil, corrupt("no volume group in the text")
}

func (g *Group) physicals(all section) error {
	for name := range all {
		s := all.section(name)
		p := &physical{uuid: s.text("id"), start: s.number("pe_start"), extents: s.number("pe_count"), missing: s.has("flags", "MISSING")}
		if p.start < 0 || p.start > 1<<50 || p.extents < 0 || p.extents > maxExtents {
			return corrupt("group %q: physical volume %q: %d extents from sector %d", g.Name, name, p.extents, p.start)
		}
		p.start *= sector
		g.physical[name] = p
	}
	return nil
}

func (g *Group) logicals(all section) {
	for name := range all {
		s := all.section(name)
		l := &logical{name: name, uuid: s.text("id"), visible: s.has("status", "VISIBLE")}
		l.err = l.parse(s)
		g.logical[name] = l
	}
}

func (l *logical) parse(s section) error {
	for i := int64(1); i <= s.number("segment_count"); i++ {
		part := s.section("segment" + strconv.FormatInt(i, 10))
		seg := segment{kind: part.text("type"), start: part.number("start_extent"), extents: part.number("extent_count"), section: part}
		if part == nil || seg.start != l.extents || seg.extents <= 0 || seg.extents > maxExtents-l.extents {
			return corrupt("volume %q: segment %d", l.name, i)
		}
		seg.kind, _, _ = strings.Cut(seg.kind, "+") // flags that older versions need not know
		l.extents += seg.extents
		l.segments = append(l.segments, seg)
	}
	if l.extents == 0 {
		return corrupt("volume %q has no segments", l.name)
	}
	return nil
}

// Has says whether a physical volume is one of the group's.
func (g *Group) Has(uuid string) bool {
	for _, p := range g.physical {
		if p.uuid == uuid {
			return true
		}
	}
	return false
}

// Missing gives the UUIDs of the physical volumes that there says are not there,
// sorted.
func (g *Group) Missing(there func(uuid string) bool) []string {
	var list []string
	for _, p := range g.physical {
		if p.missing || !there(p.uuid) {
			list = append(list, p.uuid)
		}
	}
	slices.Sort(list)
	return list
}
