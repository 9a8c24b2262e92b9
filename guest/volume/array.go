package volume

import (
	"context"

	"cairn/guest/volume/md"
)

// arrays are the members that were found, by the array's UUID.
type arrays struct {
	order   []string
	members map[string][]arrayMember
	made    map[string]string // by UUID: the array's name
}

type arrayMember struct {
	md.Member
	volume, layers int
}

// fillsAll says whether a whole device is a member of an array, also when a
// partition table shows: the array's, which shows through its copy.
func (s *scanner) fillsAll(v *Volume) bool {
	super, err := md.Find(v.device, v.Size)
	if super == nil || err != nil || !super.FillsDevice(v.Size) {
		return false
	}
	probe(v.device, v, s.kinds)
	return v.Type == "md-member"
}

// addMember notes a volume as a member of its array.
func (s *scanner) addMember(index, layers int) {
	v := &s.Volumes[index]
	super, err := md.Find(v.device, v.Size)
	if err != nil || super == nil {
		return // probe said so
	}
	a := &s.arrays
	if a.members == nil {
		a.members, a.made = map[string][]arrayMember{}, map[string]string{}
	}
	if name, late := a.made[super.UUID]; late {
		s.note(v.stem, "it is a member of the array %s, which is made already", name)
		return
	}
	if a.members[super.UUID] == nil {
		a.order = append(a.order, super.UUID)
	}
	a.members[super.UUID] = append(a.members[super.UUID], arrayMember{md.Member{Device: v.device, Super: super}, index, layers})
}

// assembleArrays makes the arrays that have all members, or also those that
// lack some, and looks for what is on them.
func (s *scanner) assembleArrays(ctx context.Context, lacking bool) (made bool, err error) {
	for _, uuid := range s.arrays.order {
		if _, done := s.arrays.made[uuid]; done {
			continue
		}
		var members []md.Member
		layers := 0
		for _, m := range s.arrays.members[uuid] {
			members, layers = append(members, m.Member), max(layers, m.layers+1)
		}
		if !lacking && !md.Complete(members) {
			continue
		}
		made = true
		a := md.Assemble(members)
		s.arrays.made[uuid] = a.Name
		for _, n := range a.Notes {
			s.note("array "+a.Name, "%s", n)
		}
		of := Volume{Array: a.Name, ArrayUUID: a.UUID, stem: stem(a.Name, "md")}
		if a.Device == nil {
			of.Type, of.Reason = "unknown", "an array ("+a.Level+") that cannot be read: "+a.Reason
			s.add(of, layers)
			continue
		}
		if err := s.look(ctx, place{of: of, device: a.Device, layers: layers}); err != nil {
			return made, err
		}
	}
	return made, nil
}
