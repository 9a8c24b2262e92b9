package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// loginTime is many times what a Debian takes to its login on a busy machine.
const loginTime = 4 * time.Minute

// TestDebianBootsAfterRestore: a real Debian with systemd is backed up while it
// runs, restored as a whole VM, and started by the script that the restore
// wrote: it comes up to its login.
func TestDebianBootsAfterRestore(t *testing.T) {
	h := newHost(t)
	g := startDebian(t)
	start := time.Now()
	awaitConsole(t, g.ConsoleLog, lab.DebianLogin)
	t.Logf("the original came to its login in %.1f s", time.Since(start).Seconds())
	awaitAgent(t, g, true)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket)
	s := h.backup(t)
	if s.Consistency != "filesystem" {
		t.Errorf("the backup: %+v", s)
	}
	g.Close()

	dir := filepath.Join(h.dir, "back")
	h.run(t, exitOK, "restore", s.Point, "--vm", "--to", dir, "--name", "web02", "--quiet")
	runScript(t, dir)
	start = time.Now()
	awaitConsole(t, filepath.Join(dir, "console.log"), lab.DebianLogin)
	t.Logf("the restored one came to its login in %.1f s", time.Since(start).Seconds())
	console, err := os.ReadFile(filepath.Join(dir, "console.log"))
	if err != nil || strings.Contains(string(console), "emergency mode") || strings.Contains(string(console), "EXT4-fs error") {
		t.Errorf("the restored Debian's console: %v\n%s", err, console)
	}
}

// startDebian starts the lab's Debian, and does not wait for it.
func startDebian(t *testing.T) *lab.Guest {
	t.Helper()
	labtest.Build(t)
	image, err := lab.Debian(t.Context(), t.Output())
	if errors.Is(err, lab.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return labtest.Start(t, func(o *lab.Options) {
		disk, err := lab.DebianDisk(t.Context(), o.Dir, image)
		if err != nil {
			t.Fatal(err)
		}
		o.Disks, o.Root, o.NoWait, o.MemoryMB = []lab.Disk{disk}, "LABEL="+lab.DebianLabel, true, 512
	})
}

// awaitConsole waits until a guest has written words to its console.
func awaitConsole(t *testing.T, log, words string) {
	t.Helper()
	var text []byte
	for start := time.Now(); time.Since(start) < loginTime; time.Sleep(100 * time.Millisecond) {
		var err error
		if text, err = os.ReadFile(log); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if strings.Contains(string(text), words) {
			return
		}
	}
	t.Fatalf("no %q on the console within %s: %s", words, loginTime, text[max(0, len(text)-2000):])
}
