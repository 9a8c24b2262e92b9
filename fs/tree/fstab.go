package tree

import (
	"strconv"
	"strings"
)

// maxFstab is how much of /etc/fstab is read: 1 MiB, far above any real one.
const maxFstab = 1 << 20

// maxMounts bounds how many mounts a view can have.
const maxMounts = 1024

// fstabEntry is one line of fstab(5) that mounts a block device.
type fstabEntry struct {
	spec    string // "UUID=…", "/dev/vda1"
	point   string // "/", "/boot"
	kind    string // "ext4", "auto"
	options string
}

// parseFstab gives the entries of an /etc/fstab that a disk could hold, and its
// bind mounts: no swap, no network or memory filesystem. Lines it does not
// understand are left out, as mount(8) does. At most maxMounts are given.
func parseFstab(text string) []fstabEntry {
	var list []fstabEntry
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") || len(list) == maxMounts {
			continue
		}
		e := fstabEntry{spec: unescapeFstab(f[0]), point: unescapeFstab(f[1]), kind: f[2]}
		if len(f) > 3 {
			e.options = f[3]
		}
		if strings.HasPrefix(e.point, "/") && e.kind != "swap" && (isDeviceSpec(e.spec) || e.isBind() && strings.HasPrefix(e.spec, "/")) {
			list = append(list, e)
		}
	}
	return list
}

// parseSwap gives what an /etc/fstab names as swap space: devices, as in
// fstabEntry, and files.
func parseSwap(text string) []string {
	var list []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) >= 3 && !strings.HasPrefix(f[0], "#") && f[2] == "swap" && len(list) < maxMounts {
			list = append(list, unescapeFstab(f[0]))
		}
	}
	return list
}

// isBind says whether the entry mounts a directory that is seen elsewhere.
func (e fstabEntry) isBind() bool { return e.has("bind") || e.has("rbind") }

func (e fstabEntry) has(option string) bool {
	for o := range strings.SplitSeq(e.options, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// value gives what an option is set to. The last one counts.
func (e fstabEntry) value(option string) (value string, ok bool) {
	for o := range strings.SplitSeq(e.options, ",") {
		if v, found := strings.CutPrefix(o, option+"="); found {
			value, ok = unescapeFstab(v), true
		}
	}
	return value, ok
}

func isDeviceSpec(spec string) bool {
	if strings.HasPrefix(spec, "/dev/") {
		return true
	}
	tag, _, ok := strings.Cut(spec, "=")
	return ok && (tag == "UUID" || tag == "LABEL" || tag == "PARTUUID" || tag == "PARTLABEL" || tag == "ID")
}

// unescapeFstab undoes fstab(5)'s octal escapes, "\040" for a space.
func unescapeFstab(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// matchSpec says whether an fstab spec names a volume. It follows the names
// that udev gives; a name without a meaning in the image ("/dev/dm-3") never
// matches.
func matchSpec(spec string, v Volume) bool {
	if tag, value, ok := strings.Cut(spec, "="); ok && !strings.HasPrefix(spec, "/") {
		return matchTag(strings.ToLower(tag), strings.Trim(value, `"'`), v)
	}
	name := strings.TrimPrefix(spec, "/dev/")
	if by, value, ok := strings.Cut(strings.TrimPrefix(name, "disk/by-"), "/"); ok && strings.HasPrefix(name, "disk/by-") {
		return matchTag(by, unescapeUdev(value), v)
	}
	if mapped, ok := strings.CutPrefix(name, "mapper/"); ok {
		return isMapped(v, mapped)
	}
	if array, ok := strings.CutPrefix(name, "md/"); ok {
		return matchArray(array, v) || matchArray("md"+array, v)
	}
	if group, logical, ok := strings.Cut(name, "/"); ok {
		return v.Logical != "" && v.Partition == 0 && v.Group == group && v.Logical == logical
	}
	disk, partition := splitDevice(name)
	return v.Disk != "" && disk == v.Disk && partition == v.Partition || matchArray(name, v)
}

func matchTag(tag, value string, v Volume) bool {
	switch {
	case value == "":
		return false
	case tag == "uuid":
		return strings.EqualFold(value, v.UUID)
	case tag == "partuuid":
		return strings.EqualFold(value, v.PartUUID)
	case tag == "label":
		return value == v.Label
	case tag == "partlabel":
		return value == v.PartLabel
	case tag == "id":
		return matchID(value, v)
	}
	return false
}

// matchID says whether a name below /dev/disk/by-id is of a logical volume or an
// array. Those of disks depend on how QEMU attached them.
func matchID(id string, v Volume) bool {
	plain := strings.NewReplacer("-", "", ":", "")
	switch kind, value := cutKind(id); kind {
	case "dm-name":
		return isMapped(v, value)
	case "dm-uuid-LVM":
		return v.LogicalUUID != "" && v.Partition == 0 && value == plain.Replace(v.GroupUUID+v.LogicalUUID)
	case "md-uuid":
		value, partition := cutPartition(value)
		return v.ArrayUUID != "" && partition == v.Partition && plain.Replace(value) == plain.Replace(v.ArrayUUID)
	case "md-name":
		value, partition := cutPartition(value)
		if _, name, ok := strings.Cut(value, ":"); ok {
			value = name
		}
		return partition == v.Partition && (matchArray(value, Volume{Array: v.Array}) || matchArray("md"+value, Volume{Array: v.Array}))
	}
	return false
}

func cutKind(id string) (kind, value string) {
	for _, kind := range []string{"dm-name", "dm-uuid-LVM", "md-uuid", "md-name"} {
		if value, ok := strings.CutPrefix(id, kind+"-"); ok {
			return kind, value
		}
	}
	return "", ""
}

// cutPartition cuts udev's "-part2" off.
func cutPartition(id string) (device string, number int) {
	if i := strings.LastIndex(id, "-part"); i >= 0 {
		if n, err := strconv.Atoi(id[i+len("-part"):]); err == nil && n > 0 {
			return id[:i], n
		}
	}
	return id, 0
}

// matchArray says whether a name below /dev is an array or a partition of one.
func matchArray(name string, v Volume) bool {
	if v.Array == "" {
		return false
	}
	if disk, partition := splitDevice(name); disk == v.Array && partition == v.Partition {
		return true
	}
	return v.Partition == 0 && name == v.Array
}

// isMapped says whether a volume is the logical volume of a name below
// /dev/mapper. The name joins group and volume by a dash; those inside either
// are doubled.
func isMapped(v Volume, name string) bool {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return v.Logical != "" && v.Partition == 0 && name == double(v.Group)+"-"+double(v.Logical)
}

// unescapeUdev undoes udev's "\x20".
func unescapeUdev(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// splitDevice splits a kernel device name into disk and partition number:
// "vda2" → "vda", 2; "nvme0n1p2" → "nvme0n1", 2; "vdb" → "vdb", 0.
func splitDevice(name string) (disk string, partition int) {
	digits := len(name)
	for digits > 0 && name[digits-1] >= '0' && name[digits-1] <= '9' {
		digits--
	}
	disk, number := name[:digits], name[digits:]
	if strings.HasPrefix(name, "nvme") || strings.HasPrefix(name, "mmcblk") || strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "md") {
		if disk = strings.TrimSuffix(disk, "p"); len(disk) == digits || disk == "" || disk[len(disk)-1] < '0' || disk[len(disk)-1] > '9' {
			return name, 0
		}
	}
	partition, err := strconv.Atoi(number)
	if err != nil {
		return name, 0
	}
	return disk, partition
}
