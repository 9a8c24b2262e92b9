package md

import (
	"errors"
	"fmt"
	"slices"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
)

// Layouts of a RAID 0 whose members differ in size.
const (
	originalLayout  = 1 // until Linux 3.14
	alternateLayout = 2
)

// stripes is a RAID 0. Members of different sizes make zones: the first is as
// long as the shortest member, the next lies on all that are longer, and so on.
func stripes(s *Superblock, disks []*disk) (device.Device, error) {
	sizes := make([]int64, len(disks)) // in chunks
	for i, d := range disks {
		sizes[i] = d.size / s.Chunk
	}
	ends := slices.Compact(slices.Sorted(slices.Values(sizes)))
	if len(ends) > 1 && s.Layout != originalLayout && s.Layout != alternateLayout {
		return nil, errors.New("its members differ in size and it does not say how they are used")
	}
	var zones []device.Device
	from, first := int64(0), int64(0) // chunks: on the members, of the array
	for _, end := range ends {
		var on []*disk
		for i, d := range disks {
			if sizes[i] > from {
				on = append(on, d)
			}
		}
		if len(on) == 0 || end == from {
			continue
		}
		base, shift, n := from, int64(0), int64(len(on))
		if s.Layout == originalLayout {
			shift = first
		}
		chunks := (end - from) * n
		zones = append(zones, device.Striped(device.Chunks{Bytes: chunks * s.Chunk, Chunk: s.Chunk, Worst: device.Heaviest(data(on)...),
			Of: func(c int64, places []device.Place) []device.Place {
				return append(places, device.Place{Device: on[(c+shift)%n].data, At: (base + c/n) * s.Chunk})
			}}))
		from, first = end, first+chunks
	}
	if len(zones) == 0 {
		return nil, fmt.Errorf("its members are smaller than a chunk: %w", filesystem.ErrCorrupt)
	}
	return device.Concat(zones...), nil
}

// far is a RAID 10: near copies of each chunk lie side by side on the next
// members, far copies on others, farther behind. See raid10(4) and
// __raid10_find_phys in Linux.
func far(s *Superblock, disks []*disk) (device.Device, error) {
	n, near, farther, offset := int64(len(disks)), int64(s.Layout&0xFF), int64(s.Layout>>8&0xFF), s.Layout>>16&1 != 0
	if near < 1 || farther < 1 || near*farther > n || near*farther > 8 {
		return nil, fmt.Errorf("layout %#x of RAID 10: %w", s.Layout, filesystem.ErrCorrupt)
	}
	set := n // members among which the far copies are
	switch s.Layout >> 17 {
	case 0:
	case 1:
		set = n / farther
	case 2:
		set = near * farther
	default:
		return nil, fmt.Errorf("layout %#x of RAID 10: %w", s.Layout, filesystem.ErrUnsupported)
	}
	chunks := s.Used / s.Chunk / farther * n / near
	stride := int64(1) // chunks between far copies
	if !offset {
		stride = (chunks*near*farther + n - 1) / n / farther
	}
	last := (n/set - 1) * set // where the last set starts; it has what is left over
	of := func(c int64, places []device.Place) []device.Place {
		stripe, member := c*near/n, c*near%n
		if offset {
			stripe *= farther
		}
		for range near {
			at, on := stripe, member
			for f := range farther {
				if f > 0 {
					group := on / set
					if on += near; n%set != 0 && on > last {
						on = last + (on-last)%(set+n%set)
					} else {
						on = on%set + group*set
					}
					at += stride
				}
				if d := disks[on]; d != nil {
					places = append(places, device.Place{Device: d.data, At: at * s.Chunk})
				}
			}
			if member++; member == n {
				member, stripe = 0, stripe+1
			}
		}
		return places
	}
	// Which members a chunk lies on repeats after so many chunks.
	for c := range min(chunks, n) {
		if len(of(c, nil)) == 0 {
			return nil, errors.New("all members with some of the data are missing or out of date")
		}
	}
	return device.Striped(device.Chunks{Bytes: chunks * s.Chunk, Chunk: s.Chunk, Of: of, Worst: int(near*farther) * device.Heaviest(data(disks)...)}), nil
}
