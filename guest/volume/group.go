package volume

import (
	"context"
	"fmt"

	"cairn/guest/volume/device"
	"cairn/guest/volume/lvm"
)

// groups are the physical volumes that were found, and the volume groups that
// their metadata describes.
type groups struct {
	physical map[string]physical // by UUID
	order    []string            // UUIDs of groups
	newest   map[string]*lvm.Group
	made     map[string]bool
}

type physical struct {
	volume, layers int
}

// addPhysical notes a volume as a physical volume.
func (s *scanner) addPhysical(index, layers int) {
	v := &s.Volumes[index]
	pv, err := lvm.Find(v.device, v.Size)
	if err != nil || pv == nil {
		return // probe said so
	}
	for _, n := range pv.Notes {
		s.note(v.stem, "%s", n)
	}
	g := &s.groups
	if g.physical == nil {
		g.physical, g.newest, g.made = map[string]physical{}, map[string]*lvm.Group{}, map[string]bool{}
	}
	if first, twice := g.physical[pv.UUID]; twice {
		v.Reason = fmt.Sprintf("a copy of the LVM physical volume on %s, which is used", s.Volumes[first.volume].stem)
		return
	}
	g.physical[pv.UUID] = physical{index, layers}
	if pv.Group == nil {
		return
	}
	old, known := g.newest[pv.Group.UUID]
	if !known {
		g.order = append(g.order, pv.Group.UUID)
	}
	if !known || pv.Group.Seqno > old.Seqno && !g.made[pv.Group.UUID] {
		g.newest[pv.Group.UUID] = pv.Group
	}
}

// assembleGroups makes the logical volumes of the groups that have all physical
// volumes, or also of those that lack some, and looks for what is on them.
func (s *scanner) assembleGroups(ctx context.Context, lacking bool) (made bool, err error) {
	there := func(uuid string) bool { _, ok := s.groups.physical[uuid]; return ok }
	for _, uuid := range s.groups.order {
		g := s.groups.newest[uuid]
		missing := g.Missing(there)
		if s.groups.made[uuid] || !lacking && len(missing) > 0 {
			continue
		}
		s.groups.made[uuid], made = true, true
		for _, id := range missing {
			s.note("LVM group "+g.Name, "physical volume %s is missing", id)
		}
		layers := 0
		find := func(uuid string) device.Device {
			p, ok := s.groups.physical[uuid]
			if !ok {
				return nil
			}
			layers = max(layers, p.layers+1)
			return s.Volumes[p.volume].device
		}
		for _, l := range g.Volumes(find) {
			if err := s.addLogical(ctx, g, l, layers); err != nil {
				return made, err
			}
		}
	}
	return made, nil
}

func (s *scanner) addLogical(ctx context.Context, g *lvm.Group, l lvm.Volume, layers int) error {
	of := Volume{Group: g.Name, GroupUUID: g.UUID, Logical: l.Name, LogicalUUID: l.UUID, stem: stem(g.Name+"-"+l.Name, "lvm")}
	if l.Device != nil {
		return s.look(ctx, place{of: of, device: l.Device, layers: layers, plain: true})
	}
	of.Type, of.Size, of.Reason = "unknown", l.Size, l.Reason
	if l.Kind == "thin-pool" {
		of.Type = l.Kind
	}
	s.add(of, layers)
	return nil
}

// describe says of each member and physical volume what it belongs to.
func (s *scanner) describe() {
	for uuid, members := range s.arrays.members {
		for _, m := range members {
			s.Volumes[m.volume].Reason = "a member of the Linux software RAID " + s.arrays.made[uuid]
		}
	}
	for id, p := range s.groups.physical {
		v := &s.Volumes[p.volume]
		v.Reason = "a physical volume of LVM that is in no volume group"
		for _, uuid := range s.groups.order {
			if g := s.groups.newest[uuid]; g.Has(id) {
				v.Reason = "a physical volume of the LVM group " + g.Name
			}
		}
	}
}
