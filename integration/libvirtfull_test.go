package integration

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/qmp"
	"cairn/qmp/libvirt"
)

// testFullScratch: the guest overwrites more than the scratch space holds, and
// nobody reads. libvirt's method pauses the guest for that. The watcher ends
// the backup and lets it go on; no write fails.
func testFullScratch(t *testing.T, h *host, d *domain) {
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tmpfs := filepath.Join(d.dir, "small")
	h.run(t, exitFailed, "backup", vmName, "--scratch", tmpfs).mentions(t, "too little free space")
	tool(t, "rmdir", filepath.Join(tmpfs, vmName)) // nothing else may be in it
	dom, err := libvirt.Open(ctx, d.uri, d.name, tmpfs)
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Close()
	m, err := dom.Inspect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	o := qmp.FleeceOptions{Repo: "0123abcd", Seq: 1, ScratchDir: tmpfs, MinScratch: 1 << 20}
	for _, disk := range m.Disks {
		if disk.Name == "vdb" {
			o.Disks = append(o.Disks, qmp.FleeceDisk{Disk: disk})
		}
	}
	d.shell(t, "dd if=/dev/urandom of=/srv/big bs=1M count=32 2>/dev/null; sync")
	fleece, err := dom.Prepare(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer fleece.Release(context.WithoutCancel(ctx))
	if _, err := fleece.Point(ctx, false); err != nil {
		t.Fatal(err)
	}
	sources, err := fleece.Export(ctx)
	if err != nil {
		t.Fatal(err)
	}
	standsStill := d.watchEvents(t)
	begin := time.Now()
	d.shell(t, "dd if=/dev/urandom of=/srv/big bs=1M count=32 conv=notrunc 2>/dev/null && sync && cmp /srv/big /srv/big") // it fails the test if a write fails
	t.Logf("the guest wrote 32 MiB over a scratch space of 16 MiB in %.1f s", time.Since(begin).Seconds())
	d.isAlive(t)
	t.Logf("libvirt's events: %s", standsStill())
	buf := make([]byte, 4096)
	if _, err := sources[0].ReadAt(ctx, buf, 0); !errors.Is(err, qmp.ErrFleeceBroken) {
		t.Errorf("a read of the broken fleece: %v", err)
	}
	if err := fleece.Release(ctx); err != nil {
		t.Error(err)
	}
	if !strings.Contains(d.virsh(t, "domjobinfo", d.name), "None") {
		t.Error("the backup still runs")
	}
	if err := dom.Advance(ctx, o.Repo, 2); err != nil {
		t.Error(err)
	}
	if s := d.backupPaused(t, h, "vdc"); s.Read != "incremental" {
		t.Errorf("behind it: %+v", s)
	}
}

// watchEvents notes when the domain is suspended and resumed. The returned
// function ends that and gives it.
func (d *domain) watchEvents(t *testing.T) func() string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "stdbuf", "-oL", "virsh", "-q", "-c", d.uri, "event", "--domain", d.name, "--event", "lifecycle", "--loop", "--timestamp")
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // it registers
	return func() string {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if !strings.Contains(out.String(), "Suspended") || !strings.Contains(out.String(), "Resumed") {
			t.Errorf("the guest was not held up and let go: %q", out.String())
		}
		return out.String()
	}
}

// testBrokenAtThePoint: a bitmap goes between the plan and the point. libvirt
// refuses the increment, and the same run reads all.
func testBrokenAtThePoint(t *testing.T, _ *host, d *domain) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	scratch := filepath.Join(d.dir, "small")
	dom, err := libvirt.Open(ctx, d.uri, d.name, scratch)
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Close()
	m, err := dom.Inspect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	vdb := m.Disks[1]
	begin := func(seq uint64, dec qmp.Decision, before func()) (int64, string) {
		t.Helper()
		fleece, err := dom.Prepare(ctx, qmp.FleeceOptions{Repo: "0123abcd", Seq: seq, ScratchDir: scratch, MinScratch: 1 << 20,
			Disks: []qmp.FleeceDisk{{Disk: vdb, Decision: dec}}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := fleece.Release(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		}()
		before()
		if _, err := fleece.Point(ctx, false); err != nil {
			t.Fatal(err)
		}
		sources, err := fleece.Export(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return sources[0].DirtyBytes(), fleece.Turned()
	}
	increment := func(seq uint64) qmp.Decision {
		return qmp.Decision{Incremental: true, Merge: []string{qmp.BitmapName("0123abcd", seq)}}
	}
	if dirty, turned := begin(1, qmp.Decision{}, func() {}); dirty != vdb.Size || turned != "" {
		t.Errorf("a full read: %d bytes, %q", dirty, turned)
	}
	if dirty, turned := begin(2, increment(1), func() {}); dirty == vdb.Size || turned != "" {
		t.Errorf("an increment: %d bytes, %q", dirty, turned)
	}
	dirty, turned := begin(3, increment(2), func() {
		name := qmp.BitmapName("0123abcd", 2)
		node := d.nodesWith(t, name)[0]
		d.virsh(t, "qemu-monitor-command", d.name, `{"execute":"block-dirty-bitmap-remove","arguments":{"node":"`+node+`","name":"`+name+`"}}`)
	})
	if dirty != vdb.Size || !strings.Contains(turned, "full read") {
		t.Errorf("an increment whose bitmap went: %d bytes, %q", dirty, turned)
	}
	if err := dom.Advance(ctx, "0123abcd", 4); err != nil {
		t.Error(err)
	}
	for _, name := range d.checkpoints(t) {
		if strings.HasPrefix(name, "cairn-0123abcd-") {
			t.Errorf("checkpoint %s is left", name)
		}
	}
}

// testIOThread: the domain's disks are on an iothread, and QEMU 7.2 dies with
// a client that is killed while it reads. So cairn is killed at any moment, and
// the guest lives.
func testIOThread(t *testing.T, h *host, old *domain) {
	old.virsh(t, "destroy", old.name)
	d := old.defineDomain(t, "threaded", true)
	h.run(t, exitOK, "vm", "add", vmName, "--libvirt", d.uri, "--domain", "threaded", "--replace")
	h.run(t, exitOK, "doctor", vmName).mentions(t, "iothread 1")
	if s := h.backup(t); s.Read != "full" {
		t.Errorf("another VM's disks: %+v", s)
	}
	d.change(t, 200)
	s := d.backupPaused(t, h)
	if s.BytesDirty > 40<<20 || !strings.Contains(s.Reason, "vdc: full read: the format is raw") {
		t.Errorf("an incremental of the iothread's disks: %+v", s)
	}
	pid := d.processes(t, "/usr/bin/qemu-system-x86_64", "guest=threaded,")
	for _, at := range []moment{{"point", 20 * time.Millisecond}, {"read", 0}, {"read", 100 * time.Millisecond}} {
		r := h.start(t, "backup", vmName, "--quiet", "--full-read")
		if !h.awaitMoment(t, r, at) {
			t.Fatalf("%v: the run ended before: %+v", at, r.wait())
		}
		r.signal(t, syscall.SIGKILL)
		r.wait()
		d.isAlive(t)
	}
	if now := d.processes(t, "/usr/bin/qemu-system-x86_64", "guest=threaded,"); len(pid) != 1 || len(now) != 1 || pid[0] != now[0] {
		t.Fatalf("QEMU was process %v and is %v", pid, now)
	}
	h.backup(t)
	d.change(t, 200)
	d.backupPaused(t, h)
	d.isTidy(t, h)
}
