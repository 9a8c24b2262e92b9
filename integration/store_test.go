package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// testKeys: the exit codes for a wrong key, no repository, and names that do
// not exist.
func testKeys(t *testing.T, h *host, first summary) {
	wrong := *h
	wrong.key = filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong.key, []byte("another passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong.run(t, exitWrongKey, "points")
	wrong.run(t, exitWrongKey, "backup", vmName)
	right := *h
	right.key = h.passphraseFile()
	right.run(t, exitOK, "points").mentions(t, first.Point[:8])
	none := *h
	none.repo = filepath.Join(t.TempDir(), "nothing")
	none.run(t, exitNoRepository, "points").mentions(t, "cairn init")
	h.run(t, exitUsage, "backup", "web99").mentions(t, vmName)
	h.run(t, exitUsage, "show", vmName+"@1999-01-01")
	h.run(t, exitUsage, "show", "ffffffff")
	h.run(t, exitUsage, "restore", first.Point, "--disk", "vdz", "--to", filepath.Join(h.dir, "never")).mentions(t, "vda")
	h.run(t, exitUsage, "points", "--no-such-flag")
}

// testLostIndex: what is in the cache can go at any time.
func testLostIndex(t *testing.T, h *host, g *lab.Guest) {
	if err := os.RemoveAll(h.cache); err != nil {
		t.Fatal(err)
	}
	labtest.Shell(t, g, "echo lost >>/srv/lost; sync")
	if s := backupPaused(t, h, g, "--full-read"); s.BytesStored > 4<<20 || s.Read != "full" {
		t.Errorf("without its index the backup stored %d bytes: %+v", s.BytesStored, s)
	}
	if err := os.RemoveAll(h.cache); err != nil {
		t.Fatal(err)
	}
	var rebuilt struct{ Objects, Points int }
	h.run(t, exitOK, "repair", "index", "--json").decode(t, &rebuilt)
	if n := len(h.points(t)); rebuilt.Points != n || rebuilt.Objects < n {
		t.Errorf("repair index found %d points in %d objects, there are %d", rebuilt.Points, rebuilt.Objects, n)
	}
	labtest.Shell(t, g, "echo again >>/srv/lost; sync")
	if s := backupPaused(t, h, g); s.Read != "incremental" {
		t.Errorf("behind a rebuilt index: %+v", s)
	}
}

// testDamagedPack: a flipped byte in a copy of the repository is found and
// named, and what does not need it can be read as before.
func testDamagedPack(t *testing.T, h *host) {
	points := h.points(t)
	first := points[0]
	damaged := *h
	damaged.repo = filepath.Join(t.TempDir(), "repo")
	damaged.cache = filepath.Join(t.TempDir(), "cache")
	if out, err := exec.Command("cp", "-a", h.repo, damaged.repo).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	victim := newestData(t, damaged.repo, points)
	flip(t, victim)
	damaged.run(t, exitOK, "points")
	r := damaged.run(t, exitDamage, "check", "--read-data", "--json")
	var report struct {
		Findings []struct{ Kind, Name, Disk, Error string }
	}
	if err := json.Unmarshal([]byte(r.stdout[strings.LastIndex(strings.TrimSpace(r.stdout), "\n")+1:]), &report); err != nil {
		t.Fatalf("check --json: %v\n%s", err, r.stdout)
	}
	named := map[string]bool{}
	for _, f := range report.Findings {
		if f.Error == "" {
			t.Errorf("a finding without a reason: %+v", f)
		}
		named[f.Kind] = true
		if f.Kind == "point" && strings.Contains(f.Name, vmName+"@") {
			named[f.Name] = true
		}
	}
	t.Logf("flipped a byte of %s: %d findings, %v", filepath.Base(victim), len(report.Findings), named)
	if !named["pack"] || !named["point"] {
		t.Errorf("check does not name the pack and the point: %s", r.stdout)
	}
	if named[dirNameOf(first)] {
		t.Errorf("the first point does not need the newest pack: %s", r.stdout)
	}
	for _, disk := range guestDisks {
		sameImage(t, "an undamaged point", damaged.restoreDisk(t, first.ID, disk), h.restoreDisk(t, first.ID, disk))
	}
}

func dirNameOf(p point) string { return p.VM + "@" + p.Time.UTC().Format("2006-01-02T15-04-05Z") }

// testUnencrypted: a repository without encryption serves as well.
func testUnencrypted(t *testing.T, g *lab.Guest) {
	h := bareHost(t)
	h.run(t, exitOK, "init", "--no-encryption")
	h.key = ""
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket)
	backupPaused(t, h, g)
	labtest.Shell(t, g, "echo plain >>/srv/plain; sync")
	if s := backupPaused(t, h, g); s.Read != "incremental" {
		t.Errorf("the second backup: %+v", s)
	}
}

// flip changes one byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 0x10
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
