package tree

import (
	"context"
	"maps"
	"path"
	"strings"

	"cairn/index/restorepoint"
)

// fromAgent matches the mounts that the stock agent listed with volumes. It
// knows the disks and partitions below a mount, and neither logical volumes nor
// subvolumes nor Windows' partitions: for those the image is asked.
func (s *stitcher) fromAgent(ctx context.Context, listed []restorepoint.Mount) ([]mount, error) {
	if len(listed) > maxMounts {
		s.problem("/", "the inside agent listed %d mounts; only the first %d are shown", len(listed), maxMounts)
		listed = listed[:maxMounts]
	}
	var unix, windows []restorepoint.Mount
	for _, m := range listed {
		if strings.HasPrefix(m.Mountpoint, "/") {
			unix = append(unix, m)
		} else if _, ok := drivePath(m.Mountpoint); ok {
			windows = append(windows, m)
		}
	}
	if len(unix) == 0 && len(windows) > 0 {
		return s.drivesFrom(ctx, len(windows), func(i int, devices mountedDevices) (string, string, int32) {
			m := windows[i]
			index := devices.volumeNamed(m.Name, s.list)
			if index < 0 {
				index = s.volumeOf(m)
			}
			return m.Mountpoint, m.Name, index
		})
	}
	image := s.imageMounts(ctx)
	var mounts []mount
	for _, m := range unix {
		point := path.Clean(m.Mountpoint)
		one := mount{point: point, volume: s.volumeOf(m)}
		told, err := image(point)
		if err != nil {
			return nil, err
		}
		if told == nil && (one.volume < 0 || !s.isMountable(one.volume)) {
			one.volume = s.onlyOne(m)
		}
		switch {
		case one.volume < 0 && told == nil, one.volume >= 0 && !s.isMountable(one.volume) && told == nil:
			s.problem(m.Mountpoint, "no volume found for %s (%s), which was mounted here", m.Name, m.Type)
			continue
		case told != nil && (one.volume < 0 || one.volume == told.volume || !s.isMountable(one.volume)):
			one = *told
		default:
			if one.dir, err = s.home(ctx, one.volume); err != nil {
				return nil, err
			}
		}
		mounts = append(mounts, one)
	}
	return shallowFirst(mounts), nil
}

// onlyOne gives the one volume of a mount's type that lies on exactly its
// disks; -1 when there is none, or more than one. A mapped device can only be a
// logical volume: what else is mapped is encrypted and looks like nothing.
func (s *stitcher) onlyOne(m restorepoint.Mount) int32 {
	disks := map[string]bool{}
	for _, below := range m.Disks {
		kernel, _ := splitDevice(strings.TrimPrefix(below.Dev, "/dev/"))
		name := kernel
		for _, d := range s.tree.manifest.Disks {
			if d.Serial != "" && d.Serial == below.Serial {
				name = d.Name
			}
		}
		disks[name] = true
	}
	found := int32(-1)
	for i, v := range s.list {
		on := map[string]bool{}
		for _, e := range v.Extents {
			on[e.Disk] = true
		}
		if v.Type != m.Type || !s.isMountable(int32(i)) || strings.HasPrefix(m.Name, "dm-") && v.Logical == "" || len(on) == 0 || !maps.Equal(on, disks) {
			continue
		}
		if found >= 0 {
			return -1
		}
		found = int32(i)
	}
	return found
}

// isMountable says whether a volume can be what was mounted, and not only what
// that lies on.
func (s *stitcher) isMountable(index int32) bool {
	return s.list[index].Type != "lvm2-pv" && s.list[index].Type != "md-member"
}

// imageMounts gives a function that says what the image's fstab mounts at a
// point; nil when it does not say. The image is looked at only when asked, and
// only when a volume needs it.
func (s *stitcher) imageMounts(ctx context.Context) func(point string) (*mount, error) {
	var known map[string]mount
	return func(point string) (*mount, error) {
		if known == nil {
			known = map[string]mount{}
			if !s.needsFstab() {
				return nil, nil
			}
			problems := s.problems
			root, err := s.findRoot(ctx)
			if err == nil && root.volume != Drives {
				var mounts []mount
				mounts, err = s.fromFstab(ctx, root)
				for _, m := range mounts {
					known[m.point] = m
				}
			}
			s.problems = problems
			if err != nil && !Lasting(err) {
				return nil, err
			}
		}
		if m, ok := known[point]; ok {
			return &m, nil
		}
		return nil, nil
	}
}

// needsFstab says whether there are volumes that the stock agent cannot tell
// apart.
func (s *stitcher) needsFstab() bool {
	for _, v := range s.list {
		if v.Logical != "" || v.Array != "" || v.Type == "btrfs" {
			return true
		}
	}
	return false
}

// volumeOf finds the volume that an agent's mount lies on, or -1: by the
// serial of its disk, else by the kernel's name of it, with the partition's
// number from the device name.
func (s *stitcher) volumeOf(m restorepoint.Mount) int32 {
	for i, v := range s.list {
		if v.Array != "" && matchSpec("/dev/"+m.Name, v) {
			return int32(i)
		}
	}
	for _, below := range m.Disks {
		kernel, partition := splitDevice(strings.TrimPrefix(below.Dev, "/dev/"))
		for i, v := range s.list {
			if v.Disk == "" || v.Partition != partition {
				continue
			}
			if serial := s.serial(v.Disk); serial != "" && below.Serial != "" {
				if serial == below.Serial {
					return int32(i)
				}
			} else if v.Disk == kernel {
				return int32(i)
			}
		}
	}
	if len(m.Disks) > 0 {
		return -1
	}
	for i, v := range s.list {
		if matchSpec("/dev/"+m.Name, v) {
			return int32(i)
		}
	}
	return -1
}

func (s *stitcher) serial(disk string) string {
	for _, d := range s.tree.manifest.Disks {
		if d.Name == disk {
			return d.Serial
		}
	}
	return ""
}

// drivesFrom makes the drives of a Windows guest from n mounts that an agent
// listed. of gives the mount point of one, what was mounted, and the volume, or
// -1: then the registry's word for the letter counts.
func (s *stitcher) drivesFrom(ctx context.Context, n int, of func(i int, devices mountedDevices) (point, name string, index int32)) ([]mount, error) {
	system, devices, err := s.windows(ctx)
	if err != nil {
		return nil, err
	}
	mounts := []mount{{point: "/", volume: Drives}}
	for i := range n {
		point, name, index := of(i, devices)
		where, _ := drivePath(point)
		if index < 0 && isDrive(where) {
			if known, ok := devices[`\DosDevices\`+where[1:]+":"]; ok {
				index = known
			} else if where == "/C" {
				index = system
			}
		}
		if index < 0 {
			s.problem(point, "no volume found for %s, which was mounted here", name)
			continue
		}
		mounts = append(mounts, mount{point: where, volume: index})
	}
	return shallowFirst(mounts), nil
}
