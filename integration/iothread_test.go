package integration

import (
	"math/rand/v2"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestKilledWithIOThread: a killed cairn does not take a VM with it whose disks
// are on an iothread. QEMU 7.2 aborts when the client of such a disk's export
// closes its connection, and a killed one cannot choose what it closes. The disks
// are SCSI ones: a virtio-blk disk moves to its thread only when a guest has a
// driver for it; TestCampaign kills runs over such.
func TestKilledWithIOThread(t *testing.T) {
	labtest.EachQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := startBare(t, h, q, large(t, lab.Disk{ID: "vda", Format: "qcow2", Device: lab.DeviceSCSI, IOThread: true},
			lab.Disk{ID: "vdb", Format: "raw", Device: lab.DeviceSCSI, IOThread: true}, lab.Disk{ID: "vdc", Format: "qcow2"})...)
		for off := int64(0); off < 12*mib; off += mib {
			v.write("vda", off, mib)
			v.write("vdb", off, mib)
		}
		v.backup(h)
		rnd := rand.New(rand.NewPCG(7, uint64(len(q.Version))))
		moments := []moment{{"fleece", 0}, {"fleece", 10 * time.Millisecond}, {"point", 0}, {"point", 2 * time.Millisecond}, {"read", 0}, {"read", 5 * time.Millisecond},
			{"read", 15 * time.Millisecond}, {"read", 30 * time.Millisecond}, {"commit", 0}}
		for range 3 {
			moments = append(moments, moment{"", time.Duration(rnd.IntN(400)) * time.Millisecond})
		}
		hit := 0
		for i, m := range moments {
			v.scatter(i + 1)
			args := []string{"backup", vmName, "--quiet", "--read-limit", "40MiB"}
			if i%2 == 1 {
				args = append(args, "--full-read")
			}
			r := h.start(t, args...)
			reached := h.awaitMoment(t, r, m)
			both := i%3 == 2 && reached && (m.step == "point" || m.step == "read") // its guardian, too
			if killed, _ := killRun(t, r, both); killed {
				hit++
			}
			time.Sleep(50 * time.Millisecond) // what is on its way to QEMU arrives
			if !v.Running() {
				t.Fatalf("killed %v: QEMU died with it", m)
			}
			isRunningOrPaused(t, v)
			v.scatter(100 + i)
			if i%2 == 0 {
				if s := v.backup(h); s.Read != "incremental" {
					t.Errorf("killed %v: the next backup: %+v", m, s)
				}
				isRunning(t, v.Guest)
			}
		}
		if hit < len(moments)*2/3 {
			t.Errorf("only %d of %d kills hit a backup", hit, len(moments))
		}
		v.backup(h)
		h.run(t, exitOK, "check", "--read-data")
	})
}

// isRunningOrPaused fails the test if QEMU does not answer. A VM whose
// guardian was killed as well may stand until the next backup.
func isRunningOrPaused(t *testing.T, v *bare) {
	t.Helper()
	var status struct{ Status string }
	if err := v.Command(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" && status.Status != "paused" {
		t.Fatalf("the VM is %q: %v", status.Status, err)
	}
}
