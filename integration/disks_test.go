package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/labtest"
	"cairn/qmp"
)

// zoo is a QEMU without a guest, with disks of any kind. The test writes to
// them by HMP's qemu-io, addressed to the device.
type zoo struct {
	t       *testing.T
	dir     string
	socket  string // cairn's monitor
	args    []string
	disks   []zooDisk
	boots   bool // the virtual CPU runs: the firmware looks for something to boot on all disks
	cmd     *exec.Cmd
	monitor *qmp.Conn // the test's
	exited  chan struct{}

	// What was written last to all disks: qemu-io's complaints go to QEMU's own stdout.
	pattern byte
	at      int64
}

// zooDisk is a disk that is to be in each point.
type zooDisk struct {
	name   string // as cairn calls it
	file   string
	format string
}

// newZoo makes a VM of the given arguments; start starts it.
func newZoo(t *testing.T, h *host, disks []zooDisk, args ...string) *zoo {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64, which is not installed")
	}
	dir, err := os.MkdirTemp("", "cairn") // short: sockets' names have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	z := &zoo{t: t, dir: dir, socket: filepath.Join(dir, "qmp"), args: args, disks: disks}
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", z.socket, "--replace")
	return z
}

func (z *zoo) start() {
	z.t.Helper()
	args := append([]string{"-name", "zoo", "-nodefaults", "-display", "none", "-machine", "q35", "-m", "64", "-accel", "tcg",
		"-qmp", "unix:" + z.socket + ",server=on,wait=off", "-qmp", "unix:" + z.dir + "/test,server=on,wait=off"}, z.args...)
	if !z.boots {
		args = append(args, "-S")
	}
	var stderr bytes.Buffer
	cmd, exited := exec.Command("qemu-system-x86_64", args...), make(chan struct{})
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		z.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // a kill is no news
		close(exited)
	}()
	z.cmd, z.exited = cmd, exited
	z.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-exited
		if z.t.Failed() && stderr.Len() > 0 {
			z.t.Logf("QEMU said: %s", stderr.String())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if z.monitor, err = qmp.Dial(z.t.Context(), z.dir+"/test"); err == nil {
			break
		}
		if !z.runs() || time.Now().After(deadline) {
			z.t.Fatalf("QEMU does not start: %v: %s", err, stderr.String())
		}
	}
	monitor := z.monitor
	z.t.Cleanup(func() { _ = monitor.Close() }) // with QEMU it is gone anyway
}

func (z *zoo) runs() bool {
	if z.exited == nil {
		return false
	}
	select {
	case <-z.exited:
		return false
	default:
		return true
	}
}

// quit ends QEMU in order; kill ends it as a power failure does.
func (z *zoo) quit() {
	z.t.Helper()
	_ = z.monitor.Execute(z.t.Context(), "quit", nil, nil) // its answer may be lost
	z.ended()
}

func (z *zoo) kill() {
	z.t.Helper()
	if err := z.cmd.Process.Kill(); err != nil {
		z.t.Fatal(err)
	}
	z.ended()
}

func (z *zoo) ended() {
	z.t.Helper()
	select {
	case <-z.exited:
	case <-time.After(30 * time.Second):
		z.t.Fatal("QEMU does not end")
	}
	_ = z.monitor.Close()
}

func (z *zoo) execute(command string, args any) {
	z.t.Helper()
	if err := z.monitor.Execute(z.t.Context(), command, args, nil); err != nil {
		z.t.Fatal(err)
	}
}

// write writes a pattern to every disk, by its device or by qemu-io.
func (z *zoo) write(pattern int, off, n int64) {
	z.t.Helper()
	command := fmt.Sprintf("write -P %d %d %d", pattern, off, n)
	z.pattern, z.at = byte(pattern), off
	if !z.runs() {
		for _, d := range z.disks {
			tool(z.t, "qemu-io", "-f", d.format, "-c", command, d.file)
		}
		return
	}
	m, err := qmp.Inspect(z.t.Context(), z.monitor)
	if err != nil {
		z.t.Fatal(err)
	}
	for _, d := range z.disks {
		i := slices.IndexFunc(m.Disks, func(q qmp.Disk) bool { return q.Name == d.name })
		if i < 0 {
			z.t.Fatalf("the VM has no disk %q", d.name)
		}
		var out string
		err := z.monitor.Execute(z.t.Context(), "human-monitor-command", map[string]string{
			"command-line": fmt.Sprintf("qemu-io -d %s \"%s\"", m.Disks[i].QOMPath, command)}, &out)
		if err != nil || out != "" {
			z.t.Fatalf("write to %s: %v: %s", d.name, err, out)
		}
		err = z.monitor.Execute(z.t.Context(), "human-monitor-command", map[string]string{
			"command-line": fmt.Sprintf("qemu-io -d %s flush", m.Disks[i].QOMPath)}, &out)
		if err != nil {
			z.t.Fatal(err)
		}
	}
}

// same compares every disk of the newest point with what qemu-img reads.
func (z *zoo) same(h *host, what string) {
	z.t.Helper()
	for _, d := range z.disks {
		truth := filepath.Join(z.dir, "truth.raw")
		tool(z.t, "qemu-img", "convert", "-U", "-f", d.format, "-O", "raw", d.file, truth)
		if got := byteAt(z.t, truth, z.at); got != z.pattern {
			z.t.Fatalf("%s: disk %s has %d at %d: the write of %d did not arrive", what, d.name, got, z.at, z.pattern)
		}
		sameImage(z.t, what+": disk "+d.name, h.restoreDisk(z.t, vmName+"@latest", d.name), truth)
	}
}

// images gives the disks as they are now, each as a raw file.
func (z *zoo) images(when string) (files []string) {
	z.t.Helper()
	for _, d := range z.disks {
		file := filepath.Join(z.dir, when+"-"+d.name+".raw")
		tool(z.t, "qemu-img", "convert", "-U", "-f", d.format, "-O", "raw", d.file, file)
		files = append(files, file)
	}
	return files
}

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

// offZoo makes a VM with a qcow2 disk on a backing file and a qcow2 disk, which
// was backed up once while it ran, and is off.
func offZoo(t *testing.T, h *host) *zoo {
	t.Helper()
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, bytes.Repeat([]byte("base"), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vda, vdb := filepath.Join(dir, "vda.qcow2"), create(t, dir, "vdb.qcow2", "qcow2", "")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", vda)
	z := newZoo(t, h, []zooDisk{{"vda", vda, "qcow2"}, {"vdb", vdb, "qcow2"}},
		"-blockdev", "driver=qcow2,node-name=n-vda,file.driver=file,file.filename="+vda, "-device", "virtio-blk-pci,id=vda,drive=n-vda,serial=VDA",
		"-blockdev", "driver=qcow2,node-name=n-vdb,file.driver=file,file.filename="+vdb, "-device", "virtio-blk-pci,id=vdb,drive=n-vdb,serial=VDB")
	z.start()
	z.write(1, 1<<20, 3<<20)
	h.backup(t)
	z.write(2, 2<<20, 4096)
	z.quit()
	return z
}

// TestOffStarted: the VM starts while its images are read: its start
// succeeds, and the run makes its point of the running VM.
func TestOffStarted(t *testing.T) {
	h := newHost(t)
	z := offZoo(t, h)
	r := h.start(t, "backup", vmName, "--full-read", "--read-limit", "4MiB")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the backup ended before it read: %+v", r.wait())
	}
	z.start()
	before := z.images("before")
	z.write(3, 4<<20, 4096) // before the point, or behind it: the run does not wait for it
	got := r.wait()
	after := z.images("after")
	if got.code != exitOK {
		t.Fatalf("exit code %d: %s", got.code, got.stderr)
	}
	got.mentions(t, "once more")
	if s := h.show(t); s.Consistency.Reason == "" || strings.Contains(s.Consistency.Reason, "was off") {
		t.Errorf("the point is not of the running VM: %+v", s)
	}
	for i, d := range z.disks {
		restored := h.restoreDisk(t, vmName+"@latest", d.name)
		if !equalFiles(t, restored, before[i]) {
			sameImage(t, "started in mid-read, and not as before the write: disk "+d.name, restored, after[i])
		}
	}
	z.write(4, 6<<20, 4096)
	if s := h.backup(t); s.Read != "incremental" {
		t.Errorf("the next run: %+v", s)
	}
	z.same(h, "the next run")
	z.quit()
}

// TestOffRefusals: what keeps an image from being read is said, and what to do.
func TestOffRefusals(t *testing.T) {
	h := newHost(t)
	z := offZoo(t, h)
	disk := z.disks[1].file
	other := exec.Command("qemu-io", "-f", "qcow2", disk) // holds it until its stdin ends
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	// It answers when it has opened, and so locked, the image.
	if _, err := io.WriteString(stdin, "length\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("qemu-io says %q: %v", line, err)
	}
	h.run(t, exitFailed, "backup", vmName).mentions(t, "open for writing")
	if err := errors.Join(stdin.Close(), other.Wait()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(disk, disk+".away"); err != nil {
		t.Fatal(err)
	}
	h.run(t, exitFailed, "backup", vmName).mentions(t, "no such file")
	h.run(t, exitFailed, "backup", vmName).mentions(t, "cairn vm add")
	// It was moved: registered anew, the backup goes on, in full as the file is another.
	h.run(t, exitOK, "vm", "add", vmName, "--replace", "--qmp", z.socket, "--disk", "vdb="+disk+".away")
	z.disks[1].file = disk + ".away"
	h.backup(t)
	z.same(h, "moved")
	s := h.show(t)
	s.wants(t, "moved", "vda", "incremental", "recorded all changes")
	s.wants(t, "moved", "vdb", "full", "image files changed")
	for _, c := range []struct{ disk, want string }{
		{"vdb", "NAME=FILE"}, {"vdb=vdb.qcow2", "from the root on"}, {"vdb=" + filepath.Join(z.dir, "no"), "no such file"}, {"vdb=/dev/null,format=vmdk", "only qcow2 and raw"},
		{"vda=" + filepath.Join(filepath.Dir(disk), "base.raw"), "if it is raw, say so"}, {"vda=" + z.disks[0].file, "say what it is"},
	} {
		h.run(t, exitUsage, "vm", "add", "x", "--disk", c.disk).mentions(t, c.want)
	}
}

// TestOffTwoRepositories: each repository has its own bitmaps in the images.
func TestOffTwoRepositories(t *testing.T) {
	h, other := newHost(t), newHost(t)
	z := offZoo(t, h)
	other.run(t, exitOK, "vm", "add", vmName, "--disk", "vda="+z.disks[0].file+",format=qcow2,serial=VDA", "--disk", "vdb="+z.disks[1].file)
	for i := range 3 {
		for n, at := range []*host{h, other} {
			z.write(10+i*2+n, int64(3+i)<<20, 4096)
			s := at.backup(t)
			if first := i == 0 && n == 1; first == (s.Read == "incremental") {
				t.Errorf("run %d of repository %d: %s: %s", i, n, s.Read, s.Reason)
			}
			z.same(at, "repository "+strconv.Itoa(n))
		}
	}
	tool(t, "qemu-img", "check", "-q", z.disks[0].file)
	if got := strings.Count(tool(t, "qemu-img", "info", z.disks[0].file), "name: cairn-"); got > 4 {
		t.Errorf("%d bitmaps are in the image", got)
	}
}

// TestOffKilled: cairn is killed at instants all over its run. No daemon is
// left, the image is whole, and the next run is right.
func TestOffKilled(t *testing.T) {
	h := newHost(t)
	z := offZoo(t, h)
	began := time.Now()
	h.backup(t)
	whole := time.Since(began)
	rounds := 12
	if labtest.Long() {
		rounds = 150
	}
	killed := 0
	for i := range rounds {
		z.write(20+i%200, int64(i%6+1)<<20, 4096)
		r := h.start(t, "backup", vmName)
		time.Sleep(whole * time.Duration(i) / time.Duration(rounds))
		r.signal(t, syscall.SIGKILL)
		if r.wait().code == -1 {
			killed++
		}
		noDaemon(t, h)
		for _, d := range z.disks {
			tool(t, "qemu-img", "check", "-q", d.file)
		}
		if i%4 == 3 {
			h.backup(t)
			z.same(h, "after kills up to the "+strconv.Itoa(i)+"th")
		}
	}
	t.Logf("%d of %d runs of %v were killed", killed, rounds, whole)
	if killed < rounds/4 { // a busy host may have been slower when it was measured
		t.Errorf("only %d of %d runs were killed", killed, rounds)
	}
	z.start()
	z.write(19, 7<<20, 4096)
	h.backup(t)
	z.same(h, "on again")
	z.write(18, 6<<20, 4096)
	z.kill() // as a power failure does
	if s := h.backup(t); s.Read != "full" || !strings.Contains(s.Reason, "ended without closing the image") {
		t.Errorf("after a power failure: %s: %s", s.Read, s.Reason)
	}
	z.same(h, "off after a power failure")
}

// noDaemon waits until no qemu-storage-daemon of the host's state folder is left.
func noDaemon(t *testing.T, h *host) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left := ""
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range lines {
			b, err := os.ReadFile(f)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			if strings.Contains(string(b), "qemu-storage-daemon\x00") && strings.Contains(string(b), h.state) {
				left = f
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a daemon outlives cairn: %s", left)
		}
	}
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
