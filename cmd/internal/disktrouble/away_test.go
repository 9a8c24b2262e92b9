package disktrouble

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// exitNoRepository is cairn's exit code for one that is not there.
const exitNoRepository = 10

// mounted lets the repository lie on a file system that can be unmounted.
func (h *host) mounted(t *testing.T) (unmount, mount func()) {
	t.Helper()
	real, at := h.repo, filepath.Join(h.dir, "disk")
	must(t, os.Mkdir(at, 0o700))
	is := false
	mount = func() {
		t.Helper()
		if err := unix.Mount(real, at, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("mounting needs root: %v", err)
		}
		is = true
	}
	unmount = func() {
		t.Helper()
		is = false
		must(t, unix.Unmount(at, unix.MNT_DETACH)) // as it goes when it is pulled
	}
	mount()
	t.Cleanup(func() {
		if is {
			unmount()
		}
	})
	h.repo = at
	return unmount, mount
}

// TestNotMounted: the repository's disk is not mounted when a command begins. Each
// says so, does not offer to make a repository there before that, and writes nothing
// into the folder.
func TestNotMounted(t *testing.T) {
	h := newHost(t)
	unmount, mount := h.mounted(t)
	mnt := filepath.Join(h.dir, "mnt")
	must(t, os.Mkdir(mnt, 0o700))
	h.run(t, exitOK, "vm", "add", "web01", "--qmp", "/nowhere.qmp")
	other := filepath.Join(h.dir, "other")
	h.init(t, other)
	unmount()
	for _, args := range [][]string{
		{"mount", mnt}, {"points"}, {"points", "--json"}, {"show", "web01@latest"}, {"ls", "web01@latest:/"}, {"find", "web01", "*"}, {"log", "web01:/etc/fstab"}, {"check"}, {"check", "--read-data"}, {"check", "--keyless"},
		{"gc"}, {"forget", "--keep-last", "1"}, {"backup", "web01"}, {"restore", "web01@latest:/etc", "--to", filepath.Join(h.dir, "back")}, {"catalogue", "--all"}, {"copy", "--all", "--to", other}, {"pin", "web01@latest"},
		{"repair", "index"}, {"repair", "places"}, {"key", "ls"},
	} {
		said := h.run(t, exitNoRepository, args...)
		if !strings.Contains(said, h.repo) || !strings.Contains(said, "is not mounted") {
			t.Errorf("%q says: %s", args, said)
		}
	}
	mentions(t, func() string {
		o := *h
		o.repo = other
		return o.run(t, exitNoRepository, "copy", "--all", "--to", h.repo)
	}(), h.repo, "is not mounted")
	if left := list(t, h.repo); len(left) > 0 {
		t.Errorf("written where the disk is mounted: %q", left)
	}
	mount()
	mentions(t, h.run(t, exitOK, "points"), "web01")
}

// TestGoesAwayWhileMounted: the repository's disk goes while a mount shows it. The
// points stay listed, what cannot be read is an error, in the log are words; and when
// the disk is back, so is all.
func TestGoesAwayWhileMounted(t *testing.T) {
	h := newHost(t)
	unmount, mount := h.mounted(t)
	mnt := filepath.Join(h.dir, "mnt")
	must(t, os.Mkdir(mnt, 0o700))
	h.run(t, exitOK, "mount", mnt)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	tells := func(name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		return string(out), err
	}
	if out, err := tells("ls", mnt); err != nil || !strings.Contains(out, "web01") {
		t.Fatal(out, err)
	}
	unmount()
	time.Sleep(1100 * time.Millisecond) // a listing is kept for a second
	if out, err := tells("ls", mnt, mnt+"/web01"); err != nil || !strings.Contains(out, "web01") || !strings.Contains(out, "latest") {
		t.Errorf("the points are gone: %s %v", out, err)
	}
	if out, err := tells("cat", mnt+"/web01/latest/fs/srv/big.bin"); err == nil || !strings.Contains(out, "Input/output error") {
		t.Errorf("a file is read: %.200s %v", out, err)
	}
	log := string(read(t, filepath.Join(h.dir, "state", "mount.log")))
	mentions(t, log, "the place is away", h.repo, "not mounted any more")
	for _, word := range []string{"missing", "damage"} {
		if strings.Contains(log, word) {
			t.Errorf("the log speaks of %s:\n%s", word, log)
		}
	}
	if left := list(t, h.repo); len(left) > 0 {
		t.Errorf("written where the disk was mounted: %q", left)
	}
	mount()
	time.Sleep(1100 * time.Millisecond)
	if b, err := os.ReadFile(mnt + "/web01/latest/fs/srv/big.bin"); err != nil || !bytes.Equal(b, h.big) {
		t.Errorf("it is back, and a file has %d bytes, %v", len(b), err)
	}
}

// TestGoesAwayWhileWorking: the disk goes while a check reads it, and while a copy
// writes to it: neither calls that damage, or done.
func TestGoesAwayWhileWorking(t *testing.T) {
	h := newHost(t)
	there := *h
	there.repo = filepath.Join(h.dir, "offsite")
	h.init(t, there.repo)
	unmount, mount := there.mounted(t)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	gone := func(cmd *exec.Cmd, begun func() bool) string {
		t.Helper()
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		must(t, cmd.Start())
		for !begun() {
			time.Sleep(time.Millisecond)
		}
		unmount()
		_ = cmd.Wait() // the code says it
		if code := cmd.ProcessState.ExitCode(); code != exitNoRepository {
			t.Errorf("exit code %d:\n%s", code, &said)
		}
		if left := list(t, there.repo); len(left) > 0 {
			t.Errorf("written where the disk was mounted: %q", left)
		}
		return said.String()
	}
	args := []string{"copy", "web01@latest", "--to", there.repo}
	said := gone(h.command(ctx, append(args, "--write-limit", "4MiB")...), func() bool {
		list, _ := filepath.Glob(filepath.Join(there.repo, "sessions/*"))
		return len(list) > 0
	})
	mentions(t, said, "the place is away", there.repo)
	mount()
	h.run(t, exitOK, args...)
	there.sound(t)

	begin := time.Now()
	said = gone(there.command(ctx, "check", "--read-data", "--rate", "3MiB"), func() bool { return time.Since(begin) > 500*time.Millisecond })
	mentions(t, said, "the place is away", there.repo)
	mount()
	there.sound(t)
}
