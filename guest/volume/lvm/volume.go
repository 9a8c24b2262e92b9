package lvm

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
)

// Volume is a logical volume that LVM shows.
type Volume struct {
	Name, UUID string
	Kind       string // "striped" (also of one stripe), "raid1", "thin", "thin-pool", "snapshot", …
	Size       int64  // bytes
	// Device is the volume's bytes; nil when Reason says why it cannot be read.
	Device device.Device
	Reason string
}

// Volumes gives the visible logical volumes of a group, sorted by name, snapshots
// behind all others: what they hold has the same UUIDs. find gives a physical
// volume by its UUID, nil when it is not there.
func (g *Group) Volumes(find func(uuid string) device.Device) []Volume {
	b := &builder{group: g, find: find, built: map[string]*result{}, cows: map[string]segment{}, origins: map[string]bool{}, merging: map[string]bool{}, pools: map[string]*pool{}}
	b.snapshots()
	var list, snapshots []Volume
	for _, name := range slices.Sorted(maps.Keys(g.logical)) {
		l := g.logical[name]
		// A snapshot is seen by the name of its store. What links the store to
		// the origin is marked as visible, but is none.
		_, isStore := b.cows[name]
		isLink := len(l.segments) > 0 && l.segments[0].kind == "snapshot"
		if !isStore && (!l.visible || isLink) {
			continue
		}
		v := Volume{Name: name, UUID: l.uuid, Size: l.extents * g.extent}
		if len(l.segments) > 0 {
			v.Kind = l.segments[0].kind
		}
		d, err := b.shown(name)
		if err != nil {
			v.Reason = reason(err)
		} else {
			v.Device, v.Size = d, d.Size()
		}
		if isStore {
			v.Kind = "snapshot"
		}
		if isStore || len(l.segments) > 0 && l.segments[0].text("origin") != "" {
			snapshots = append(snapshots, v)
		} else {
			list = append(list, v)
		}
	}
	return append(list, snapshots...)
}

func reason(err error) string { return strings.TrimPrefix(err.Error(), "LVM: ") }

// builder makes the devices of a group.
type builder struct {
	group   *Group
	find    func(uuid string) device.Device
	built   map[string]*result
	depth   int
	cows    map[string]segment // of a classic snapshot's store: what it is a snapshot of
	origins map[string]bool    // that have classic snapshots, or thin ones in a pool
	merging map[string]bool    // into which a snapshot is being merged
	pools   map[string]*pool

	exceptions int // of all snapshots, which are kept in memory
}

// result is a device that was made; while it is being made, nothing.
type result struct {
	device device.Device
	err    error
}

// snapshots notes which volumes are classic snapshots and of what. Each is a
// hidden volume that names both.
func (b *builder) snapshots() {
	for _, l := range b.group.logical {
		for _, s := range l.segments {
			if name := s.text("external_origin"); name != "" {
				b.origins[name] = true
			}
			if s.kind != "snapshot" {
				continue
			}
			b.origins[s.text("origin")] = true
			if s.text("merging_store") != "" {
				b.merging[s.text("origin")], b.merging[s.text("merging_store")] = true, true
			} else {
				b.cows[s.text("cow_store")] = s
			}
		}
	}
}

// shown gives a volume as a guest sees it.
func (b *builder) shown(name string) (device.Device, error) {
	if b.merging[name] {
		return nil, fmt.Errorf("%w: a snapshot was being merged", filesystem.ErrUnsupported)
	}
	if s, isCow := b.cows[name]; isCow {
		return b.snapshot(name, s)
	}
	d, err := b.logical(name)
	if err == nil && b.origins[name] {
		// Its snapshots use its blocks as well, also those that it does not.
		d = device.Opaque(d)
	}
	return d, err
}

// maxStack bounds volumes that lie on volumes; LVM itself makes about six.
const maxStack = 16

// logical gives the bytes of a volume, hidden or not, by its segments.
func (b *builder) logical(name string) (device.Device, error) {
	if r := b.built[name]; r != nil {
		if r.device == nil && r.err == nil {
			return nil, corrupt("volume %q contains itself", name)
		}
		return r.device, r.err
	}
	l := b.group.logical[name]
	switch {
	case l == nil:
		return nil, corrupt("volume %q is not in the metadata", name)
	case l.err != nil:
		return nil, l.err
	case b.depth == maxStack:
		return nil, corrupt("volume %q: too many volumes on one another", name)
	}
	r := &result{}
	b.built[name] = r
	b.depth++
	defer func() { b.depth-- }()
	var parts []device.Device
	for i := range l.segments {
		s := &l.segments[i]
		d, err := b.segment(s)
		if err != nil {
			r.err = err
			return nil, err
		}
		parts = append(parts, device.Section(d, 0, s.extents*b.group.extent))
	}
	if d := device.Concat(parts...); d.Weight() <= device.MaxWeight {
		r.device = d
	} else {
		r.err = corrupt("volume %q is made of too many copies of copies", name)
	}
	return r.device, r.err
}

// kinds are the segments that are read, by the names that LVM gives them.
func (b *builder) segment(s *segment) (device.Device, error) {
	switch s.kind {
	case "striped", "linear":
		return b.striped(s, s.list("stripes"))
	case "raid0":
		return b.striped(s, inOrder(s.list("raid0_lvs")))
	case "raid0_meta":
		return b.striped(s, inOrder(everySecond(s.list("raids"))))
	case "mirror":
		return b.mirror(s, s.list("mirrors"))
	case "raid1":
		return b.raid1(s)
	case "thin":
		return b.thin(s)
	case "thin-pool":
		return nil, fmt.Errorf("a thin pool; its thin volumes are listed by themselves")
	case "error":
		return device.Gap(s.extents*b.group.extent, fmt.Errorf("an error segment of LVM: %w", filesystem.ErrCorrupt)), nil
	case "zero":
		return device.Zero(s.extents * b.group.extent), nil
	case "":
		return nil, corrupt("a segment without a type")
	}
	return nil, fmt.Errorf("logical volumes of type %q are not supported; its raw bytes are in disks/", s.kind)
}

// everySecond gives the data volumes of a list of pairs of metadata and data.
func everySecond(pairs []any) []any {
	var list []any
	for i := 1; i < len(pairs); i += 2 {
		list = append(list, pairs[i])
	}
	return list
}

// inOrder makes a list of areas of volumes that are used from their start.
func inOrder(names []any) []any {
	var list []any
	for _, n := range names {
		list = append(list, n, int64(0))
	}
	return list
}

// maxAreasOf bounds the stripes or copies of a segment.
const maxAreasOf = 256

// areas gives the devices of a list of names and first extents.
func (b *builder) areas(list []any, size int64) (devices []device.Device, errs []error, err error) {
	if len(list) == 0 || len(list)%2 != 0 || len(list) > 2*maxAreasOf {
		return nil, nil, corrupt("a segment with %d areas", len(list)/2)
	}
	for i := 0; i < len(list); i += 2 {
		name, ok := list[i].(string)
		extent, isNumber := list[i+1].(int64)
		if !ok || !isNumber || extent < 0 || extent > maxExtents {
			return nil, nil, corrupt("a segment with an area that is none")
		}
		d, err := b.area(name, extent, size)
		devices, errs = append(devices, d), append(errs, err)
	}
	return devices, errs, nil
}

// area gives size bytes of a physical or a logical volume from an extent on.
func (b *builder) area(name string, extent, size int64) (device.Device, error) {
	p := b.group.physical[name]
	if p == nil {
		d, err := b.logical(name)
		if err != nil {
			return nil, err
		}
		return device.Section(d, extent*b.group.extent, size), nil
	}
	if p.missing {
		return nil, fmt.Errorf("it lies on physical volume %s, which LVM gave up as missing: %w", p.uuid, device.ErrMissing)
	}
	d := b.find(p.uuid)
	if d == nil {
		return nil, fmt.Errorf("it lies on physical volume %s, which is on none of the disks: %w", p.uuid, device.ErrMissing)
	}
	return device.Section(d, p.start+extent*b.group.extent, size), nil
}

func (b *builder) striped(s *segment, list []any) (device.Device, error) {
	n := int64(len(list) / 2)
	if n == 0 || s.extents%n != 0 {
		return nil, corrupt("%d extents in %d stripes", s.extents, n)
	}
	size := s.extents * b.group.extent
	on, errs, err := b.areas(list, size/n)
	if err != nil {
		return nil, err
	}
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	if n == 1 {
		return on[0], nil
	}
	chunk := s.number("stripe_size")
	if chunk <= 0 || chunk > 1<<30 {
		return nil, corrupt("stripes of %d sectors", chunk)
	}
	chunk *= sector
	return device.Striped(device.Chunks{Bytes: size, Chunk: chunk, Worst: device.Heaviest(on...), Of: func(c int64, places []device.Place) []device.Place {
		return append(places, device.Place{Device: on[c%n], At: c / n * chunk})
	}}), nil
}

// mirror is one of several copies; the first one is the oldest.
func (b *builder) mirror(s *segment, list []any) (device.Device, error) {
	copies, errs, err := b.areas(list, s.extents*b.group.extent)
	if err != nil {
		return nil, err
	}
	return oneOf(copies, errs)
}

func oneOf(copies []device.Device, errs []error) (device.Device, error) {
	var there []device.Device
	for i, c := range copies {
		if errs[i] == nil {
			there = append(there, c)
		}
	}
	if len(there) == 0 {
		return nil, errs[0]
	}
	return device.Mirror(there...), nil
}
