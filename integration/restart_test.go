package integration

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestRestartedVM: bitmaps survive a clean end of QEMU; after a kill they do
// not, and the next run reads all, stores what is new, and says why.
func TestRestartedVM(t *testing.T) {
	h := newHost(t)
	g := startVM(t, h)
	h.backup(t)
	labtest.Shell(t, g, "head -c 300000 /dev/urandom >/srv/before; sync")

	if err := g.Poweroff(t.Context()); err != nil {
		t.Fatal(err)
	}
	boot(t, g)
	labtest.Shell(t, g, "head -c 300000 /dev/urandom >/srv/after; sync")
	s := backupPaused(t, h, g)
	if s.Read != "incremental" || s.BytesDirty > 64<<20 || s.BytesDirty < 600_000 {
		t.Errorf("after a clean restart: %+v", s)
	}

	labtest.Shell(t, g, "head -c 200000 /dev/urandom >/srv/lost; sync")
	g.Kill()
	boot(t, g)
	s = backupPaused(t, h, g)
	if s.Read != "full" || s.BytesRead < 256<<20 {
		t.Errorf("after the kill of QEMU not all was read: %+v", s)
	}
	// What changed is 200 KB, its metadata, and what a boot writes.
	if s.ChunksNew > 1500 || s.BytesStored > 4<<20 {
		t.Errorf("after the kill of QEMU much was stored: %+v", s)
	}
	for _, words := range []string{"bitmap", "full read"} {
		if !strings.Contains(s.Reason, words) {
			t.Errorf("the reason does not speak of %q: %s", words, s.Reason)
		}
	}
	isTidy(t, h, g)

	labtest.Shell(t, g, "echo again >/srv/again; sync")
	if s = backupPaused(t, h, g); s.Read != "incremental" || s.BytesDirty > 16<<20 {
		t.Errorf("the run after it: %+v", s)
	}

	// A kill of QEMU in the middle of a backup: this run fails in words, the
	// next one is right.
	r := h.start(t, "backup", vmName, "--full-read")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the backup ended before it read: %+v", r.wait())
	}
	g.Kill()
	if got := r.wait(); got.code != exitFailed {
		t.Errorf("QEMU was killed under the backup: exit code %d\n%s", got.code, got.stderr)
	} else {
		got.mentions(t, "QEMU", "connection", "gone", "EOF")
		t.Logf("QEMU killed under the backup: %s", got.stderr)
	}
	boot(t, g)
	if s = backupPaused(t, h, g); s.Read != "full" {
		t.Errorf("after the kill of QEMU under a backup: %+v", s)
	}
	isTidy(t, h, g)
	h.backup(t) // incremental again: two full reads in a row would be worth a warning

	// All at once, as when the host's power fails: the scratch files of the
	// dead run are on the host, and nothing in QEMU tells of them. The guardian
	// has to die as well: it would take them away.
	r = h.start(t, "backup", vmName, "--full-read")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the backup ended before it read: %+v", r.wait())
	}
	r.signal(t, syscall.SIGSTOP)
	g.Kill()
	if hit, guardian := killRun(t, r, true); !hit || !guardian {
		t.Fatalf("killed the run: %v, its guardian: %v", hit, guardian)
	}
	if files := listFiles(t, filepath.Join(h.state, "scratch")); len(files) == 0 {
		t.Error("no scratch files behind the dead run: this test does not test what it says")
	}
	boot(t, g)
	if s = backupPaused(t, h, g); s.Read != "full" {
		t.Errorf("after the end of both: %+v", s)
	}
	isTidy(t, h, g)
	isAlive(t, g)
	h.run(t, exitOK, "check", "--read-data")
}

// boot starts a VM again that has ended.
func boot(t *testing.T, g *lab.Guest) {
	t.Helper()
	if err := g.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitAgent(t, g, true)
}
