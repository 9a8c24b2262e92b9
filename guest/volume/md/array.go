package md

import (
	"fmt"
	"strings"

	"cairn/guest/filesystem"
	"cairn/guest/volume/device"
)

// Member is a device with a superblock.
type Member struct {
	Device device.Device
	Super  *Superblock
}

// Array is an array made of those of its members that are there.
type Array struct {
	UUID  string
	Name  string // as below /dev: "md0", "data"
	Level string // "raid1", "linear"
	// Device is the array's bytes; nil when Reason says why it cannot be read.
	Device device.Device
	Reason string
	// Notes says which members are missing or are not used, and why.
	Notes []string
}

// Complete says whether all members that the newest superblock names are
// there. Members are of one array.
func Complete(members []Member) bool {
	newest := newest(members)
	have := map[int]bool{}
	for _, m := range members {
		have[m.Super.Number] = true
	}
	for number, role := range newest.Roles {
		if role >= 0 && !have[number] {
			return false
		}
	}
	return true
}

func newest(members []Member) *Superblock {
	best := members[0].Super
	for _, m := range members {
		if m.Super.Events > best.Events {
			best = m.Super
		}
	}
	return best
}

// Assemble makes an array of its members, of which there is at least one.
func Assemble(members []Member) *Array {
	s := newest(members)
	a := &Array{UUID: s.UUID, Name: name(s), Level: levelName(s.Level)}
	disks, notes := current(members, s)
	a.Notes = notes
	if s.Refused != "" {
		a.Reason = s.Refused
		return a
	}
	d, err := build(s, disks)
	if err == nil && d.Weight() > device.MaxWeight {
		err = fmt.Errorf("it is made of too many copies of copies: %w", filesystem.ErrUnsupported)
	}
	if err != nil {
		a.Reason = err.Error()
		return a
	}
	a.Device = d
	return a
}

// name gives the array's name below /dev, as mdadm makes it.
func name(s *Superblock) string {
	if s.Minor >= 0 {
		return fmt.Sprintf("md%d", s.Minor)
	}
	name := s.Name
	if _, after, ok := strings.Cut(name, ":"); ok && after != "" {
		name = after
	}
	if name == "" {
		return "md"
	}
	if strings.Trim(name, "0123456789") == "" {
		return "md" + name
	}
	return name
}

func levelName(level int) string {
	if level == -1 {
		return "linear"
	}
	return fmt.Sprintf("raid%d", level)
}

// disk is the data of one member.
type disk struct {
	data device.Device
	size int64 // bytes of data that the member has
}

// data gives the data of the members that are there.
func data(disks []*disk) (list []device.Device) {
	for _, d := range disks {
		if d != nil {
			list = append(list, d.data)
		}
	}
	return list
}

// current gives the members by their role, nil where one is missing: those
// that the newest superblock names, that have all data, and that saw all writes.
// The superblocks are not written at the same instant: one event less is as
// good, as Linux has it.
func current(members []Member, s *Superblock) (disks []*disk, notes []string) {
	disks = make([]*disk, s.Disks)
	note := func(format string, args ...any) {
		const maxNotes = 20
		if len(notes) < maxNotes {
			notes = append(notes, fmt.Sprintf(format, args...))
		}
	}
	for _, m := range members {
		role := -1
		if m.Super.Number >= 0 && m.Super.Number < len(s.Roles) {
			role = s.Roles[m.Super.Number]
		}
		switch {
		case m.Super.Events+1 < s.Events:
			note("a member (number %d) is out of date and is not read", m.Super.Number)
		case role < 0 || role >= s.Disks:
			note("a member (number %d) is a spare or failed and is not read", m.Super.Number)
		case m.Super.Unfit != "":
			note("member %d is not read: %s", role, m.Super.Unfit)
		case m.Super.Level != s.Level || m.Super.Disks != s.Disks || m.Super.Chunk != s.Chunk || m.Super.Used != s.Used:
			note("member %d does not fit the others and is not read", role)
		case m.Super.Offset+m.Super.Data > m.Device.Size():
			note("member %d is shorter than it says and is not read", role)
		case disks[role] != nil:
			note("member %d is there twice; one is read", role)
		default:
			disks[role] = &disk{device.Section(m.Device, m.Super.Offset, m.Super.Data), m.Super.Data}
		}
	}
	for role, d := range disks {
		if d == nil {
			note("member %d of %d is missing", role, s.Disks)
		}
	}
	return disks, notes
}

// build makes the device of an array.
func build(s *Superblock, disks []*disk) (device.Device, error) {
	missing := 0
	for _, d := range disks {
		if d == nil {
			missing++
		}
	}
	lost := func(most int) error {
		if missing > most {
			return fmt.Errorf("%d of its %d members are missing or out of date", missing, s.Disks)
		}
		return nil
	}
	switch s.Level {
	case -1:
		if err := lost(0); err != nil {
			return nil, err
		}
		return linear(s, disks), nil
	case 0:
		if err := lost(0); err != nil {
			return nil, err
		}
		return stripes(s, disks)
	case 1:
		if err := lost(s.Disks - 1); err != nil {
			return nil, err
		}
		var copies []device.Device
		for _, d := range disks {
			if d != nil {
				copies = append(copies, device.Section(d.data, 0, s.Used))
			}
		}
		return device.Mirror(copies...), nil
	case 4, 5, 6:
		if err := lost(1); err != nil {
			return nil, err
		}
		if missing > 0 && !s.Clean {
			return nil, fmt.Errorf("a member is missing and the parity of the others was being written")
		}
		return parity(s, disks)
	case 10:
		return far(s, disks)
	}
	return nil, fmt.Errorf("%w: RAID level %d", filesystem.ErrUnsupported, s.Level)
}

// linear puts members one behind the other, each in whole chunks.
func linear(s *Superblock, disks []*disk) device.Device {
	var parts []device.Device
	for _, d := range disks {
		size := d.size
		if s.Chunk > 0 {
			size -= size % s.Chunk
		}
		parts = append(parts, device.Section(d.data, 0, size))
	}
	return device.Concat(parts...)
}
