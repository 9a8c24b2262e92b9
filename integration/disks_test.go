package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/qmp"
)

func equalFiles(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

func byteAt(t *testing.T, file string, at int64) byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// shown is what `cairn show --json` says of a point's disks.
type shown struct {
	Read  string `json:"read"`
	Disks []struct {
		Name, Read, Reason string
		Chain              []string
	} `json:"disks"`
	Skipped []struct{ Name, Reason string } `json:"skipped"`
	Machine struct {
		CommandLine []string `json:"command_line"`
	} `json:"machine"`
	Consistency struct{ Level, Reason string } `json:"consistency"`
}

func (h *host) show(t *testing.T) shown {
	t.Helper()
	var s shown
	h.run(t, exitOK, "show", vmName+"@latest", "--json").decode(t, &s)
	return s
}

// wants checks how a disk was read and that the reason has the words.
func (s shown) wants(t *testing.T, what, disk, read, words string) {
	t.Helper()
	for _, d := range s.Disks {
		if d.Name != disk {
			continue
		}
		if d.Read != read || !strings.Contains(d.Reason, words) {
			t.Errorf("%s: disk %s: %s: %s; want %s and %q", what, disk, d.Read, d.Reason, read, words)
		}
		return
	}
	t.Errorf("%s: disk %s is not in the point", what, disk)
}

// create makes an image and gives its file.
func create(t *testing.T, dir, name, format, options string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	args := []string{"create", "-q", "-f", format}
	if options != "" {
		args = append(args, "-o", options)
	}
	tool(t, "qemu-img", append(args, file, "8M")...)
	return file
}

// TestEveryKindOfDisk has one disk of each kind in one VM, and what is no disk
// to be backed up beside them.
func TestEveryKindOfDisk(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	node := func(name, file, format string) []string {
		return []string{"-blockdev", "driver=" + format + ",node-name=" + name + ",file.driver=file,file.filename=" + file}
	}
	var disks []zooDisk
	var args []string
	add := func(name, format, options string, more ...string) {
		file := create(t, dir, name+".img", format, options)
		disks = append(disks, zooDisk{name, file, format})
		args = append(append(args, node("n-"+name, file, format)...), more...)
	}
	args = append(args, "-device", "virtio-scsi-pci,id=scsi", "-device", "qemu-xhci,id=usb", "-device", "isa-fdc,id=fdc")
	add("vda", "raw", "", "-device", "virtio-blk-pci,drive=n-vda,id=vda-dev")
	add("sda", "qcow2", "", "-device", "scsi-hd,drive=n-sda,id=sda,bus=scsi.0,serial=SDA")
	add("hda", "qcow2", "", "-device", "ide-hd,drive=n-hda,id=hda,bus=ide.0")
	add("nvme0", "qcow2", "", "-device", "nvme,drive=n-nvme0,id=nvme0,serial=NVME0")
	add("usb0", "qcow2", "", "-device", "usb-storage,drive=n-usb0,id=usb0,bus=usb.0")
	add("thr", "qcow2", "", "-object", "throttle-group,id=tg,x-iops-total=10000", "-blockdev", "driver=throttle,node-name=t-thr,throttle-group=tg,file=n-thr",
		"-device", "virtio-blk-pci,drive=t-thr,id=thr")
	add("old", "qcow2", "compat=0.10", "-device", "virtio-blk-pci,drive=n-old,id=old")
	add("n-anon", "qcow2", "") // a device without id is called by its node
	args[len(args)-1] = strings.Replace(args[len(args)-1], "n-n-anon", "n-anon", 1)
	args = append(args, "-device", "virtio-blk-pci,drive=n-anon")
	legacy := create(t, dir, "leg.img", "qcow2", "")
	disks = append(disks, zooDisk{"leg", legacy, "qcow2"})
	args = append(args, "-drive", "if=none,id=leg,format=qcow2,file="+legacy, "-device", "virtio-blk-pci,drive=leg")

	for name, device := range map[string]string{"cd": "scsi-cd,drive=n-cd,id=cd,bus=scsi.0", "floppy": "floppy,drive=n-floppy,id=floppy,bus=fdc.0", "ro": "virtio-blk-pci,drive=n-ro,id=ro", "spare": "virtio-blk-pci,drive=n-spare,id=spare"} {
		n := node("n-"+name, create(t, dir, name+".img", "raw", ""), "raw")
		if name == "floppy" {
			tool(t, "qemu-img", "resize", "-q", "--shrink", "-f", "raw", filepath.Join(dir, "floppy.img"), "1440k")
		}
		if name != "spare" {
			n[1] += ",read-only=on"
		}
		args = append(append(args, n...), "-device", device)
	}
	args = append(args, "-device", "ide-cd,id=empty,bus=ide.1")
	z := newZoo(t, h, disks, args...)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", z.socket, "--replace", "--exclude", "spare")
	z.boots = true

	z.start()
	z.write(1, 1<<20, 300_000)
	h.backup(t)
	z.same(h, "the first point")
	s := h.show(t)
	skipped := map[string]string{}
	for _, d := range s.Skipped {
		skipped[d.Name] = d.Reason
	}
	for name, words := range map[string]string{"cd": "CD-ROM", "floppy": "floppy", "ro": "read-only", "empty": "CD-ROM", "spare": "excluded"} {
		if !strings.Contains(skipped[name], words) {
			t.Errorf("%s is left out because of %q, want %q", name, skipped[name], words)
		}
	}
	if len(skipped) != 5 || len(s.Disks) != len(disks) {
		t.Errorf("%d disks are in the point and %d left out: %+v", len(s.Disks), len(skipped), s.Skipped)
	}

	z.write(2, 3<<20, 70_000)
	if got := h.backup(t); got.BytesDirty > int64(len(disks))*4*64<<10 {
		t.Errorf("%d bytes were marked dirty by one write to each of %d disks", got.BytesDirty, len(disks))
	}
	z.same(h, "the second point")
	s = h.show(t)
	for _, d := range disks {
		s.wants(t, "the second point", d.name, "incremental", "recorded all changes")
	}

	z.quit()
	z.start()
	z.write(3, 5<<20, 4096)
	h.backup(t)
	z.same(h, "after a restart")
	s = h.show(t)
	for _, d := range disks {
		switch d.name {
		case "vda":
			s.wants(t, "after a restart", d.name, "full", "raw cannot keep bitmaps")
		case "old":
			s.wants(t, "after a restart", d.name, "full", "qemu-img amend -f qcow2 -o compat=1.1 "+d.file)
		default:
			s.wants(t, "after a restart", d.name, "incremental", "recorded all changes")
		}
	}
	z.offAfterAll(h)
}

// offAfterAll goes on with the VM while it is off, and on again.
func (z *zoo) offAfterAll(h *host) {
	t := z.t
	z.write(4, 6<<20, 4096)
	z.quit()
	z.write(5, 7<<20, 4096)
	h.run(t, exitOK, "doctor", vmName).mentions(t, "is off")
	h.backup(t)
	z.same(h, "off")
	s := h.show(t)
	for _, d := range z.disks {
		switch d.name {
		case "vda":
			s.wants(t, "off", d.name, "full", "raw images keep no bitmaps")
		case "old":
			s.wants(t, "off", d.name, "full", "qemu-img amend")
			tool(t, "qemu-img", "amend", "-f", "qcow2", "-o", "compat=1.1", d.file)
		default:
			s.wants(t, "off", d.name, "incremental", "recorded all changes")
		}
	}
	if len(s.Skipped) != 5 || len(s.Machine.CommandLine) < 20 || !strings.Contains(s.Consistency.Reason, "was off") {
		t.Errorf("the point does not know what the last one knew: %+v", s)
	}
	// "old" gets its first persistent bitmap. Two full reads in a row are a
	// warning: of "old" here, of the raw disk below.
	h.backupExit(t, exitWarnings)
	z.start()
	z.write(6, 2<<20, 4096)
	h.backupExit(t, exitWarnings)
	z.same(h, "on again")
	s = h.show(t)
	s.wants(t, "on again", "old", "incremental", "recorded all changes")
	s.wants(t, "on again", "n-anon", "incremental", "recorded all changes")
	z.quit()
	for _, d := range z.disks {
		if d.format == "qcow2" {
			tool(t, "qemu-img", "check", "-q", d.file)
		}
	}
}

// loop gives a block device that is a file of the given size.
func loop(t *testing.T, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a loop device")
	}
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("this host has no loop devices: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil { // the test's context has ended
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	return device
}

// TestBlockDevices: raw and qcow2 disks on block devices, on and off. A device
// has no times of change: that nobody wrote is seen otherwise.
func TestBlockDevices(t *testing.T) {
	h := newHost(t)
	rawDev, qcowDev, full := loop(t, 8<<20), loop(t, 24<<20), loop(t, 9<<20)
	for _, dev := range []string{qcowDev, full} {
		tool(t, "qemu-img", "create", "-q", "-f", "qcow2", dev, "8M")
	}
	node := func(name, dev, format string) []string {
		return []string{"-blockdev", "driver=" + format + ",node-name=n-" + name + ",file.driver=host_device,file.filename=" + dev, "-device", "virtio-blk-pci,id=" + name + ",drive=n-" + name}
	}
	z := newZoo(t, h, []zooDisk{{"vda", rawDev, "raw"}, {"vdb", qcowDev, "qcow2"}}, slices.Concat(node("vda", rawDev, "raw"), node("vdb", qcowDev, "qcow2"))...)
	z.start()
	z.write(1, 1<<20, 300_000)
	h.backup(t)
	z.write(2, 3<<20, 4096)
	h.backup(t)
	z.same(h, "on")
	s := h.show(t)
	s.wants(t, "on", "vda", "incremental", "recorded all changes")
	s.wants(t, "on", "vdb", "incremental", "recorded all changes")
	z.quit()
	z.write(3, 5<<20, 4096)
	h.backup(t)
	z.same(h, "off")
	s = h.show(t)
	s.wants(t, "off", "vda", "full", "raw images keep no bitmaps")
	s.wants(t, "off", "vdb", "incremental", "recorded all changes")

	// Written to behind cairn's back, by who takes no lock.
	r := h.start(t, "backup", vmName, "--read-limit", "4MiB")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the backup ended before it read: %+v", r.wait())
	}
	// Different bytes: dd from a pattern, through the page cache.
	tool(t, "sh", "-c", "tr '\\0' 'x' </dev/zero | dd of="+rawDev+" bs=4096 seek=1700 count=1 conv=notrunc iflag=fullblock 2>&1")
	got := r.wait()
	got.mentions(t, rawDev+": it was written to")
	z.same(h, "the run after the one that was disturbed") // cairn tried once more by itself
	if got.code != exitOK {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}

	// A device with no room for bitmaps: refused in words, the image untouched.
	z = newZoo(t, h, []zooDisk{{"vdf", full, "qcow2"}}, node("vdf", full, "qcow2")...)
	z.start()
	z.write(7, 0, 8<<20)
	h.run(t, exitFailed, "backup", vmName).mentions(t, "make the device larger")
	z.quit()
	tool(t, "qemu-img", "check", "-q", full)
}

// TestHotplug: disks come and go between runs.
func TestHotplug(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	first, second := create(t, dir, "a.img", "qcow2", ""), create(t, dir, "b.img", "qcow2", "")
	z := newZoo(t, h, []zooDisk{{"sda", first, "qcow2"}}, "-device", "virtio-scsi-pci,id=scsi",
		"-blockdev", "driver=qcow2,node-name=n-sda,file.driver=file,file.filename="+first, "-device", "scsi-hd,id=sda,drive=n-sda,bus=scsi.0")
	z.start()
	z.write(1, 0, 1<<20)
	h.backup(t)

	z.execute("blockdev-add", map[string]any{"driver": "qcow2", "node-name": "n-sdb", "file": map[string]any{"driver": "file", "filename": second}})
	z.execute("device_add", map[string]any{"driver": "scsi-hd", "id": "sdb", "drive": "n-sdb", "bus": "scsi.0"})
	z.disks = append(z.disks, zooDisk{"sdb", second, "qcow2"})
	z.write(2, 2<<20, 4096)
	h.backup(t)
	z.same(h, "with a new disk")
	s := h.show(t)
	s.wants(t, "with a new disk", "sda", "incremental", "recorded all changes")
	s.wants(t, "with a new disk", "sdb", "full", "no earlier point of this disk")

	z.execute("device_del", map[string]any{"id": "sda"})
	z.disks = z.disks[1:]
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		m, err := qmp.Inspect(t.Context(), z.monitor)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(m.Disks, func(d qmp.Disk) bool { return d.Name == "sda" && d.QOMPath != "" }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the disk is not unplugged")
		}
	}
	z.write(3, 3<<20, 4096)
	h.backup(t)
	z.same(h, "with a disk less")
	s = h.show(t)
	s.wants(t, "with a disk less", "sdb", "incremental", "recorded all changes")
	if len(s.Disks) != 1 {
		t.Errorf("an unplugged disk is in the point: %+v", s.Disks)
	}
	z.quit()
}

// TestEncryptedQcow2: QEMU has the key and reads the disk for us while the VM
// runs; while it is off nobody can, and the run says so.
func TestEncryptedQcow2(t *testing.T) {
	h := newHost(t)
	file := filepath.Join(t.TempDir(), "enc.qcow2")
	secret := "secret,id=s,data=secret"
	// LUKS times its key derivation, and gives up on a busy machine ("Unable to get accurate CPU usage").
	for tries := 1; ; tries++ {
		out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "--object", secret,
			"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", file, "8M").CombinedOutput()
		if err == nil {
			break
		}
		if tries == 20 {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	z := newZoo(t, h, []zooDisk{{"vda", file, "qcow2"}}, "-object", secret, "-device", "virtio-blk-pci,id=vda,drive=n-vda",
		"-blockdev", "driver=qcow2,node-name=n-vda,encrypt.format=luks,encrypt.key-secret=s,file.driver=file,file.filename="+file)
	same := func(what string) {
		t.Helper()
		truth := filepath.Join(z.dir, "truth.raw")
		tool(t, "qemu-img", "convert", "-U", "--object", secret, "--image-opts", "driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename="+file, "-O", "raw", truth)
		if got := byteAt(t, truth, z.at); got != z.pattern {
			t.Fatalf("%s: the write of %d did not arrive", what, z.pattern)
		}
		sameImage(t, what, h.restoreDisk(t, vmName+"@latest", "vda"), truth)
	}
	z.start()
	z.write(1, 1<<20, 300_000)
	h.backup(t)
	same("the first point")
	h.run(t, exitOK, "doctor", vmName).mentions(t, "could not be backed up then")
	z.write(2, 3<<20, 4096)
	z.quit()
	h.run(t, exitFailed, "backup", vmName).mentions(t, "only while the VM runs")
	z.start()
	if s := h.backup(t); s.Read != "incremental" {
		t.Errorf("after a restart: %s: %s", s.Read, s.Reason)
	}
	same("after a restart")
	z.quit()
}
