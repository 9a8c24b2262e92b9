//go:build linux

package collect

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem/filesystemtest"
	"cairn/guest/object"
)

// fakeKernel makes procfs, sysfs, /dev and udev's records out of files; a value
// that begins with "→" is a symbolic link.
func fakeKernel(t testing.TB, files map[string]string) kernel {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "→"); ok {
			err = os.Symlink(target, at)
		} else {
			err = os.WriteFile(at, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return kernel{proc: dir + "/proc", sys: dir + "/sys", dev: dir + "/dev", udev: dir + "/udev"}
}

const (
	virtio = "sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/"
	scsi   = "sys/devices/pci0000:00/0000:00:05.0/0000:01:01.0/virtio2/host0/target0:0:0/0:0:0:0/block/sda/"
	nvme   = "sys/devices/pci0000:00/0000:00:06.0/nvme/nvme0/nvme0n1/"
	none   = "sys/devices/virtual/block/"
)

// stackedGuest is a guest with a root filesystem on LVM on a crypt on an array of two
// disks, a boot partition, and what lies on no disk.
func stackedGuest() map[string]string {
	return map[string]string{
		"proc/self/mountinfo": "22 1 0:21 / /proc rw - proc proc rw\n" +
			"27 1 252:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg0-root rw,errors=remount-ro\n" +
			"28 27 254:1 / /boot ro,relatime - vfat /dev/vda1 rw,fmask=0022\n" +
			"29 27 252:1 /srv/data /mnt/my\\040data rw - ext4 /dev/mapper/vg0-root rw,errors=remount-ro\n" +
			"30 27 0:40 / /home rw - nfs4 nas:/home rw\n31 27 0:41 / /overlay rw - overlay overlay rw\n" +
			"32 27 7:0 / /snap/x ro - squashfs /dev/loop0 ro\nbroken line\n",
		"sys/dev/block/252:1": "→../../devices/virtual/block/dm-1", "sys/dev/block/252:0": "→../../devices/virtual/block/dm-0",
		"sys/dev/block/254:1": "→../../devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda1", "sys/dev/block/7:0": "→../../devices/virtual/block/loop0",
		"sys/dev/block/0:40": "→../../devices/virtual/block/dm-0", // no device has such a number
		virtio + "size":      "2097152\n", virtio + "serial": "disk-one\n", virtio + "dev": "254:0\n", virtio + "vda1/size": "204800\n", virtio + "vda1/partition": "1\n", virtio + "vda1/dev": "254:1\n",
		virtio + "vda2/size": "1843200\n", virtio + "vda2/partition": "2\n",
		scsi + "size": "2097152\n", scsi + "device": "→../../../0:0:0:0", filepath.Join(scsi, "../../vpd_pg80"): "\x00\x80\x00\x08disk-two",
		nvme + "size": "4194304\n", nvme + "device": "→../../nvme0", "sys/devices/pci0000:00/0000:00:06.0/nvme/nvme0/serial": "disk-three          \n",
		none + "md0/size": "1843200\n", none + "md0/md/level": "raid1\n", none + "md0/slaves/vda2": "→../../../../pci0000:00/0000:00:04.0/virtio1/block/vda/vda2",
		none + "md0/slaves/sda":   "→../../../../pci0000:00/0000:00:05.0/0000:01:01.0/virtio2/host0/target0:0:0/0:0:0:0/block/sda",
		none + "dm-0/dm/name":     "crypt0\n",
		none + "dm-0/dm/uuid":     "CRYPT-LUKS2-aabb-crypt0\n",
		none + "dm-0/size":        "1839104\n",
		none + "dm-0/slaves/md0":  "→../../md0",
		none + "dm-1/dm/name":     "vg0-root\n",
		none + "dm-1/dm/uuid":     "LVM-xyz\n",
		none + "dm-1/size":        "1000000\n",
		none + "dm-1/slaves/dm-0": "→../../dm-0", none + "dm-1/slaves/nvme0n1": "→../../../../pci0000:00/0000:00:06.0/nvme/nvme0/nvme0n1",
		none + "loop0/size": "8\n", none + "loop0/loop/backing_file": "/var/lib/x.snap\n",
		"udev/b252:1": "S:mapper/vg0-root\nE:ID_FS_UUID=1111-2222\nE:ID_FS_LABEL_ENC=my\\x20root\n",
		"udev/b254:0": "E:ID_SERIAL_SHORT=not this\n", "dev/disk/by-uuid/ABCD-0123": "→../../vda1", "dev/disk/by-label/EFI\\x20x": "→../../vda1",
	}
}

func TestMountsAndDevices(t *testing.T) {
	mounts, err := fakeKernel(t, stackedGuest()).mounts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	vda := object.Device{Name: "vda", Kind: "disk", Size: 1 << 30, Serial: "disk-one", PCI: "0000:00:04.0"}
	sda := object.Device{Name: "sda", Kind: "disk", Size: 1 << 30, Serial: "disk-two", PCI: "0000:01:01.0"}
	md := object.Device{Name: "md0", Kind: "raid", Title: "raid1", Size: 943718400, Below: []object.Device{sda, {Name: "vda2", Kind: "partition", Partition: 2, Size: 943718400, Below: []object.Device{vda}}}}
	crypt := object.Device{Name: "dm-0", Kind: "crypt", Title: "crypt0", Size: 941621248, Below: []object.Device{md}}
	lv := &object.Device{Name: "dm-1", Kind: "lvm", Title: "vg0-root", Size: 512000000, Below: []object.Device{crypt, {Name: "nvme0n1", Kind: "disk", Size: 2 << 30, Serial: "disk-three", PCI: "0000:00:06.0"}}}
	want := []object.Mount{
		{Mountpoint: "/", Source: "/dev/mapper/vg0-root", Type: "ext4", Options: "rw,relatime,errors=remount-ro", UUID: "1111-2222", Label: "my root", Device: lv},
		{Mountpoint: "/boot", Source: "/dev/vda1", Type: "vfat", Options: "ro,relatime,fmask=0022", UUID: "ABCD-0123", Label: "EFI x", Device: &object.Device{Name: "vda1", Kind: "partition", Partition: 1, Size: 104857600, Below: []object.Device{vda}}},
		{Mountpoint: "/mnt/my data", Source: "/dev/mapper/vg0-root", Type: "ext4", Options: "rw,errors=remount-ro", UUID: "1111-2222", Label: "my root", Bind: "/srv/data", Device: lv},
		{Mountpoint: "/snap/x", Source: "/dev/loop0", Type: "squashfs", Options: "ro", Device: &object.Device{Name: "loop0", Kind: "loop", Title: "/var/lib/x.snap", Size: 4096}},
	}
	for i := range mounts {
		mounts[i].TotalBytes, mounts[i].UsedBytes = 0, 0 // of this system's mounts of these names
	}
	if !reflect.DeepEqual(mounts, want) {
		got, _ := json.MarshalIndent(mounts, "", " ")
		wanted, _ := json.MarshalIndent(want, "", " ")
		t.Errorf("mounts %s, want %s", got, wanted)
	}
}

// TestDevicesAreBounded: stacks without an end.
func TestDevicesAreBounded(t *testing.T) {
	files := map[string]string{"sys/dev/block/1:1": "→../../devices/virtual/block/a"}
	for _, from := range []string{"a", "b", "c"} {
		for _, to := range []string{"a", "b", "c"} {
			files[none+from+"/slaves/"+to] = "→../../" + to
		}
	}
	k := fakeKernel(t, files)
	left := maxDevices
	d := k.device(k.sys+"/dev/block/1:1", &left)
	if _, err := object.Encode(&object.Document{Version: 1, Mounts: []object.Mount{{Device: d}}}); err != nil {
		t.Error(err)
	}
	if n := count(*d); n > maxDevices {
		t.Errorf("%d devices", n)
	}
}

func count(d object.Device) int {
	n := 1
	for _, b := range d.Below {
		n += count(b)
	}
	return n
}

func TestVPDSerial(t *testing.T) {
	for page, want := range map[string]string{
		"\x00\x80\x00\x04abcd": "abcd", "\x00\x80\x00\x14   QM00001          ": "QM00001", "\x00\x80\xff\xffabc": "abc", "\x00\x83\x00\x01a": "", "\x00\x80": "", "": "", "\x00\x80\x00\x00": "",
	} {
		if got := vpdSerial([]byte(page)); got != want {
			t.Errorf("%q: %q, want %q", page, got, want)
		}
	}
}

// TestRemote: of two mounts on one point the upper one counts.
func TestRemote(t *testing.T) {
	table, err := mountinfo(strings.NewReader("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:40 / /net rw - nfs4 nas:/ rw\n3 1 0:41 / /boot rw - autofs systemd-1 rw\n4 3 8:2 / /boot rw - vfat /dev/sda2 rw\n" +
		"5 1 0:42 / /f\\040use rw - fuse.sshfs a rw\n6 1 0:43 / /proc rw - proc proc rw\n7 1 8:3 / /x rw - ext4 /dev/sdb rw\n8 7 0:44 / /x rw - cifs //a/b rw\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := remote(table)
	slices.Sort(got)
	if want := []string{"/f use", "/net", "/x"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestMountsOfThisMachine compares with what the kernel says another way. With
// CAIRN_PRINT_MOUNTS it prints them, for the test with a guest of QEMU's.
func TestMountsOfThisMachine(t *testing.T) {
	mounts, err := Mounts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	sys, host := System(context.Background())
	d := &object.Document{Version: 1, Source: object.SourceAgent, Mounts: mounts, OS: sys, Hostname: host}
	b, err := object.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("CAIRN_PRINT_MOUNTS") != "" {
		if _, err := os.Stdout.Write(append(append([]byte("document "), b...), '\n')); err != nil {
			t.Fatal(err)
		}
	}
	if len(mounts) == 0 {
		t.Skip("this system is on no block device")
	}
	for _, m := range mounts {
		var st unix.Statfs_t
		if err := unix.Statfs(m.Mountpoint, &st); err != nil {
			t.Fatal(err)
		}
		var dev unix.Stat_t
		if err := unix.Stat("/dev/"+m.Device.Name, &dev); err == nil {
			var on unix.Stat_t
			if err := unix.Stat(m.Mountpoint, &on); err != nil || m.Type != "btrfs" && on.Dev != dev.Rdev {
				t.Errorf("%s lies on another device than %s: %v", m.Mountpoint, m.Device.Name, err)
			}
		}
		if m.TotalBytes != int64(st.Blocks)*st.Frsize || m.UsedBytes <= 0 || m.UsedBytes > m.TotalBytes {
			t.Errorf("%s: %d of %d bytes, statfs says %+v", m.Mountpoint, m.UsedBytes, m.TotalBytes, st)
		}
		if disk := lowest(m.Device); disk.Size < m.TotalBytes {
			t.Errorf("%s: %d bytes on a disk of %d", m.Mountpoint, m.TotalBytes, disk.Size)
		}
	}
	if out, err := exec.Command("uname", "-n", "-r", "-m").Output(); err == nil && strings.TrimSpace(string(out)) != host+" "+sys.KernelRelease+" "+sys.Machine {
		t.Errorf("%q, %+v; uname says %s", host, sys, out)
	}
	if sys.BootTime.IsZero() {
		t.Error("when it was booted is not known")
	}
}

func lowest(d *object.Device) *object.Device {
	for len(d.Below) > 0 {
		d = &d.Below[0]
	}
	return d
}

// TestRealFilesystem mounts one from a loop device, and finds its UUID and label
// in its superblock: there may be no udev here.
func TestRealFilesystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	for kind, mkfs := range map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-U", "11111111-2222-3333-4444-555555555555", "-L", "my label"},
		"xfs":   {"mkfs.xfs", "-q", "-m", "uuid=11111111-2222-3333-4444-555555555555", "-L", "my_label"},
		"btrfs": {"mkfs.btrfs", "-q", "-U", "11111111-2222-3333-4444-555555555555", "-L", "my label"},
		"vfat":  {"mkfs.vfat", "-i", "1234ABCD", "-n", "MY LABEL"},
	} {
		t.Run(kind, func(t *testing.T) {
			tool, err := exec.LookPath(mkfs[0])
			if err != nil {
				t.Skip(err)
			}
			dir := t.TempDir()
			image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
			run := func(args ...string) {
				t.Helper()
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Skipf("%q: %v: %s", args, err, out)
				}
			}
			run("truncate", "-s", "320M", image)
			run(append(append([]string{tool}, mkfs[1:]...), image)...)
			if err := os.Mkdir(at, 0o755); err != nil {
				t.Fatal(err)
			}
			uuid, label := "11111111-2222-3333-4444-555555555555", mkfs[len(mkfs)-1]
			if kind == "vfat" {
				uuid = "1234-ABCD"
			}
			f, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if u, l := superblock(f, kind); u != uuid || l != label {
				t.Errorf("its superblock: %q, %q", u, l)
			}
			if err := filesystemtest.MountAt(image, at, "ro"); err != nil {
				t.Skipf("this kernel does not mount it: %v", err)
			}
			defer exec.Command("umount", at).Run() //nolint:errcheck // the test has said what is wrong
			mounts, err := Mounts(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(mounts, func(m object.Mount) bool { return m.Mountpoint == at })
			if i < 0 {
				t.Fatalf("%s is not among %+v", at, mounts)
			}
			m := mounts[i]
			if m.UUID != uuid || m.Label != label || m.Type != kind || m.Device.Kind != "loop" || m.Device.Title != image || m.Device.Size != 320<<20 {
				t.Errorf("%+v on %+v", m, m.Device)
			}
		})
	}
}

// FuzzMountinfo gives what a mount table may be to its parser, and the result to
// a document.
func FuzzMountinfo(f *testing.F) {
	f.Add([]byte(stackedGuest()["proc/self/mountinfo"]))
	f.Add([]byte("1 2 3:4 / / - - -\n - \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := mountinfo(strings.NewReader(string(b)))
		if err != nil {
			return
		}
		remote(table)
		d := &object.Document{Version: 1}
		for _, m := range table[:min(len(table), object.MaxMounts)] {
			d.Mounts = append(d.Mounts, object.Mount{Mountpoint: object.Text(m.point), Source: object.Text(m.source), Type: object.Text(m.kind), Options: object.Text(m.options)})
		}
		if _, err := object.Encode(d); err != nil && !errors.Is(err, object.ErrInvalid) {
			t.Error(err)
		}
	})
}

// FuzzSuperblock gives what a device may hold to its parser, and what /proc and
// udev may say to theirs.
func FuzzSuperblock(f *testing.F) {
	b := make([]byte, 70<<10)
	copy(b, "XFSB")
	b[1024+0x38], b[1024+0x39] = 0x53, 0xef
	copy(b[64<<10+64:], "_BHRfS_M")
	f.Add(b, "a\\x20b")
	f.Add([]byte("short"), "btime 17\n")
	f.Fuzz(func(t *testing.T, b []byte, s string) {
		for _, kind := range []string{"ext4", "xfs", "btrfs", "vfat", "other"} {
			uuid, label := superblock(strings.NewReader(string(b)), kind)
			if _, err := object.Encode(&object.Document{Version: 1, Mounts: []object.Mount{{UUID: uuid, Label: label}}}); err != nil {
				t.Error(err)
			}
		}
		if v := vpdSerial(b); len(v) > object.MaxText {
			t.Error(len(v))
		}
		unhex(s)
		bootTime(s)
		unitOf(s)
		postmaster(s)
		version(s)
		rpmList(s)
		union(s, s)
	})
}
