package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

const (
	mib      = 1 << 20
	bareSize = 4 * mib // of a bare VM's disk
)

// bare is a real QEMU without a guest in it, which is there in a tenth of a
// second. The test writes to its disks by HMP's qemu-io, addressed to the
// device, so that what it writes passes the filters as a guest's writes do.
//
// Two truths are kept of each disk, both past cairn: what qemu-img reads from
// the image file, and what the test itself has written. They are compared with
// each other as well, so that a write that QEMU refused shows.
type bare struct {
	*lab.Guest
	t       *testing.T
	dir     string
	disks   []lab.Disk
	written map[string][]byte
	extra   []string // arguments for QEMU
	random  *rand.ChaCha8
}

// blank makes empty disks in a new folder.
func blank(t *testing.T, disks ...lab.Disk) (dir string, made []lab.Disk) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range disks {
		if d.Path == "" {
			made, err := lab.BlankDisk(t.Context(), dir, d.ID, d.Format, bareSize)
			if err != nil {
				t.Fatal(err)
			}
			d.Path = made.Path
		}
		made = append(made, d)
	}
	return dir, made
}

// twoDisks are what most tests need: one to be hit, one to be left alone.
func twoDisks() []lab.Disk {
	return []lab.Disk{{ID: "vda", Format: "qcow2"}, {ID: "vdb", Format: "qcow2"}}
}

// large makes blank images of 16 MiB for disks.
func large(t *testing.T, disks ...lab.Disk) []lab.Disk {
	t.Helper()
	dir := t.TempDir()
	for i, d := range disks {
		made, err := lab.BlankDisk(t.Context(), dir, d.ID, d.Format, 16*mib)
		if err != nil {
			t.Fatal(err)
		}
		disks[i].Path = made.Path
	}
	return disks
}

// prepareBare makes a VM on blank disks that is not started.
func prepareBare(t *testing.T, disks ...lab.Disk) *bare {
	t.Helper()
	dir, disks := blank(t, disks...)
	v := &bare{t: t, dir: dir, disks: disks, written: map[string][]byte{}, random: rand.NewChaCha8([32]byte{1})}
	for _, d := range disks {
		v.written[d.ID] = make([]byte, imageSize(t, d))
	}
	return v
}

// startBare starts a VM on blank disks and registers it.
func startBare(t *testing.T, h *host, q lab.QEMU, disks ...lab.Disk) *bare {
	t.Helper()
	v := prepareBare(t, disks...)
	v.start(q)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", v.QMPSocket, "--replace", "--quiet")
	return v
}

// start starts QEMU on the disks as they are now.
func (v *bare) start(q lab.QEMU) {
	v.t.Helper()
	labtest.Available(v.t)
	g, err := lab.Start(v.t.Context(), lab.Options{Dir: filepath.Join(v.dir, "vm"), Disks: v.disks, Bare: true, Running: true, ExtraArgs: v.extra, QEMU: q.Program})
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(g.Close)
	v.Guest = g
}

func (v *bare) disk(id string) *lab.Disk {
	v.t.Helper()
	for i := range v.disks {
		if v.disks[i].ID == id {
			return &v.disks[i]
		}
	}
	v.t.Fatalf("no disk %s", id)
	return nil
}

// do runs a command on the test's own monitor.
func (v *bare) do(execute string, args map[string]any) {
	v.t.Helper()
	if err := v.Command(context.WithoutCancel(v.t.Context()), execute, args, nil); err != nil {
		v.t.Fatal(err)
	}
}

// io runs a command of qemu-io on a disk's device.
func (v *bare) io(id, format string, args ...any) {
	v.t.Helper()
	v.hmp(fmt.Sprintf("qemu-io -d %s \"%s\"", v.disk(id).QOMPath(), fmt.Sprintf(format, args...)))
}

// hmp runs a command for people, which must say nothing: it has no errors.
func (v *bare) hmp(line string) {
	v.t.Helper()
	if said := v.tryHMP(line); said != "" {
		v.t.Fatalf("%s: %q", line, said)
	}
}

// tryHMP gives what the command says.
func (v *bare) tryHMP(line string) string {
	v.t.Helper()
	var said string
	if err := v.Command(context.WithoutCancel(v.t.Context()), "human-monitor-command", map[string]any{"command-line": line}, &said); err != nil {
		v.t.Fatalf("%s: %v", line, err)
	}
	return strings.TrimSpace(said)
}

// write writes random bytes to a disk; n is at most 1 MiB.
func (v *bare) write(id string, off, n int64) {
	v.t.Helper()
	data := make([]byte, n)
	v.random.Read(data)
	file := filepath.Join(v.dir, "write")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		v.t.Fatal(err)
	}
	v.io(id, "write -q -s %s %d %d", file, off, n)
	copy(v.written[id][off:], data)
}

// scatter writes to a few places of every disk; turn tells the places apart.
func (v *bare) scatter(turn int) {
	v.t.Helper()
	for _, d := range v.disks {
		for i := range 3 {
			v.write(d.ID, int64((turn*7+i*5)%15)*(bareSize/16)+int64(turn*4096), 12<<10)
		}
	}
}

// truth copies what the disks hold now, and compares it with what was written.
func (v *bare) truth() map[string]string {
	v.t.Helper()
	files := map[string]string{}
	for _, d := range v.disks {
		if v.Running() {
			v.io(d.ID, "flush")
		}
		to := filepath.Join(v.dir, "truth-"+d.ID+".raw")
		qemuImg(v.t, "convert", "-U", "-f", d.Format, "-O", "raw", d.Path, to)
		got, err := os.ReadFile(to)
		if err != nil {
			v.t.Fatal(err)
		}
		if !bytes.Equal(got, v.written[d.ID]) {
			v.t.Fatalf("disk %s does not hold what the test has written: the test is wrong, or QEMU is", d.ID)
		}
		files[d.ID] = to
	}
	return files
}

// isRestored fails the test if a point's disks are not what they hold now.
func (v *bare) isRestored(h *host, s summary) {
	v.t.Helper()
	for id, want := range v.truth() {
		sameImage(v.t, id+" of point "+s.Point[:8], h.restoreDisk(v.t, s.Point, id), want)
	}
}

// backup makes a point and compares it with the disks, byte for byte.
func (v *bare) backup(h *host, flags ...string) summary {
	v.t.Helper()
	s := h.backup(v.t, flags...)
	v.isRestored(h, s)
	isTidy(v.t, h, v.Guest)
	return s
}

// quit ends QEMU in good order: bitmaps are stored.
func (v *bare) quit() {
	v.t.Helper()
	if err := v.Quit(context.WithoutCancel(v.t.Context())); err != nil {
		v.t.Fatal(err)
	}
}

// kill ends QEMU as a power failure does. What was written is flushed before,
// as the test must know what the disk holds.
func (v *bare) kill() {
	v.t.Helper()
	for _, d := range v.disks {
		v.io(d.ID, "flush")
	}
	v.Kill()
}

// qemuImg runs qemu-img and gives what it said.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryQemuImg(t, args...)
	if err != nil {
		t.Fatalf("qemu-img %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryQemuImg(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "qemu-img", args...).CombinedOutput()
	return string(out), err
}

func imageSize(t *testing.T, d lab.Disk) int64 {
	t.Helper()
	f, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if d.Format == "raw" {
		size, err := f.Seek(0, 2) // of a block device, too
		if err != nil {
			t.Fatal(err)
		}
		return size
	}
	var header [32]byte // qcow2: the size is at 24, big-endian
	if _, err := f.ReadAt(header[:], 0); err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, b := range header[24:] {
		size = size<<8 | int64(b)
	}
	return size
}

// diskRead is how a point's disk was read.
type diskRead struct {
	Name   string `json:"name"`
	Read   string `json:"read"`
	Reason string `json:"reason"`
}

// readsOf gives how each disk of a point was read.
func readsOf(t *testing.T, h *host, s summary) map[string]diskRead {
	t.Helper()
	var m struct {
		Disks []diskRead `json:"disks"`
	}
	h.run(t, exitOK, "show", s.Point, "--json").decode(t, &m)
	reads := map[string]diskRead{}
	for _, d := range m.Disks {
		reads[d.Name] = d
	}
	return reads
}

// TestBareDevices: every kind of device and of image is read whole, then by
// its bitmap, whatever it hangs on; what is no disk of the guest's data is left out.
func TestBareDevices(t *testing.T) {
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := startBare(t, h, q,
			lab.Disk{ID: "blk", Format: "qcow2"}, lab.Disk{ID: "blkthread", Format: "qcow2", IOThread: true}, lab.Disk{ID: "raw", Format: "raw"},
			lab.Disk{ID: "scsi", Format: "qcow2", Device: lab.DeviceSCSI}, lab.Disk{ID: "scsithread", Format: "raw", Device: lab.DeviceSCSI, IOThread: true},
			lab.Disk{ID: "ide", Format: "qcow2", Device: lab.DeviceIDE}, lab.Disk{ID: "nvme", Format: "qcow2", Device: lab.DeviceNVMe},
			lab.Disk{ID: "loop", Format: "raw", Path: loopDevice(t)})
		v.scatter(0)
		if s := v.backup(h); s.Read != "full" || s.PausedUS <= 0 {
			t.Errorf("the first: %+v", s)
		}
		v.scatter(1)
		if s := v.backup(h); s.Read != "incremental" || s.BytesRead > int64(len(v.disks))*6*64<<10 || s.Wrong != 0 {
			t.Errorf("the second: %+v", s)
		}
	})
}

// TestBareLeftOut: a CD and a read-only disk are no part of a point.
func TestBareLeftOut(t *testing.T) {
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := startBare(t, h, q, lab.Disk{ID: "vda", Format: "qcow2"}, lab.Disk{ID: "ro", Format: "raw", ReadOnly: true}, lab.Disk{ID: "cd0", Format: "raw", Device: lab.DeviceCD})
		v.write("vda", 0, 8192)
		s := h.backup(t)
		r := h.run(t, exitOK, "show", s.Point)
		for _, words := range []string{"disk ro", "left out: read-only", "disk cd0", "left out: CD-ROM"} {
			r.mentions(t, words)
		}
		if s.BytesDisk != bareSize {
			t.Errorf("%d bytes of disks were backed up", s.BytesDisk)
		}
		v.disks = v.disks[:1]
		v.isRestored(h, s)
	})
}

// loopDevice makes a block device.
func loopDevice(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "loop.img")
	if err := os.WriteFile(file, make([]byte, bareSize), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device can be made here: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}
