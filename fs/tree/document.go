package tree

import (
	"context"
	"path"
	"strings"

	"cairn/guest/object"
)

// Document gives what the inside agent said of the guest, nil when it said
// nothing. The error wraps restorepoint.ErrMetadata.
func (t *Tree) Document() (*object.Document, error) { return t.document() }

// fromDocument matches the mounts of an inside agent's document with volumes.
func (s *stitcher) fromDocument(ctx context.Context, listed []object.Mount) ([]mount, error) {
	if len(listed) > maxMounts {
		s.problem("/", "the inside agent listed %d mounts; only the first %d are shown", len(listed), maxMounts)
		listed = listed[:maxMounts]
	}
	var mounts []mount
	var windows []*object.Mount
	for i := range listed {
		m := &listed[i]
		if !strings.HasPrefix(m.Mountpoint, "/") {
			if _, ok := drivePath(m.Mountpoint); ok {
				windows = append(windows, m)
			} else {
				s.problem(m.Mountpoint, "%s was mounted at a place that is no path; see volumes/", m.Source)
			}
			continue
		}
		if index := s.volumeOfMount(m); index >= 0 {
			mounts = append(mounts, mount{point: path.Clean(m.Mountpoint), volume: index, dir: path.Join("/", m.Bind)})
		} else {
			s.problem(m.Mountpoint, "no volume found for %s (%s), which was mounted here%s", m.Source, m.Type, s.lies(m.Device))
		}
	}
	if len(mounts) > 0 || len(windows) == 0 {
		for _, m := range windows {
			s.problem(m.Mountpoint, "a drive letter in a guest that has a root directory; see volumes/")
		}
		return shallowFirst(mounts), nil
	}
	return s.drivesFrom(ctx, len(windows), func(i int, devices mountedDevices) (string, string, int32) {
		m := windows[i]
		index := devices.volumeNamed(m.Source, s.list)
		if index < 0 {
			index = s.volumeOfMount(m)
		}
		return m.Mountpoint, m.Source, index
	})
}

// volumeOfMount finds the volume that a mount of a document lies on, or -1: by
// its device, else by its UUID, which a copied disk may have as well. Only when
// neither is known its source's name counts: the kernel numbers disks as it
// finds them.
func (s *stitcher) volumeOfMount(m *object.Mount) int32 {
	sameUUID := func(v Volume) bool { return strings.EqualFold(m.UUID, v.UUID) }
	for i, v := range s.list {
		if s.isDevice(v, m.Device) && (m.UUID == "" || v.UUID == "" || sameUUID(v)) {
			return int32(i)
		}
	}
	if isLocked(m.Device) {
		return -1 // one of the same UUID is what it was copied from
	}
	for i, v := range s.list {
		if m.UUID != "" && sameUUID(v) || m.UUID == "" && m.Device == nil && matchSpec(m.Source, v) {
			return int32(i)
		}
	}
	return -1
}

// isLocked says whether a device lies on one that the guest has encrypted.
func isLocked(d *object.Device) bool {
	if d == nil || d.Kind == "crypt" {
		return d != nil
	}
	for i := range d.Below {
		if isLocked(&d.Below[i]) {
			return true
		}
	}
	return false
}

// isDevice says whether a volume is a device of the guest.
func (s *stitcher) isDevice(v Volume, d *object.Device) bool {
	switch {
	case d == nil:
	case d.Kind == "disk":
		return v.Partition == 0 && s.isDisk(v, d)
	case d.Kind == "partition" && len(d.Below) == 1 && d.Below[0].Kind == "raid":
		return matchArray(d.Name, v)
	case d.Kind == "partition" && len(d.Below) == 1:
		number := d.Partition
		if number == 0 {
			_, number = splitDevice(d.Name)
		}
		return v.Partition == number && number != 0 && s.isDisk(v, &d.Below[0])
	case d.Kind == "lvm":
		return d.Title != "" && isMapped(v, d.Title)
	case d.Kind == "raid":
		return matchArray(d.Name, v)
	}
	return false
}

// virtioSerial is as much of a serial as virtio's block device tells the guest,
// bytes (Virtual I/O Device 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID).
const virtioSerial = 20

// isDisk says whether a volume lies on a disk of the guest: the one with the
// same serial, or, when one of them has none, the same name.
func (s *stitcher) isDisk(v Volume, d *object.Device) bool {
	if v.Disk == "" {
		return false
	}
	serial := s.serial(v.Disk)
	if serial == "" || d.Serial == "" {
		return v.Disk == d.Name
	}
	return serial == d.Serial || len(d.Serial) >= virtioSerial && strings.HasPrefix(serial, d.Serial)
}

// lies says on what a device lies that cannot be opened, if that is known.
func (s *stitcher) lies(d *object.Device) string {
	if d == nil {
		return ""
	}
	for _, v := range s.list {
		if v.Reason != "" && s.isDevice(v, d) {
			return "; it lies on " + v.Name + ": " + v.Reason
		}
	}
	if d.Kind == "loop" {
		return "; it lies in a file of the guest"
	}
	for i := range d.Below {
		if text := s.lies(&d.Below[i]); text != "" {
			return text
		}
	}
	return ""
}
