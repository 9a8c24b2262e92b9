package integration

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestBackupJourney is the way of a new user: init, vm add, doctor, a full
// backup of the running guest, changes, an incremental one, and both restored.
//
// Two truths are compared with. The first point is taken of the running guest
// with its filesystems frozen by the guest agent, see backupHeld. For the
// others the VM is stopped by the tests' own monitor, see backupPaused.
func TestBackupJourney(t *testing.T) {
	h := bareHost(t)
	h.run(t, exitNoRepository, "points")
	h.init(t)
	h.run(t, exitUsage, "backup", vmName)
	g := startVM(t, h)
	h.run(t, exitOK, "doctor", vmName).mentions(t, "filesystem-consistent")

	first := h.backup(t, "--tag", "first")
	if first.Read != "full" || first.Consistency != "filesystem" || first.VM != vmName || len(first.Warnings) > 0 {
		t.Errorf("the first backup: %+v", first)
	}
	if first.BytesDisk != 768<<20 || first.BytesRead <= 0 || first.BytesRead > first.BytesDisk || first.BytesStored <= 0 || first.ChunksNew <= 0 ||
		first.FrozenMS <= 0 || first.PausedUS <= 0 || first.DurationMS <= 0 || first.Reason == "" || first.Why == "" {
		t.Errorf("the first backup's numbers: %+v", first)
	}
	isTidy(t, h, g)

	labtest.Shell(t, g, "echo changed >>/home/anna/notes.md; head -c 700000 /dev/urandom >/srv/new; rm /var/lib/many/file-0007; sync")
	second := h.backup(t)
	if second.Read != "incremental" || second.Consistency != "filesystem" {
		t.Errorf("the second backup: %+v", second)
	}
	if second.BytesDirty < 700_000 || second.BytesDirty > 32<<20 || second.BytesRead > second.BytesDirty || second.BytesStored > 8<<20 {
		t.Errorf("the second backup's numbers: %+v", second)
	}
	isTidy(t, h, g)
	if files := listFiles(t, filepath.Join(h.state, "nbd")); len(files) > 0 {
		t.Errorf("the NBD server's socket was left: %q", files)
	}

	labtest.Shell(t, g, "head -c 500000 /dev/urandom >/srv/third; rm /srv/new; sync")
	third := backupPaused(t, h, g)
	if third.Read != "incremental" || third.Consistency != "crash" {
		t.Errorf("the backup of the stopped VM: %+v", third)
	}
	isAlive(t, g)
	held := backupHeld(t, h, g)
	if held.Read != "incremental" || held.Consistency != "filesystem" {
		t.Errorf("the backup that was held: %+v", held)
	}
	isAlive(t, g)

	list := h.points(t)
	if len(list) != 4 {
		t.Fatalf("%d points, want 4", len(list))
	}
	for i, s := range []summary{first, second, third, held} {
		p := list[i]
		if p.ID != s.Point || p.VM != vmName || p.Read != s.Read || p.Consistency != s.Consistency || len(p.Disks) != 2 || p.BytesStored <= 0 {
			t.Errorf("point %d: %+v, the backup said %+v", i, p, s)
		}
		if i > 0 && p.Parent != list[i-1].ID {
			t.Errorf("point %d has the parent %s", i, p.Parent)
		}
		if i == 0 && strings.Join(p.Tags, " ") != "first" {
			t.Errorf("tags %q", p.Tags)
		}
	}
	var shown struct {
		ID string `json:"id"`
		VM struct {
			Name string `json:"name"`
		} `json:"vm"`
		Time time.Time `json:"time"`
	}
	h.run(t, exitOK, "show", vmName+"@latest~3", "--json").decode(t, &shown)
	if shown.ID != first.Point || shown.VM.Name != vmName || time.Since(shown.Time).Abs() > time.Hour {
		t.Errorf("show: %+v", shown)
	}
	h.run(t, exitOK, "show", first.Point[:8]).mentions(t, "Cairn lab guest 1")
	h.run(t, exitOK, "check", "--read-data").mentions(t, "no damage")

	t.Run("Busy", func(t *testing.T) { testBusy(t, h) })
	t.Run("Catalogue", func(t *testing.T) { testCatalogue(t, h, g) })
	t.Run("RestoredVM", func(t *testing.T) { testRestoredVM(t, h, g) })
	t.Run("ExcludedDisk", func(t *testing.T) { testExcludedDisk(t, h, g) })
	t.Run("Mount", func(t *testing.T) { testMount(t, h, g) })
	t.Run("Keys", func(t *testing.T) { testKeys(t, h, first) })
	t.Run("LostIndex", func(t *testing.T) { testLostIndex(t, h, g) })
	t.Run("DamagedPack", func(t *testing.T) { testDamagedPack(t, h) })
	t.Run("Unencrypted", func(t *testing.T) { testUnencrypted(t, g) })
	t.Run("FreeSpace", func(t *testing.T) { testFreeSpace(t, h, g) })
}

// testBusy: two backups of one VM do not meet in QEMU. The first is halted
// while it reads, so that the second must find it.
func testBusy(t *testing.T, h *host) {
	r := h.start(t, "backup", vmName, "--json")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the run ended before it read: %+v", r.wait())
	}
	r.signal(t, syscall.SIGSTOP)
	busy := h.run(t, exitFailed, "backup", vmName, "--index-wait", "1s")
	t.Logf("the second of two: %s", busy.stderr)
	busy.mentions(t, "another")
	h.run(t, exitOK, "points")
	r.signal(t, syscall.SIGCONT)
	if got := r.wait(); got.code != exitOK {
		t.Errorf("the first of two: exit code %d\n%s", got.code, got.stderr)
	}
}

// testRestoredVM: the proof of a backup is a VM that boots from it.
func testRestoredVM(t *testing.T, h *host, g *lab.Guest) {
	const sum = "cat /home/anna/photo.jpg /home/anna/notes.md /srv/third /srv/data/* | md5sum"
	labtest.Shell(t, g, "sync")
	s := h.backup(t)
	qcow2 := filepath.Join(h.dir, "vdb-back.qcow2")
	h.run(t, exitOK, "restore", s.Point, "--disk", "vdb", "--to", qcow2, "--format", "qcow2", "--quiet")
	raw := h.restoreDisk(t, s.Point, "vda")
	back := labtest.Start(t, func(o *lab.Options) {
		o.Disks = []lab.Disk{{ID: "vda", Format: "raw", Path: raw}, {ID: "vdb", Format: "qcow2", Path: qcow2}}
	})
	if got, want := labtest.Shell(t, back, sum), labtest.Shell(t, g, sum); got != want {
		t.Errorf("the restored guest has %s, the guest %s", got, want)
	}
	isAlive(t, back)
	if out := labtest.Shell(t, back, "dmesg | grep -i 'EXT4-fs error' || :"); out != "" {
		t.Errorf("the restored guest's kernel says: %s", out)
	}
	back.Close()
}

// testExcludedDisk: a disk that was left out of some points is read whole
// when it is wanted again, whatever bitmap of it is still there.
func testExcludedDisk(t *testing.T, h *host, g *lab.Guest) {
	h.backup(t)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket, "--exclude", "vdb", "--replace")
	labtest.Shell(t, g, "head -c 300000 /dev/urandom >/srv/excluded; sync")
	if s := h.backup(t); s.BytesDisk != 512<<20 || s.Read != "incremental" {
		t.Errorf("with one disk left out: %+v", s)
	}
	if list := h.points(t); len(list[len(list)-1].Disks) != 1 {
		t.Errorf("with one disk left out: %+v", list[len(list)-1])
	}
	h.run(t, exitOK, "show", vmName+"@latest").mentions(t, "left out: excluded")
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket, "--replace")
	if s := backupPaused(t, h, g); s.Read != "full" {
		t.Errorf("with all disks again: %+v", s)
	}
	labtest.Shell(t, g, "head -c 300000 /dev/urandom >/srv/excluded; sync")
	if s := backupPaused(t, h, g); s.Read != "incremental" {
		t.Errorf("the one behind it: %+v", s)
	}
	isTidy(t, h, g)
}
