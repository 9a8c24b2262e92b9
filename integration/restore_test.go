package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
	"cairn/integration/lab/product"
)

// runScript runs the script that starts a restored VM, which ends with the
// test.
func runScript(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(dir, "start.sh"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("start.sh said: %s", out.String())
		}
	})
}

// TestRestoreInPlace: after a restore into the images that the VM has, no
// backup believes the bitmaps of before. One disk is a qcow2, which keeps
// bitmaps over a restart of QEMU, the other is raw.
func TestRestoreInPlace(t *testing.T) {
	h := newHost(t)
	var raw lab.Disk
	g := labtest.Start(t, func(o *lab.Options) {
		var err error
		if raw, err = lab.Standalone(t.Context(), o.Dir, o.Disks[1], "raw"); err != nil {
			t.Fatal(err)
		}
		o.Disks[1] = raw
	})
	awaitAgent(t, g, true)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket)
	labtest.Shell(t, g, "echo first >/root/which; echo first >/srv/which; sync")
	first := h.backup(t)
	labtest.Shell(t, g, "echo second >/root/which; echo second >/srv/which; head -c 3000000 /dev/urandom >/root/r; sync; echo 3 >/proc/sys/vm/drop_caches")
	if s := h.backup(t); s.Read != "incremental" {
		t.Fatalf("the second backup: %+v", s)
	}
	vda := filepath.Join(filepath.Dir(raw.Path), "vda.qcow2")
	inPlace := func(code int, disk, format, path string) result {
		t.Helper()
		return h.run(t, code, "restore", first.Point, "--disk", disk, "--format", format, "--to", path, "--delta", "--json", "--quiet")
	}
	inPlace(exitFailed, "vda", "qcow2", vda).mentions(t, "in use")
	inPlace(exitFailed, "vdb", "raw", raw.Path).mentions(t, "in use")
	if err := g.Poweroff(t.Context()); err != nil {
		t.Fatal(err)
	}
	var done struct {
		Removed  []string `json:"bitmaps_removed"`
		Written  int64    `json:"bytes_written"`
		Verified int64    `json:"bytes_verified"`
	}
	inPlace(exitOK, "vda", "qcow2", vda).decode(t, &done)
	if len(done.Removed) == 0 || done.Written == 0 || done.Written > 64<<20 || done.Verified < done.Written {
		t.Errorf("vda: %+v", done)
	}
	inPlace(exitOK, "vdb", "raw", raw.Path).decode(t, &done)
	if done.Written == 0 || done.Written > 64<<20 {
		t.Errorf("vdb: %+v", done)
	}
	boot(t, g)
	if out := labtest.Shell(t, g, "cat /root/which /srv/which"); out != "first\nfirst\n" {
		t.Errorf("the guest has %q after the restore", out)
	}
	s := backupPaused(t, h, g)
	if s.Read != "full" || s.BytesRead < 256<<20 || !strings.Contains(s.Reason, "bitmap") {
		t.Errorf("the backup after the restore: %+v", s)
	}
	labtest.Shell(t, g, "echo third >/root/which; sync")
	if s = backupPaused(t, h, g); s.Read != "incremental" {
		t.Errorf("the one after it: %+v", s)
	}
}

// TestRestoredVMRunsBesideTheOriginal: restore --vm and the script that it
// writes, while the original runs on; and the restored one is backed up itself.
func TestRestoredVMRunsBesideTheOriginal(t *testing.T) {
	h := newHost(t)
	h.sparing = true
	g := labtest.Start(t, func(o *lab.Options) {
		o.UUID = "0c41a12e-5a0b-4a0e-9d53-1ab0000000aa"
		o.ExtraArgs = []string{"-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56"}
	})
	awaitAgent(t, g, true)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket)
	labtest.Shell(t, g, "echo from the original >/srv/marker; sync")
	s := h.backup(t)
	dir := filepath.Join(h.dir, "b")
	var made struct {
		UUID    string `json:"uuid"`
		Machine struct {
			MACs     []string `json:"macs"`
			Warnings []string `json:"warnings"`
		} `json:"machine"`
	}
	h.run(t, exitOK, "restore", s.Point, "--vm", "--to", dir, "--name", "web02", "--format", "qcow2", "--json", "--quiet").decode(t, &made)
	if len(made.Machine.MACs) != 1 || made.Machine.MACs[0] == "52:54:00:12:34:56" || len(made.Machine.Warnings) > 0 {
		t.Errorf("the restored VM: %+v", made)
	}
	h.run(t, exitFailed, "restore", s.Point, "--vm", "--to", dir).mentions(t, "not empty")
	runScript(t, dir)
	awaitConsole(t, filepath.Join(dir, "console.log"), "BOOTED")
	back := lab.Attach(dir)
	if out := labtest.Shell(t, back, "cat /srv/marker"); out != "from the original\n" {
		t.Errorf("the restored guest has %q", out)
	}
	var name struct{ Name string }
	var uuid struct{ UUID string }
	if err := errors.Join(back.Command(t.Context(), "query-name", nil, &name), back.Command(t.Context(), "query-uuid", nil, &uuid)); err != nil {
		t.Fatal(err)
	}
	if name.Name != "web02" || uuid.UUID != made.UUID || uuid.UUID == "0c41a12e-5a0b-4a0e-9d53-1ab0000000aa" {
		t.Errorf("the restored VM is %q %s, the report says %s", name.Name, uuid.UUID, made.UUID)
	}
	isAlive(t, g)
	isAlive(t, back)
	h.run(t, exitOK, "vm", "add", "web02", "--qmp", filepath.Join(dir, "qmp.sock"))
	if s := summaryOf(t, h.run(t, exitOK, "backup", "web02", "--json", "--no-freeze")); s.Read != "full" || s.BytesStored > 16<<20 {
		t.Errorf("the restored VM's own backup: %+v", s)
	}
	h.run(t, exitOK, "cat", "web02@latest:/root/alive")
}

// booted is what `cairn boot --json` says.
type booted struct {
	Type     string `json:"message_type"`
	Dir      string `json:"dir"`
	QMP      string `json:"qmp"`
	PID      int    `json:"pid"`
	Finished bool   `json:"finished"`
}

// lastMessage reads the last line of a run's output.
func lastMessage(t *testing.T, r result) (b booted) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &b); err != nil {
		t.Fatalf("cairn %s: %v: %s", strings.Join(r.args, " "), err, r.stdout)
	}
	return b
}

// isRunningProcess says whether a process lives: one that has ended and that
// nobody waited for does not.
func isRunningProcess(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}

// TestBoot: a VM runs at once from the mount; what it writes is kept when it is
// ended and when cairn boot is killed; --finish copies the rest while it runs,
// and after that it needs neither the mount nor the repository.
func TestBoot(t *testing.T) {
	t.Parallel() // it boots guests of its own, and measures no time
	h := newHost(t)
	h.sparing = true
	g := startVM(t, h)
	labtest.Shell(t, g, "echo from the point >/srv/marker; sync")
	s := h.backup(t)
	g.Close()
	dir := filepath.Join(h.dir, "b")
	mnt := filepath.Join(dir, "mnt")
	t.Cleanup(func() { h.start(t, "boot", "--dir", dir, "--stop", "--grace", "0s").wait() })
	h.run(t, exitUsage, "boot", "--dir", dir).mentions(t, "restore point")

	r := h.start(t, "boot", s.Point, "--dir", dir, "--name", "web02")
	back := awaitBooted(t, dir)
	if out := labtest.Shell(t, back, "cat /srv/marker"); out != "from the point\n" || !isMounted(t, mnt) {
		t.Errorf("the booted guest has %q, mounted: %v", out, isMounted(t, mnt))
	}
	labtest.Shell(t, back, "echo kept >/root/kept; head -c 2000000 /dev/urandom >/srv/kept; sync; md5sum /root/kept /srv/kept >/root/sums; sync")
	r.signal(t, syscall.SIGKILL)
	r.wait()
	isAlive(t, back)
	again := lastMessage(t, h.run(t, exitOK, "boot", "--dir", dir, "--detach", "--json"))
	if again.PID == 0 || again.Type != "booted" {
		t.Errorf("taken up again: %+v", again)
	}
	isAlive(t, back)

	t.Run("Stopped", func(t *testing.T) {
		h.run(t, exitOK, "boot", "--dir", dir, "--stop", "--grace", "0s")
		if isMounted(t, mnt) || isRunningProcess(again.PID) {
			t.Errorf("after --stop: mounted %v, QEMU runs %v", isMounted(t, mnt), isRunningProcess(again.PID))
		}
		if err := os.Remove(filepath.Join(dir, "console.log")); err != nil { // of the last boot
			t.Fatal(err)
		}
		r := h.start(t, "boot", "--dir", dir, "--grace", "0s")
		back := awaitBooted(t, dir)
		labtest.Shell(t, back, "md5sum -c /root/sums")
		r.signal(t, syscall.SIGINT)
		if got := r.wait(); got.code != exitInterrupted || isMounted(t, mnt) {
			t.Errorf("after Ctrl-C: exit code %d, mounted: %v\n%s", got.code, isMounted(t, mnt), got.stderr)
		}
	})
	t.Run("LostMount", func(t *testing.T) { testLostMount(t, h, dir) })
	t.Run("Finished", func(t *testing.T) { testFinish(t, h, dir) })
}

// awaitBooted waits until the guest in a folder of cairn boot has booted.
func awaitBooted(t *testing.T, dir string) *lab.Guest {
	t.Helper()
	awaitConsole(t, filepath.Join(dir, "console.log"), "BOOTED")
	return lab.Attach(dir)
}

// testLostMount kills the mount under a VM: the VM stops and its guest sees no
// error; what it wrote is there when it is booted again.
func testLostMount(t *testing.T, h *host, dir string) {
	h.run(t, exitOK, "boot", "--dir", dir, "--detach")
	back := awaitBooted(t, dir)
	labtest.Shell(t, back, "echo before >/root/before; sync; echo 3 >/proc/sys/vm/drop_caches")
	for _, pid := range product.Processes(os.Getenv(cairnEnv)) {
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(line), dir+"/mnt") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := back.Shell(ctx, "cat /var/lib/many/* /srv/data/* >/dev/null")
	var status struct{ Status string }
	if serr := back.Command(t.Context(), "query-status", nil, &status); serr != nil || status.Status != "io-error" || err == nil {
		t.Errorf("with its mount killed the VM is %q (%v), and reading: %v", status.Status, serr, err)
	}
	h.run(t, exitOK, "boot", "--dir", dir, "--stop", "--grace", "0s")
	h.run(t, exitOK, "boot", "--dir", dir, "--detach")
	labtest.Shell(t, awaitBooted(t, dir), "cat /root/before && md5sum -c /root/sums && cat /var/lib/many/* /srv/data/* >/dev/null")
	h.run(t, exitOK, "boot", "--dir", dir, "--stop", "--grace", "0s")
}

// testFinish copies the rest while the guest writes, then takes the repository
// away.
func testFinish(t *testing.T, h *host, dir string) {
	mnt := filepath.Join(dir, "mnt")
	h.run(t, exitOK, "boot", "--dir", dir, "--detach")
	back := awaitBooted(t, dir)
	before := labtest.Shell(t, back, "cat /var/lib/many/* /srv/data/* /home/anna/photo.jpg | md5sum")
	startWriter(t, back)
	done := lastMessage(t, h.run(t, exitOK, "boot", "--dir", dir, "--finish", "--json"))
	if n := stopWriter(t, back); n < 5 {
		t.Errorf("the guest wrote %d times meanwhile", n)
	}
	if done.Type != "finished" || !done.Finished || isMounted(t, mnt) {
		t.Errorf("finished: %+v, mounted: %v", done, isMounted(t, mnt))
	}
	away := h.repo + ".away"
	if err := os.Rename(h.repo, away); err != nil {
		t.Fatal(err)
	}
	for _, disk := range guestDisks {
		out, err := exec.CommandContext(t.Context(), "qemu-img", "info", "-U", filepath.Join(dir, disk+".qcow2")).CombinedOutput()
		if err != nil || strings.Contains(string(out), "backing") {
			t.Errorf("%s: %v\n%s", disk, err, out)
		}
	}
	labtest.Shell(t, back, "echo 3 >/proc/sys/vm/drop_caches")
	if after := labtest.Shell(t, back, "cat /var/lib/many/* /srv/data/* /home/anna/photo.jpg | md5sum; md5sum -c /root/sums >/dev/null && echo kept"); after != before+"kept\n" {
		t.Errorf("the guest reads %q, and before %q", after, before)
	}
	isAlive(t, back)
	h.run(t, exitOK, "boot", "--dir", dir, "--stop", "--grace", "0s")
	h.run(t, exitOK, "boot", "--dir", dir, "--detach") // without the repository
	back = awaitBooted(t, dir)
	isAlive(t, back)
	if out := labtest.Shell(t, back, "dmesg | grep -iE 'EXT4-fs error|I/O error' || :"); out != "" {
		t.Errorf("the guest's kernel says: %s", out)
	}
	h.run(t, exitOK, "boot", "--dir", dir, "--stop", "--grace", "0s")
	if err := os.Rename(away, h.repo); err != nil {
		t.Fatal(err)
	}
}
