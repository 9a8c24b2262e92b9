package agent

import (
	"fmt"
	"slices"
	"time"

	"cairn/guest/object"
)

// describe makes the document and gives its bytes. Everything in it was checked
// before, piece by piece, but for its size as a whole.
func (r *run) describe(z *freezing, taken time.Time) ([]byte, error) {
	d := &object.Document{
		Version: object.Version, Source: object.SourceAgent, Point: r.point, Agent: object.Text(r.agent.opt.Version),
		Taken: taken, Hostname: object.Text(r.machine.Hostname), OS: r.machine.OS, Mounts: r.mounts(z),
	}
	for _, it := range r.items {
		d.Objects = append(d.Objects, it.found.Object)
	}
	for _, s := range z.all {
		if s.reason != "" && !s.still && s.onDisk() {
			r.warnings = append(r.warnings, object.Text(fmt.Sprintf("%s was not frozen: %s", s.name(), s.reason)))
		}
	}
	d.Warnings = r.warnings[:min(len(r.warnings), maxWarnings)]
	b, err := object.Encode(d)
	if err == nil {
		return b, nil
	}
	// Too large, most likely. A point without its objects' details is better
	// than none.
	for i := range d.Objects {
		d.Objects[i].Details = nil
	}
	d.Warnings = append(slices.Clip(d.Warnings), object.Text(fmt.Sprintf("the objects' details are left out: %v", err)))
	b, err = object.Encode(d)
	if err != nil {
		return nil, fmt.Errorf("the metadata cannot be written: %w", err)
	}
	return b, nil
}

// mounts describes the mounts as they were frozen.
func (r *run) mounts(z *freezing) []object.Mount {
	type key struct{ point, source, kind string }
	known := map[key]object.Mount{}
	for _, m := range r.machine.Mounts {
		known[key{m.Mountpoint, m.Source, m.Type}] = m
	}
	var all []object.Mount
	for _, s := range z.all {
		stands := z.stands(s) && !s.still
		for _, m := range s.mounts {
			d := m.describe()
			if more, ok := known[key{d.Mountpoint, d.Source, d.Type}]; ok {
				d.UUID, d.Label, d.Device = more.UUID, more.Label, more.Device
				d.UsedBytes, d.TotalBytes = more.UsedBytes, more.TotalBytes
			}
			d.Frozen, d.Reason = stands, object.Text(s.reason)
			all = append(all, d)
		}
	}
	// What lies on disks counts most if there are too many.
	if len(all) > object.MaxMounts {
		slices.SortStableFunc(all, func(a, b object.Mount) int { return weight(b) - weight(a) })
		r.warnings = append(r.warnings, fmt.Sprintf("%d of %d mounts are not described", len(all)-object.MaxMounts, len(all)))
		all = all[:object.MaxMounts]
	}
	return all
}

func weight(m object.Mount) int {
	switch {
	case m.Frozen:
		return 2
	case m.Device != nil:
		return 1
	}
	return 0
}
