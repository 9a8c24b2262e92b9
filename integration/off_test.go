package integration

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/labtest"
)

// offZoo makes a VM with a qcow2 disk on a backing file and a qcow2 disk, which
// was backed up once while it ran, and is off.
func offZoo(t *testing.T, h *host) *zoo {
	t.Helper()
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, bytes.Repeat([]byte("base"), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vda, vdb := filepath.Join(dir, "vda.qcow2"), create(t, dir, "vdb.qcow2", "qcow2", "")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", vda)
	z := newZoo(t, h, []zooDisk{{"vda", vda, "qcow2"}, {"vdb", vdb, "qcow2"}},
		"-blockdev", "driver=qcow2,node-name=n-vda,file.driver=file,file.filename="+vda, "-device", "virtio-blk-pci,id=vda,drive=n-vda,serial=VDA",
		"-blockdev", "driver=qcow2,node-name=n-vdb,file.driver=file,file.filename="+vdb, "-device", "virtio-blk-pci,id=vdb,drive=n-vdb,serial=VDB")
	z.start()
	z.write(1, 1<<20, 3<<20)
	h.backup(t)
	z.write(2, 2<<20, 4096)
	z.quit()
	return z
}

// TestOffStarted: the VM starts while its images are read: its start
// succeeds, and the run makes its point of the running VM.
func TestOffStarted(t *testing.T) {
	h := newHost(t)
	z := offZoo(t, h)
	r := h.start(t, "backup", vmName, "--full-read", "--read-limit", "4MiB")
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the backup ended before it read: %+v", r.wait())
	}
	z.start()
	before := z.images("before")
	z.write(3, 4<<20, 4096) // before the point, or behind it: the run does not wait for it
	got := r.wait()
	after := z.images("after")
	if got.code != exitOK {
		t.Fatalf("exit code %d: %s", got.code, got.stderr)
	}
	got.mentions(t, "once more")
	if s := h.show(t); s.Consistency.Reason == "" || strings.Contains(s.Consistency.Reason, "was off") {
		t.Errorf("the point is not of the running VM: %+v", s)
	}
	for i, d := range z.disks {
		restored := h.restoreDisk(t, vmName+"@latest", d.name)
		if !equalFiles(t, restored, before[i]) {
			sameImage(t, "started in mid-read, and not as before the write: disk "+d.name, restored, after[i])
		}
	}
	z.write(4, 6<<20, 4096)
	if s := h.backup(t); s.Read != "incremental" {
		t.Errorf("the next run: %+v", s)
	}
	z.same(h, "the next run")
	z.quit()
}

// TestOffRefusals: what keeps an image from being read is said, and what to do.
func TestOffRefusals(t *testing.T) {
	h := newHost(t)
	z := offZoo(t, h)
	disk := z.disks[1].file
	other := exec.Command("qemu-io", "-f", "qcow2", disk) // holds it until its stdin ends
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	// It answers when it has opened, and so locked, the image.
	if _, err := io.WriteString(stdin, "length\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("qemu-io says %q: %v", line, err)
	}
	h.run(t, exitFailed, "backup", vmName).mentions(t, "open for writing")
	if err := errors.Join(stdin.Close(), other.Wait()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(disk, disk+".away"); err != nil {
		t.Fatal(err)
	}
	h.run(t, exitFailed, "backup", vmName).mentions(t, "no such file")
	h.run(t, exitFailed, "backup", vmName).mentions(t, "cairn vm add")
	// It was moved: registered anew, the backup goes on, in full as the file is another.
	h.run(t, exitOK, "vm", "add", vmName, "--replace", "--qmp", z.socket, "--disk", "vdb="+disk+".away")
	z.disks[1].file = disk + ".away"
	h.backup(t)
	z.same(h, "moved")
	s := h.show(t)
	s.wants(t, "moved", "vda", "incremental", "recorded all changes")
	s.wants(t, "moved", "vdb", "full", "image files changed")
	for _, c := range []struct{ disk, want string }{
		{"vdb", "NAME=FILE"}, {"vdb=vdb.qcow2", "from the root on"}, {"vdb=" + filepath.Join(z.dir, "no"), "no such file"}, {"vdb=/dev/null,format=vmdk", "only qcow2 and raw"},
		{"vda=" + filepath.Join(filepath.Dir(disk), "base.raw"), "if it is raw, say so"}, {"vda=" + z.disks[0].file, "say what it is"},
	} {
		h.run(t, exitUsage, "vm", "add", "x", "--disk", c.disk).mentions(t, c.want)
	}
}

// TestOffTwoRepositories: each repository has its own bitmaps in the images.
func TestOffTwoRepositories(t *testing.T) {
	h, other := newHost(t), newHost(t)
	z := offZoo(t, h)
	other.run(t, exitOK, "vm", "add", vmName, "--disk", "vda="+z.disks[0].file+",format=qcow2,serial=VDA", "--disk", "vdb="+z.disks[1].file)
	for i := range 3 {
		for n, at := range []*host{h, other} {
			z.write(10+i*2+n, int64(3+i)<<20, 4096)
			s := at.backup(t)
			if first := i == 0 && n == 1; first == (s.Read == "incremental") {
				t.Errorf("run %d of repository %d: %s: %s", i, n, s.Read, s.Reason)
			}
			z.same(at, "repository "+strconv.Itoa(n))
		}
	}
	tool(t, "qemu-img", "check", "-q", z.disks[0].file)
	if got := strings.Count(tool(t, "qemu-img", "info", z.disks[0].file), "name: cairn-"); got > 4 {
		t.Errorf("%d bitmaps are in the image", got)
	}
}

// TestOffKilled: cairn is killed at instants all over its run. No daemon is
// left, the image is whole, and the next run is right.
func TestOffKilled(t *testing.T) {
	h := newHost(t)
	z := offZoo(t, h)
	began := time.Now()
	h.backup(t)
	whole := time.Since(began)
	rounds := 12
	if labtest.Long() {
		rounds = 150
	}
	killed := 0
	for i := range rounds {
		z.write(20+i%200, int64(i%6+1)<<20, 4096)
		r := h.start(t, "backup", vmName)
		time.Sleep(whole * time.Duration(i) / time.Duration(rounds))
		r.signal(t, syscall.SIGKILL)
		if r.wait().code == -1 {
			killed++
		}
		noDaemon(t, h)
		for _, d := range z.disks {
			tool(t, "qemu-img", "check", "-q", d.file)
		}
		if i%4 == 3 {
			h.backup(t)
			z.same(h, "after kills up to the "+strconv.Itoa(i)+"th")
		}
	}
	t.Logf("%d of %d runs of %v were killed", killed, rounds, whole)
	if killed < rounds/4 { // a busy host may have been slower when it was measured
		t.Errorf("only %d of %d runs were killed", killed, rounds)
	}
	z.start()
	z.write(19, 7<<20, 4096)
	h.backup(t)
	z.same(h, "on again")
	z.write(18, 6<<20, 4096)
	z.kill() // as a power failure does
	if s := h.backup(t); s.Read != "full" || !strings.Contains(s.Reason, "ended without closing the image") {
		t.Errorf("after a power failure: %s: %s", s.Read, s.Reason)
	}
	z.same(h, "off after a power failure")
}

// noDaemon waits until no qemu-storage-daemon of the host's state folder is left.
func noDaemon(t *testing.T, h *host) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left := ""
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range lines {
			b, err := os.ReadFile(f)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			if strings.Contains(string(b), "qemu-storage-daemon\x00") && strings.Contains(string(b), h.state) {
				left = f
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a daemon outlives cairn: %s", left)
		}
	}
}
