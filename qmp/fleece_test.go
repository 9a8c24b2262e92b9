package qmp

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// TestIncrementalEqualsTruth: full, incremental, failed attempts and a clean
// restart; after each the image is the disk at the point, although the disk is
// written while the fleece is read.
func TestIncrementalEqualsTruth(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 32 * mib}, testDisk{id: "vdb", format: "raw", size: 8 * mib})
	b := newBackup(v, "vda", "vdb")
	v.write("vda", 1, 0, 3*mib)
	v.write("vdb", 2, 1*mib, 1*mib)
	var truth map[string][]byte
	step := func(want bool, wantRaw bool) {
		t.Helper()
		truth = map[string][]byte{"vda": v.truth("vda"), "vdb": v.truth("vdb")}
		must(t, b.run(false))
		if b.decisions["vda"].Incremental != want || b.decisions["vdb"].Incremental != wantRaw {
			t.Fatalf("decisions: %+v", b.decisions)
		}
		for _, id := range b.ids {
			equal(t, id, b.images[id], truth[id])
		}
		if left, err := Leftovers(testContext(t), v.conn); err != nil || len(left) > 0 {
			t.Fatalf("left over: %v, %v", left, err)
		}
	}
	n := 3
	b.during = func() { // the guest goes on writing: it must not be seen
		v.write("vda", n, 1*mib+512, 700*kib)
		v.write("vda", n+1, int64(n)*mib, 5*kib)
		v.write("vdb", n, 0, 100*kib)
		v.io("vda", "discard 2M 64k")
		n++
	}
	step(false, false)
	step(true, true)
	if b.bytesRead > 4*mib {
		t.Errorf("an incremental read %d bytes", b.bytesRead)
	}
	must(t, b.run(true))
	must(t, b.run(true)) // two failed attempts: their bitmaps are merged
	v.write("vda", 77, 20*mib, 64*kib)
	step(true, true)
	v.quit()
	v.boot()
	v.write("vda", 78, 21*mib, 64*kib)
	step(true, false) // raw images keep no bitmaps
	if got := OurBitmaps(v.disk("vda"), testRepo); len(got) != 1 {
		t.Errorf("bitmaps %v, want only the committed one", got)
	}
	if !strings.Contains(b.decisions["vdb"].Reason, "raw") {
		t.Errorf("reason: %s", b.decisions["vdb"].Reason)
	}
}

// TestPauseOfRunningVM: a VM that runs is paused for the point and goes on;
// its pause is short.
func TestPauseOfRunningVM(t *testing.T) {
	t.Parallel()
	v := &vm{t: t, dir: shortTemp(t), running: true, disks: []testDisk{{id: "vda", format: "qcow2", size: 4 * mib}, {id: "vdb", format: "raw", size: 4 * mib}}}
	qemuBinary(t)
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", v.file("vda"), "4M")
	run(t, "qemu-img", "create", "-q", "-f", "raw", v.file("vdb"), "4M")
	v.boot()
	sub := v.conn.Subscribe()
	defer sub.Close()
	b := newBackup(v, "vda", "vdb")
	must(t, b.run(false))
	if b.point.Paused <= 0 || b.point.Paused > 5*time.Second || b.point.Time.IsZero() {
		t.Errorf("point: %+v", b.point)
	}
	t.Logf("paused %v", b.point.Paused)
	var seen []string
	for len(seen) < 2 {
		e, err := sub.Next(testContext(t))
		must(t, err)
		if e.Name == "STOP" || e.Name == "RESUME" {
			seen = append(seen, e.Name)
		}
	}
	if seen[0] != "STOP" || seen[1] != "RESUME" {
		t.Errorf("events %v", seen)
	}
	if m := v.inspect(); !m.Running {
		t.Errorf("the VM is %s", m.Status)
	}
	must(t, v.conn.run(testContext(t), stop{}, nil)) // the administrator's
	must(t, b.run(false))
	if m := v.inspect(); m.Running {
		t.Error("a VM that did not run was started")
	}
	if b.point.Paused != 0 {
		t.Errorf("paused %v, although it stood still", b.point.Paused)
	}
}

// TestPileIsFolded: ten failed attempts leave ten bitmaps; the next attempts
// fold them, and nothing is lost.
func TestPileIsFolded(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 * mib})
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, mib)
	must(t, b.run(false))
	for i := range 10 {
		v.write("vda", 10+i, int64(i)*256*kib, 5*kib)
		must(t, b.run(true))
		if n := len(OurBitmaps(v.disk("vda"), testRepo)); n > maxPile+2 {
			t.Fatalf("%d bitmaps", n)
		}
	}
	v.quit()
	v.boot()
	v.write("vda", 99, 5*mib, 5*kib)
	must(t, b.run(false))
	if !b.decisions["vda"].Incremental {
		t.Errorf("decision: %+v", b.decisions["vda"])
	}
	equal(t, "vda", b.images["vda"], v.truth("vda"))
	if got := OurBitmaps(v.disk("vda"), testRepo); len(got) != 1 {
		t.Errorf("bitmaps %v", got)
	}
}

// TestTwoRepositories: they take turns on one disk and do not see each other.
func TestTwoRepositories(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 4 * mib})
	one, two := newBackup(v, "vda"), newBackup(v, "vda")
	two.repo = "11111111"
	for i, b := range []*backup{one, two, one, one, two} {
		v.write("vda", i+1, int64(i)*128*kib, 100*kib)
		must(t, b.run(false))
		equal(t, "vda", b.images["vda"], v.truth("vda"))
		if want := i > 1; b.decisions["vda"].Incremental != want {
			t.Errorf("%d: %+v", i, b.decisions["vda"])
		}
	}
	must(t, RemoveBitmaps(testContext(t), v.conn, []Disk{v.disk("vda")}, two.repo))
	d := v.disk("vda")
	if len(OurBitmaps(d, two.repo)) != 0 || len(OurBitmaps(d, testRepo)) != 1 {
		t.Errorf("bitmaps %+v", d.Bitmaps)
	}
}

// TestOtherControllers: SCSI, IDE, NVMe and a legacy -drive without a node-name.
func TestOtherControllers(t *testing.T) {
	t.Parallel()
	v := &vm{t: t, dir: shortTemp(t)}
	qemuBinary(t)
	for _, id := range []string{"sda", "hda", "nvme0", "old"} {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", v.file(id), "4M")
		v.extra = append(v.extra, "-drive", "file="+v.file(id)+",format=qcow2,if=none,id=d-"+id)
	}
	v.extra = append(v.extra, "-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,drive=d-sda,id=sda,bus=scsi0.0",
		"-device", "ide-hd,drive=d-hda,id=hda", "-device", "nvme,drive=d-nvme0,id=nvme0,serial=n0", "-device", "virtio-blk-pci,drive=d-old")
	v.boot()
	write := func(id string, pattern int) { // through the device's backend, by the legacy drive's id
		must(t, v.conn.Execute(testContext(t), "human-monitor-command", map[string]string{
			"command-line": fmt.Sprintf("qemu-io d-%s \"write -P %d 1M 64k\"", id, pattern)}, nil))
	}
	b := newBackup(v, "sda", "hda", "nvme0", "d-old")
	for round := range 2 {
		for i, id := range []string{"sda", "hda", "nvme0", "old"} {
			write(id, 10*round+i+1)
		}
		b.during = func() { write("sda", 200); write("nvme0", 201) }
		must(t, b.run(false))
		for i, id := range b.ids {
			if got := b.images[id][mib+5]; int(got) != 10*round+i+1 || b.decisions[id].Incremental != (round == 1) {
				t.Errorf("round %d, %s: byte %d, %+v", round, id, got, b.decisions[id])
			}
		}
	}
}
