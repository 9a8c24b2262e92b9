package integration

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// answerTime is how long a guest may take to answer after something was done
// to it. A guardian thaws in a second; the machine may be busy.
const answerTime = 45 * time.Second

// startVM boots the lab's guest, waits for its agent, and registers it.
func startVM(t *testing.T, h *host) *lab.Guest {
	t.Helper()
	g := labtest.Start(t, nil)
	awaitAgent(t, g, true)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket, "--replace")
	return g
}

// awaitAgent waits until the stock agent has opened, or closed, its channel.
func awaitAgent(t *testing.T, g *lab.Guest, open bool) {
	t.Helper()
	for start := time.Now(); time.Since(start) < answerTime; time.Sleep(50 * time.Millisecond) {
		var chardevs []struct {
			Label string `json:"label"`
			Open  bool   `json:"frontend-open"`
		}
		if err := g.Command(t.Context(), "query-chardev", nil, &chardevs); err != nil {
			t.Fatal(err)
		}
		for _, c := range chardevs {
			if c.Label == "qga" && c.Open == open {
				return
			}
		}
	}
	t.Fatalf("the guest agent's channel does not become open=%v", open)
}

// disks of the lab's guest.
var guestDisks = []string{"vda", "vdb"}

// truth copies what both disks hold right now, past QEMU and past cairn.
func truth(t *testing.T, g *lab.Guest, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, disk := range guestDisks {
		files[disk] = filepath.Join(dir, "truth-"+disk+".raw")
		if err := g.CopyDisk(context.WithoutCancel(t.Context()), disk, files[disk]); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// pause stops the VM's processors by the tests' own monitor.
func pause(t *testing.T, g *lab.Guest) {
	t.Helper()
	if err := g.Command(t.Context(), "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
}

// resume lets them go on.
func resume(t *testing.T, g *lab.Guest) {
	t.Helper()
	if err := g.Command(context.WithoutCancel(t.Context()), "cont", nil, nil); err != nil {
		t.Fatal(err)
	}
}

// backupPaused stops the VM, copies its disks, backs it up, and compares what
// is restored with the copies, byte for byte. The VM is stopped through all of
// it, so that no byte can change in between, and the copies are made by
// qemu-img from the image files: neither way can hide a fault of cairn's.
func backupPaused(t *testing.T, h *host, g *lab.Guest, flags ...string) summary {
	t.Helper()
	pause(t, g)
	defer resume(t, g)
	want := truth(t, g, h.dir)
	s := h.backup(t, flags...)
	for _, disk := range guestDisks {
		sameImage(t, disk+" of point "+s.Point[:8], h.restoreDisk(t, s.Point, disk), want[disk])
	}
	return s
}

// isAlive fails the test if the guest does not answer on its console or its
// writes do not go through: a stopped or frozen guest does neither.
func isAlive(t *testing.T, g *lab.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), answerTime)
	defer cancel()
	start := time.Now()
	if _, err := g.Shell(ctx, "date >/srv/alive && date >/root/alive && sync"); err != nil {
		var status struct{ Status string }
		if serr := g.Command(context.WithoutCancel(t.Context()), "query-status", nil, &status); serr != nil {
			t.Fatalf("QEMU does not answer: %v (console: %v)", serr, err)
		}
		t.Fatalf("the guest's writes do not go through within %s (VM is %s): %v", answerTime, status.Status, err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Logf("the guest took %.1f s to answer", took.Seconds())
	}
}

// startWriter lets the guest write all the time, until stopWriter: a log of
// numbered lines, files that are overwritten, and files that are written once.
func startWriter(t *testing.T, g *lab.Guest) {
	t.Helper()
	labtest.Shell(t, g, `mkdir -p /srv/w /root/w
touch /run/writer
cat >/run/writer.sh <<'END'
i=0
while [ -e /run/writer ]; do
	i=$((i + 1))
	echo "line $i" >>/srv/w/log
	dd if=/dev/urandom of=/srv/w/once-$i bs=4k count=1 2>/dev/null || echo "once $i" >>/run/writer.errors
	dd if=/dev/urandom of=/srv/w/f$((i % 40)) bs=16k count=2 2>/dev/null || echo "srv $i" >>/run/writer.errors
	dd if=/dev/urandom of=/root/w/f$((i % 20)) bs=16k count=1 conv=notrunc 2>/dev/null || echo "root $i" >>/run/writer.errors
	[ $((i % 8)) = 0 ] && sync
	echo $i >/run/written
	usleep 50000
done
END
sh /run/writer.sh </dev/null >/dev/null 2>&1 &`)
}

// stopWriter ends it and gives the lines written. No write may have failed.
func stopWriter(t *testing.T, g *lab.Guest) int {
	t.Helper()
	out := labtest.Shell(t, g, "rm -f /run/writer; sleep 1; sync; cat /run/writer.errors 2>/dev/null; cat /run/written")
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("writes failed in the guest: %s", out)
	}
	return n
}

// leftovers gives what cairn has in QEMU apart from its bitmaps.
func leftovers(t *testing.T, g *lab.Guest) []string {
	t.Helper()
	var nodes []struct {
		Name string `json:"node-name"`
	}
	var exports, jobs []struct {
		ID string `json:"id"`
	}
	for command, out := range map[string]any{"query-named-block-nodes": &nodes, "query-block-exports": &exports, "query-jobs": &jobs} {
		var args any
		if command == "query-named-block-nodes" {
			args = map[string]any{"flat": true}
		}
		if err := g.Command(t.Context(), command, args, out); err != nil {
			t.Fatal(err)
		}
	}
	var left []string
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "cairn-") {
			left = append(left, "node "+n.Name)
		}
	}
	for _, e := range exports {
		left = append(left, "export "+e.ID)
	}
	for _, j := range jobs {
		left = append(left, "job "+j.ID)
	}
	return left
}

// isTidy fails the test if a finished run left something in QEMU or on the
// host, or if bitmaps pile up.
func isTidy(t *testing.T, h *host, g *lab.Guest) {
	t.Helper()
	if left := leftovers(t, g); len(left) > 0 {
		t.Errorf("left in QEMU: %q", left)
	}
	// The NBD server and its socket may stay: QEMU 7.2 can hang if it is
	// stopped while a handshake of a dead run is open (package qmp).
	if files := listFiles(t, filepath.Join(h.state, "scratch")); len(files) > 0 {
		t.Errorf("left on the host: %q", files)
	}
	files := slices.DeleteFunc(listFiles(t, filepath.Join(h.state, "journal")), func(f string) bool { return strings.HasSuffix(f, ".lock") })
	if len(files) > 0 { // each VM's lock stays
		t.Errorf("left in the journal: %q", files)
	}
	for disk, names := range bitmaps(t, g) {
		if len(names) > 4 { // the parent's, those of dead runs since, and the new one
			t.Errorf("disk %s has %d bitmaps: %q", disk, len(names), names)
		}
	}
}

// bitmaps gives the names of each disk's dirty bitmaps.
func bitmaps(t *testing.T, g *lab.Guest) map[string][]string {
	t.Helper()
	var nodes []struct {
		Name    string `json:"node-name"`
		Bitmaps []struct {
			Name string `json:"name"`
		} `json:"dirty-bitmaps"`
	}
	if err := g.Command(t.Context(), "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, n := range nodes {
		for _, b := range n.Bitmaps {
			out[n.Name] = append(out[n.Name], b.Name)
		}
	}
	return out
}

// isRunning fails the test if the VM is not running.
func isRunning(t *testing.T, g *lab.Guest) {
	t.Helper()
	var status struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	if err := g.Command(t.Context(), "query-status", nil, &status); err != nil {
		t.Fatal(err)
	}
	if !status.Running {
		t.Fatalf("the VM is %s", status.Status)
	}
}

// guestFails says whether a command fails in the guest, with its code.
func guestFails(t *testing.T, g *lab.Guest, command string) bool {
	t.Helper()
	_, err := g.Shell(t.Context(), command)
	var shell *lab.ShellError
	if err != nil && !errors.As(err, &shell) {
		t.Fatal(err)
	}
	return err != nil
}
