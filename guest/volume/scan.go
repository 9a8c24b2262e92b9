package volume

import (
	"context"
	"fmt"

	"cairn/guest/volume/device"
)

const (
	// maxLayers bounds what lies in what: partitions on logical volumes on
	// arrays on partitions are four.
	maxLayers = 10
	// maxVolumes bounds a Set.
	maxVolumes = 4096
	// maxExtents bounds the pieces of one volume, and those of a Set together.
	maxExtents, maxAllExtents = 1 << 17, 1 << 18
)

// scanner looks through disks and all that lies in them.
type scanner struct {
	*Set
	arrays arrays
	groups groups
	cut    bool // more than maxVolumes
}

// place is a block device that may have a partition table.
type place struct {
	of     Volume // what its volumes have in common
	device device.Device
	layers int  // below it
	plain  bool // Linux does not look for partitions on it
}

func scanKinds(ctx context.Context, disks []Disk, kinds map[string]kind) (*Set, error) {
	s := &scanner{Set: &Set{kinds: kinds}}
	names := map[string]bool{}
	for _, d := range disks {
		if names[d.Name] {
			return nil, fmt.Errorf("volume: two disks are named %q", d.Name)
		}
		names[d.Name] = true
		if d.Size <= 0 || d.Image == nil {
			s.note(d.Name, "the disk is empty")
			continue
		}
		of := Volume{Disk: d.Name, stem: stem(d.Name, "disk")}
		if err := s.look(ctx, place{of: of, device: &device.Disk{Name: d.Name, Image: d.Image, Bytes: d.Size}}); err != nil {
			return nil, fmt.Errorf("volume: disk %s: %w", d.Name, err)
		}
	}
	if err := s.assembleAll(ctx); err != nil {
		return nil, fmt.Errorf("volume: %w", err)
	}
	s.describe()
	s.nameVolumes()
	s.joinSeveral()
	s.locate()
	return s.Set, nil
}

// look finds the partitions of a device, or what lies on all of it.
func (s *scanner) look(ctx context.Context, p place) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.layers > maxLayers {
		s.note(p.of.stem, "too many devices lie in one another; what is on it is not looked for")
		return nil
	}
	if len(s.Volumes) == maxVolumes {
		s.add(p.of, p.layers) // says so
		return nil
	}
	whole := p.of
	whole.Size, whole.device = p.device.Size(), p.device
	if s.fillsAll(&whole) {
		s.add(whole, p.layers)
		return nil
	}
	if p.plain {
		if probe(p.device, &whole, s.kinds); whole.Type != "unknown" {
			s.add(whole, p.layers)
			return nil
		}
	}
	t, err := readTable(ctx, Disk{Name: p.of.stem, Image: p.device, Size: p.device.Size()})
	if err != nil {
		return err
	}
	parts := t.fit(p.device.Size())
	for _, n := range t.notes {
		s.note(p.of.stem, "%s", n)
	}
	if !t.found {
		probe(p.device, &whole, s.kinds)
		s.add(whole, p.layers)
		return nil
	}
	for _, part := range parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		v := p.of
		v.Partition, v.Start, v.Size = part.Partition, part.Start, part.Size
		v.PartType, v.PartUUID, v.PartLabel, v.shared = part.PartType, part.PartUUID, part.PartLabel, part.shared
		v.stem = partitionStem(p.of, part.Partition)
		v.device = device.Section(p.device, v.Start, v.Size)
		probe(v.device, &v, s.kinds)
		if part.Reason != "" {
			v.Reason, v.overlaps = part.Reason, true
			s.note(p.of.stem, "partition %d: %s", v.Partition, part.Reason)
		}
		s.add(v, p.layers)
	}
	return nil
}

// add keeps a volume, and notes it when others are made of it.
func (s *scanner) add(v Volume, layers int) {
	if len(s.Volumes) == maxVolumes {
		if !s.cut {
			s.cut = true
			s.note("disks", "there are more than %d volumes; the rest is not shown", maxVolumes)
		}
		return
	}
	s.Volumes = append(s.Volumes, v)
	switch index := len(s.Volumes) - 1; {
	case v.device == nil || v.overlaps:
	case v.Type == "md-member":
		s.addMember(index, layers)
	case v.Type == "lvm2-pv":
		s.addPhysical(index, layers)
	}
}

// assembleAll makes devices of devices until nothing new comes up. What lacks a
// part waits until all is made that has its parts, for those may hold it.
func (s *scanner) assembleAll(ctx context.Context) error {
	for {
		made := false
		for _, lacking := range []bool{false, true} {
			for _, assemble := range []func(context.Context, bool) (bool, error){s.assembleArrays, s.assembleGroups} {
				if made && lacking {
					break
				}
				some, err := assemble(ctx, lacking)
				if err != nil {
					return err
				}
				made = made || some
			}
		}
		if !made {
			return nil
		}
	}
}

// locate says of each volume where it lies.
func (s *scanner) locate() {
	left := maxAllExtents
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if v.device == nil || v.shared || len(v.parts) > 1 {
			continue
		}
		v.Extents = device.Extents(v.device, min(left, maxExtents))
		left -= len(v.Extents)
	}
}
