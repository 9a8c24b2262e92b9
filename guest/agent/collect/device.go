//go:build linux

package collect

import (
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cairn/guest/object"
)

// maxDevices is how many devices one mount may lie on, all levels together.
const maxDevices = 256

// maxStack is how many of them may lie on top of each other: a document has no
// room for more.
const maxStack = 12

// device describes the block device of a directory of sysfs, and what it lies
// on. left bounds how many there are.
func (k kernel) device(dir string, left *int) *object.Device { return k.stacked(dir, 1, left) }

func (k kernel) stacked(dir string, level int, left *int) *object.Device {
	if *left--; *left < 0 || level > maxStack {
		return nil
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	d := &object.Device{Name: object.Text(path.Base(dir)), Kind: "disk", Size: sysNumber(dir, "size") * 512}
	has := func(name string) bool {
		_, err := os.Stat(path.Join(dir, name))
		return err == nil
	}
	var below []string
	switch {
	case has("partition"):
		d.Kind, d.Partition = "partition", int(sysNumber(dir, "partition"))
		below = []string{path.Dir(dir)}
	case has("dm"):
		d.Title = sysLine(dir, "dm/name")
		uuid := sysLine(dir, "dm/uuid")
		switch {
		case strings.HasPrefix(uuid, "LVM-"):
			d.Kind = "lvm"
		case strings.HasPrefix(uuid, "CRYPT-"):
			d.Kind = "crypt"
		case strings.HasPrefix(uuid, "part"): // kpartx: "part1-mpath-…"
			d.Kind = "partition"
			n, _, _ := strings.Cut(strings.TrimPrefix(uuid, "part"), "-")
			d.Partition, _ = strconv.Atoi(n)
			d.Partition = max(d.Partition, 0)
		default:
			d.Kind = "mapper"
		}
	case has("md"):
		d.Kind, d.Title = "raid", sysLine(dir, "md/level")
	case has("loop"):
		d.Kind, d.Title = "loop", sysLine(dir, "loop/backing_file")
	case strings.HasPrefix(path.Base(dir), "loop"):
		d.Kind = "loop"
	default:
		d.Serial, d.PCI = k.serial(dir), pci(dir)
	}
	if slaves, err := os.ReadDir(path.Join(dir, "slaves")); err == nil {
		for _, s := range slaves {
			below = append(below, path.Join(dir, "slaves", s.Name()))
		}
	}
	for _, b := range below {
		if lower := k.stacked(b, level+1, left); lower != nil {
			d.Below = append(d.Below, *lower)
		}
	}
	return d
}

// serial gives a disk's serial number as its driver tells it: what QEMU was
// given for the disk.
func (k kernel) serial(dir string) string {
	if s := sysLine(dir, "serial"); s != "" { // virtio-blk
		return s
	}
	if s := sysLine(dir, "device/serial"); s != "" { // NVMe, MMC
		return s
	}
	if b, err := os.ReadFile(path.Join(dir, "device/vpd_pg80")); err == nil { // SCSI, ATA
		if s := vpdSerial(b); s != "" {
			return s
		}
	}
	properties := k.properties(sysLine(dir, "dev"))
	for _, key := range []string{"ID_SCSI_SERIAL", "ID_SERIAL_SHORT"} {
		if s := properties[key]; s != "" {
			return object.Text(s)
		}
	}
	return ""
}

// vpdSerial reads the page of vital product data with the unit's serial number
// (SPC-4, 7.8.15): type, 0x80, length in two bytes, the number in ASCII.
func vpdSerial(b []byte) string {
	if len(b) < 4 || b[1] != 0x80 {
		return ""
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	return object.Text(strings.Trim(string(b[4:min(4+n, len(b))]), " \x00"))
}

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]$`)

// pci gives the address of the controller that a disk's path in sysfs leads
// through last, "" if there is none.
func pci(dir string) string {
	parts := strings.Split(dir, "/")
	slices.Reverse(parts)
	for _, p := range parts {
		if pciAddress.MatchString(p) {
			return p
		}
	}
	return ""
}

// properties are what udev knows of a block device, by its number.
func (k kernel) properties(number string) map[string]string {
	b, err := os.ReadFile(path.Join(k.udev, "b"+number))
	if number == "" || err != nil || len(b) > 1<<20 {
		return nil
	}
	found := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if property, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "E:"); ok {
			key, value, _ := strings.Cut(property, "=")
			found[key] = value
		}
	}
	return found
}

// links are the names below /dev/disk, by the device that they lead to.
func (k kernel) links() map[string][2]string {
	found := map[string][2]string{}
	for i, dir := range []string{"disk/by-uuid", "disk/by-label"} {
		entries, err := os.ReadDir(path.Join(k.dev, dir))
		if err != nil {
			continue
		}
		for _, e := range entries[:min(len(entries), 10_000)] {
			target, err := os.Readlink(path.Join(k.dev, dir, e.Name()))
			if err != nil {
				continue
			}
			names := found[path.Base(target)]
			names[i] = unhex(e.Name())
			found[path.Base(target)] = names
		}
	}
	return found
}

// label gives the UUID and label of the filesystem on a device: udev's word, or
// else that of the superblock.
func (k kernel) label(number string, m mounted, names map[string][2]string) [2]string {
	if p := k.properties(number); p["ID_FS_UUID"] != "" {
		return [2]string{unhex(p["ID_FS_UUID"]), unhex(p["ID_FS_LABEL_ENC"])}
	}
	dir, err := filepath.EvalSymlinks(path.Join(k.sys, "dev/block", number))
	if err != nil {
		return [2]string{}
	}
	name := path.Base(dir)
	if found := names[name]; found[0] != "" {
		return found
	}
	f, err := os.Open(path.Join(k.dev, name))
	if err != nil {
		return [2]string{}
	}
	defer f.Close()
	uuid, label := superblock(f, m.kind)
	return [2]string{uuid, label}
}

// unhex decodes \x20 and the like, as udev writes what would not be one word.
func unhex(s string) string {
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

// sysLine gives the first line of a file of sysfs, which are short.
func sysLine(dir, name string) string {
	b, err := os.ReadFile(path.Join(dir, name))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return object.Text(strings.Trim(line, " \x00"))
}

func sysNumber(dir, name string) int64 {
	n, err := strconv.ParseInt(sysLine(dir, name), 10, 64)
	if err != nil || n < 0 || n > 1<<52 {
		return 0
	}
	return n
}
