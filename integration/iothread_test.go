package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// doom is a kill -9 of a backup at a moment, alone or with its guardian.
type doom struct {
	moment
	both bool
}

func (d doom) String() string {
	if d.both {
		return d.moment.String() + ", with its guardian"
	}
	return d.moment.String()
}

// dooms are the steps that a run notes of a VM without an agent, and random
// moments. A guardian is there from soon behind "fleece" until before "commit".
func dooms(rnd *rand.Rand) []doom {
	const ms = time.Millisecond
	list := []doom{
		{moment{"fleece", 0}, false}, {moment{"fleece", 10 * ms}, false}, {moment{"fleece", 20 * ms}, true},
		{moment{"point", 0}, false}, {moment{"point", 0}, true}, {moment{"point", 2 * ms}, false}, {moment{"point", 4 * ms}, true},
		{moment{"read", 0}, false}, {moment{"read", 5 * ms}, true}, {moment{"read", 15 * ms}, false}, {moment{"read", 30 * ms}, true},
		{moment{"commit", 0}, false},
	}
	for i := range 4 {
		list = append(list, doom{moment{"", time.Duration(rnd.IntN(400)) * ms}, i%2 == 1})
	}
	return list
}

// TestKilledWithIOThread: a killed cairn does not take a VM with it whose disks
// are on an iothread. QEMU 7.2 aborts when the client of such a disk's export
// closes its connection, and a killed one cannot choose what it closes. The
// next run cleans up, goes on from the bitmaps, and makes a point that equals
// the disks. They are SCSI ones: a virtio-blk disk moves to its thread only when
// a guest has a driver for it; TestCampaign kills runs over such.
func TestKilledWithIOThread(t *testing.T) {
	labtest.InstalledQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		v := startBare(t, h, q, large(t, lab.Disk{ID: "vda", Format: "qcow2", Device: lab.DeviceSCSI, IOThread: true},
			lab.Disk{ID: "vdb", Format: "raw", Device: lab.DeviceSCSI, IOThread: true}, lab.Disk{ID: "vdc", Format: "qcow2"})...)
		for off := int64(0); off < 12*mib; off += mib {
			v.write("vda", off, mib)
			v.write("vdb", off, mib)
		}
		v.backup(h)
		hits, guardians, all := 0, 0, dooms(rand.New(rand.NewPCG(seed(t), 7)))
		for i, d := range all {
			v.scatter(i + 1)
			args := []string{"backup", vmName, "--quiet", "--read-limit", "40MiB"}
			if i%2 == 1 {
				args = append(args, "--full-read")
			}
			r := h.start(t, args...)
			h.awaitMoment(t, r, d.moment)
			hit, guardian := killRun(t, r, d.both)
			if hit {
				hits++
			}
			if guardian {
				guardians++
			}
			time.Sleep(50 * time.Millisecond) // what is on its way to QEMU arrives
			if !v.Running() {
				t.Fatalf("killed %v: QEMU died with it", d)
			}
			isRunningOrPaused(t, v)
			v.scatter(100 + i)
			if i%3 == 2 {
				continue // the next one finds two dead runs
			}
			if s := v.backup(h); s.Read != "incremental" || s.Wrong != 0 {
				t.Errorf("killed %v: the next backup: %+v", d, s)
			}
			isRunning(t, v.Guest)
			if t.Failed() {
				t.FailNow()
			}
		}
		t.Logf("%d of %d kills hit a run, %d its guardian as well", hits, len(all), guardians)
		if hits < len(all)*2/3 || guardians < 3 {
			t.Errorf("%d of %d kills hit a backup, %d its guardian", hits, len(all), guardians)
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

// TestKilledFrozenWithIOThread is the same with a guest that is frozen when the
// run dies: its guardian thaws it, or the next run does if that died as well.
func TestKilledFrozenWithIOThread(t *testing.T) {
	labtest.InstalledQEMU(t, func(t *testing.T, q lab.QEMU) {
		h := newHost(t)
		g := labtest.Start(t, func(o *lab.Options) {
			o.QEMU = q.Program
			for i := range o.Disks {
				o.Disks[i].IOThread = true
			}
		})
		awaitAgent(t, g, true)
		h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket)
		h.backup(t)
		frozen := 0
		for i, d := range []doom{
			{moment{"freeze", 0}, false}, {moment{"freeze", 10 * time.Millisecond}, true}, {moment{"point", 0}, true}, {moment{"point", 3 * time.Millisecond}, false},
		} {
			labtest.Shell(t, g, fmt.Sprintf("head -c 100000 /dev/urandom >/srv/before-%d; sync", i))
			r := h.start(t, "backup", vmName, "--quiet")
			if !h.awaitMoment(t, r, d.moment) {
				t.Fatalf("the run ended before %v: %+v", d, r.wait())
			}
			if hit, guardian := killRun(t, r, d.both); !hit || guardian != d.both {
				t.Fatalf("%v: killed the run: %v, its guardian: %v", d, hit, guardian)
			}
			time.Sleep(300 * time.Millisecond) // what is on its way to QEMU and to the agent arrives
			if !g.Running() {
				t.Fatalf("killed %v: QEMU died with it", d)
			}
			if d.both {
				if stands(t, g) {
					frozen++
				}
			} else {
				isAlive(t, g) // before any other run
			}
			if s := h.backup(t); s.Read != "incremental" || s.Consistency != "filesystem" {
				t.Errorf("killed %v: the next backup: %+v", d, s)
			}
			isRunning(t, g)
			isAlive(t, g)
			isTidy(t, h, g)
			if t.Failed() {
				t.FailNow()
			}
		}
		if frozen == 0 {
			t.Error("no run died with its guardian while the guest stood: this test does not test what it says")
		}
		// A change that any of the runs lost shows here: no file was written twice.
		if s := backupPaused(t, h, g); s.Read != "incremental" || s.Wrong != 0 {
			t.Errorf("the last one: %+v", s)
		}
	})
}

// stands says whether a guest cannot write: it is frozen, or the VM is stopped.
func stands(t *testing.T, g *lab.Guest) bool {
	t.Helper()
	var status struct{ Running bool }
	if err := g.Command(t.Context(), "query-status", nil, &status); err != nil {
		t.Fatal(err)
	}
	if !status.Running {
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), answerTime)
	defer cancel()
	out, err := g.Shell(ctx, `rm -f /run/probe; (echo >/srv/probe; sync; touch /run/probe) </dev/null >/dev/null 2>&1 & sleep 1; [ -e /run/probe ] || echo stands`)
	if err != nil {
		t.Fatal(err)
	}
	return out != ""
}
