package lab_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestGuest boots one guest and asks it for everything that does not end it.
func TestGuest(t *testing.T) {
	inject := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(inject, []byte("#!/bin/sh\necho injected\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	g := labtest.Start(t, func(o *lab.Options) {
		o.Inject = map[string]string{"bin/hello": inject}
		o.Disks[1].IOThread = true
	})
	t.Run("shell", func(t *testing.T) { shell(t, g) })
	t.Run("time-out", func(t *testing.T) { shellTimeout(t, g) })
	t.Run("contents", func(t *testing.T) { contents(t, g) })
	t.Run("monitor", func(t *testing.T) { monitor(t, g) })
	t.Run("live disk", func(t *testing.T) { liveDisk(t, g) })
}

func shell(t *testing.T, g *lab.Guest) {
	if got := labtest.Shell(t, g, "echo 'a  b'; echo err >&2; printf 'no newline'"); got != "a  b\nerr\nno newline" {
		t.Errorf("output %q", got)
	}
	if got := labtest.Shell(t, g, "/run/inject/bin/hello"); got != "injected\n" {
		t.Errorf("injected program: %q", got)
	}
	var bad *lab.ShellError
	out, err := g.Shell(t.Context(), "echo oh; exit 7")
	if !errors.As(err, &bad) || bad.Code != 7 || out != "oh\n" {
		t.Errorf("exit 7: output %q, error %v", out, err)
	}
	// Every byte value comes back as it is, and so does a long command.
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	got := labtest.Shell(t, g, `i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i+1)); done`)
	if got != string(all) {
		t.Errorf("bytes come back changed: %q", got)
	}
	long := strings.Repeat("x", 20_000)
	if got := labtest.Shell(t, g, "echo "+long); got != long+"\n" {
		t.Errorf("long command: %d bytes came back, want %d", len(got), len(long)+1)
	}
}

func shellTimeout(t *testing.T, g *lab.Guest) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := g.Shell(ctx, "echo begun; sleep 1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("command without end: error %v, want the deadline", err)
	}
	if got := labtest.Shell(t, g, "echo alive; ps | grep -c '[s]leep 1000' || true"); got != "alive\n0\n" {
		t.Errorf("after a time-out: %q", got)
	}
}

// contents looks at what the build cannot see from outside: that the kernel
// finds the awkward files as they were meant.
func contents(t *testing.T, g *lab.Guest) {
	for _, c := range []struct{ command, want string }{
		{"awk '$2==\"/\"||$2==\"/srv\" {print $1,$2,$3}' /proc/mounts", "/dev/vda2 / ext4\n/dev/vdb /srv ext4\n"},
		{"cat /run/mount-errors", ""},
		{"stat -c '%h %F' /var/lib/awkward/other/hard-c", "3 regular file\n"},
		{"stat -c '%F %t %T %a' /var/lib/awkward/device-block", "block special file fe 63 640\n"},
		{"stat -c '%F %a' /var/lib/awkward/fifo", "fifo 644\n"},
		{"stat -c '%a' /var/lib/awkward/setuid", "6755\n"},
		{"stat -c '%U %G %a' /home/anna/letters", "anna anna 700\n"},
		{"readlink /var/lib/awkward/link-absolute", "/etc/passwd\n"},
		{"test $(du -k /var/lib/awkward/sparse | cut -f1) -le 16 && stat -c %s /var/lib/awkward/sparse", "1073741824\n"},
		{"ls /var/lib/many | wc -l", "2000\n"},
		{"getfattr --absolute-names --only-values -n user.cairn /var/lib/awkward/xattrs", "stone"},
		{"getfattr --absolute-names --only-values -n user.large /var/lib/awkward/xattrs | wc -c", "3000\n"},
		{"getfacl -p -c /var/lib/awkward/xattrs | grep anna", "user:anna:rw-\n"},
		{"cat /srv/www/index.html | cut -c1-15", "<!doctype html>\n"},
		{"pidof qemu-ga | wc -w", "1\n"},
		{"modprobe xfs && grep -c '^\txfs' /proc/filesystems; modprobe dm-mod && echo dm", "1\ndm\n"},
	} {
		if got := labtest.Shell(t, g, c.command); got != c.want {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
}

func monitor(t *testing.T, g *lab.Guest) {
	var schema []map[string]any
	if err := g.Command(t.Context(), "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100 {
		t.Errorf("schema of %d entries, error %v", len(schema), err)
	}
	var bad *lab.CommandError
	if err := g.Command(t.Context(), "no-such-command", nil, nil); !errors.As(err, &bad) || bad.Class != "CommandNotFound" {
		t.Errorf("unknown command: %v", err)
	}
	for _, command := range []string{"stop", "cont"} {
		if err := g.Command(t.Context(), command, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, event := range []string{"STOP", "RESUME"} {
		if _, err := g.WaitEvent(t.Context(), event); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := g.WaitEvent(ctx, "STOP"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an event that does not come: %v", err)
	}
}

// liveDisk compares the copy that the host takes with what the guest reads,
// and looks whether the guest goes on afterwards.
func liveDisk(t *testing.T, g *lab.Guest) {
	labtest.Shell(t, g, "dd if=/dev/urandom of=/srv/new bs=64k count=16 2>/dev/null; sync; fsfreeze --freeze /srv")
	want := labtest.Shell(t, g, "head -c 64m </dev/vdb | sha256sum | cut -d' ' -f1")
	file := filepath.Join(t.TempDir(), "vdb.raw")
	if err := g.CopyDisk(t.Context(), "vdb", file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data[:64<<20]) // more is slow in the guest
	if got := hex.EncodeToString(sum[:]) + "\n"; got != want {
		t.Errorf("copied disk has %s, the guest reads %s", got, want)
	}
	sum = sha256.Sum256(data)
	whole := hex.EncodeToString(sum[:])
	if got, err := g.HashDisk(t.Context(), "vdb"); err != nil || got != whole {
		t.Errorf("HashDisk: %s, %v, want %s", got, err, whole)
	}
	labtest.Shell(t, g, "fsfreeze --unfreeze /srv; echo more >/srv/more; sync")
	if got, err := g.HashDisk(t.Context(), "vdb"); err != nil || got == whole {
		t.Errorf("hash did not change after a write: %s, %v", got, err)
	}
}

// TestGuestEnds kills a guest, starts it again and shuts it down: what was
// synced is there, and the sockets work again.
func TestGuestEnds(t *testing.T) {
	g := labtest.Start(t, nil)
	ctx := t.Context()
	labtest.Shell(t, g, "echo first >/home/anna/first; sync")
	g.Kill()
	if g.Running() {
		t.Fatal("runs after Kill")
	}
	if err := g.Command(ctx, "query-status", nil, nil); !errors.Is(err, lab.ErrGone) {
		t.Errorf("command to a killed QEMU: %v", err)
	}
	if err := g.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if got := labtest.Shell(t, g, "cat /home/anna/first; echo second >/home/anna/second"); got != "first\n" {
		t.Errorf("after kill: %q", got)
	}
	if err := g.Poweroff(ctx); err != nil {
		t.Fatal(err)
	}
	// A poweroff syncs: the file is there in the disk of the guest that is off.
	raw := filepath.Join(t.TempDir(), "vda.raw")
	if err := g.CopyDisk(ctx, "vda", raw); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, "/usr/sbin/debugfs", "-R", "cat /home/anna/second", raw+"?offset=2097152").Output()
	if err != nil || string(out) != "second\n" {
		t.Errorf("after poweroff: %q, %v", out, err)
	}
}

// TestBareGuest needs no kernel: a stopped machine with a disk of 1 TiB that
// is quit,
// started again, and dies with its context.
func TestBareGuest(t *testing.T) {
	if err := lab.Available(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30)) // too long for a socket
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	disk, err := lab.BlankDisk(ctx, dir, "huge", "qcow2", 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	g, err := lab.Start(ctx, lab.Options{Dir: dir, Bare: true, Disks: []lab.Disk{disk}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var blocks []struct {
		Inserted struct {
			Image struct {
				VirtualSize int64 `json:"virtual-size"`
			}
		}
	}
	if err := g.Command(ctx, "query-block", nil, &blocks); err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 1 || blocks[0].Inserted.Image.VirtualSize != 1<<40 {
		t.Errorf("blocks %+v", blocks)
	}
	if err := g.Quit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	waitCtx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if err := g.Wait(waitCtx); errors.Is(err, context.DeadlineExceeded) || g.Running() {
		t.Errorf("QEMU outlives its context: %v", err)
	}
}
