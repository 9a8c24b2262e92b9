package lvm

import (
	"cairn/guest/volume/device"
)

// raid1 is one of several copies. Each has a volume with a superblock of
// dm-raid, which tells those that are behind.
func (b *builder) raid1(s *segment) (device.Device, error) {
	pairs := s.list("raids")
	data := everySecond(pairs)
	copies, errs, err := b.areas(inOrder(data), s.extents*b.group.extent)
	if err != nil {
		return nil, err
	}
	supers := make([]*raidSuper, len(copies))
	for i := range copies {
		if name, ok := pairs[2*i].(string); ok {
			supers[i] = b.raidSuper(name)
		}
	}
	var newest *raidSuper
	for i, s := range supers {
		if errs[i] == nil && s != nil && (newest == nil || s.events > newest.events) {
			newest = s
		}
	}
	if newest == nil {
		return oneOf(copies, errs) // an array that was never used, or without metadata
	}
	var good []device.Device
	for i, s := range supers {
		failed := s == nil || s.position >= 64 || newest.failed>>s.position&1 != 0
		if errs[i] == nil && !failed && s.events+1 >= newest.events && s.recovered {
			good = append(good, copies[i])
		}
	}
	if len(good) == 0 {
		return oneOf(copies, errs)
	}
	return device.Mirror(good...), nil
}

// raidSuper is dm-raid's superblock (struct dm_raid_superblock in dm-raid.c).
type raidSuper struct {
	position  uint32
	events    uint64
	failed    uint64 // members, as bits
	recovered bool
}

func (b *builder) raidSuper(name string) *raidSuper {
	d, err := b.logical(name)
	if err != nil {
		return nil
	}
	h := make([]byte, sector)
	if n, _ := d.ReadAt(h, 0); n < len(h) || le.Uint32(h) != 0x64526D44 {
		return nil
	}
	return &raidSuper{
		position: le.Uint32(h[12:]), events: le.Uint64(h[16:]), failed: le.Uint64(h[24:]),
		recovered: le.Uint64(h[32:]) == ^uint64(0),
	}
}
