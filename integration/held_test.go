package integration

import (
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// backupHeld backs up the running, writing guest and compares with what its
// disks held while the guest agent had them frozen. Cairn is halted (SIGSTOP)
// as soon as it has noted the step "point", that is after the freeze and
// before the thaw; the disks are copied while it is halted.
//
// This cannot pass by accident: a copy counts only if the VM was stopped when
// it was made, which is the instant of the point itself, or if a write in the
// guest did not go through before the copy and has not gone through behind it.
// If the halt came too late the run is let go and another one is tried.
func backupHeld(t *testing.T, h *host, g *lab.Guest) summary {
	t.Helper()
	startWriter(t, g)
	const attempts = 6
	for range attempts {
		r := h.start(t, "backup", vmName, "--json")
		if !h.awaitStep(t, r, "point") {
			t.Fatalf("the backup ended before its point: %+v", r.wait())
		}
		r.signal(t, syscall.SIGSTOP)
		want, held := copyHeld(t, h, g)
		r.signal(t, syscall.SIGCONT)
		got := r.wait()
		if got.code != exitOK {
			t.Fatalf("the backup that was halted: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
		}
		s := summaryOf(t, got)
		if !held {
			t.Log("halted too late, once more")
			continue
		}
		for _, disk := range guestDisks {
			sameImage(t, disk+" of the frozen guest", h.restoreDisk(t, s.Point, disk), want[disk])
		}
		if n := stopWriter(t, g); n < 3 {
			t.Errorf("the guest wrote only %d times", n)
		}
		return s
	}
	t.Fatalf("cairn was never halted between freeze and thaw in %d runs", attempts)
	return summary{}
}

// copyHeld copies the disks while cairn is halted, and says whether nothing
// could have changed them.
func copyHeld(t *testing.T, h *host, g *lab.Guest) (map[string]string, bool) {
	t.Helper()
	time.Sleep(500 * time.Millisecond) // a command of cairn's may be on its way in QEMU
	var status struct{ Running bool }
	if err := g.Command(t.Context(), "query-status", nil, &status); err != nil {
		t.Fatal(err)
	}
	if !status.Running { // cairn has stopped it, and would let it go on
		t.Log("the guest is held stopped")
		return truth(t, g, h.dir), true
	}
	if guestFails(t, g, `rm -f /run/probe; (echo >/srv/probe; sync; touch /run/probe) </dev/null >/dev/null 2>&1 & sleep 1; [ ! -e /run/probe ]`) {
		return nil, false
	}
	t.Log("the guest is held frozen")
	want := truth(t, g, h.dir)
	if labtest.Shell(t, g, "ls /run/probe 2>/dev/null || :") != "" {
		t.Fatal("the guest was thawed while cairn was halted")
	}
	return want, true
}
