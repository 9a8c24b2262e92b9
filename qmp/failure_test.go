package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/qmp/qmptest"
)

// TestKilledVMIsReadWhole: both faces of a crash. A bitmap of this session is
// gone, one of an earlier session comes back inconsistent and is removed.
func TestKilledVMIsReadWhole(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 * mib})
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, mib)
	must(t, b.run(false))
	v.kill()
	v.boot()
	v.write("vda", 2, mib, mib)
	truth := v.truth("vda")
	must(t, b.run(false))
	if d := b.decisions["vda"]; d.Incremental || !strings.Contains(d.Reason, "is gone") {
		t.Errorf("after the first crash: %+v", d)
	}
	equal(t, "after the first crash", b.images["vda"], truth)
	v.quit()
	v.boot() // now the bitmap is in the image
	v.kill()
	v.boot()
	v.write("vda", 3, 2*mib, mib)
	truth = v.truth("vda")
	must(t, b.run(false))
	if d := b.decisions["vda"]; d.Incremental || !strings.Contains(d.Reason, "inconsistent") || len(d.Remove) != 1 {
		t.Errorf("after the second crash: %+v", d)
	}
	equal(t, "after the second crash", b.images["vda"], truth)
	v.write("vda", 4, 0, 64*kib)
	must(t, b.run(false))
	if !b.decisions["vda"].Incremental {
		t.Errorf("later: %+v", b.decisions["vda"])
	}
	equal(t, "later", b.images["vda"], v.truth("vda"))
}

// TestOverlayOnBackingFile: what only the backing file holds is reported as a
// hole and must be read all the same.
func TestOverlayOnBackingFile(t *testing.T) {
	t.Parallel()
	dir := shortTemp(t)
	qemuBinary(t)
	base := dir + "/base.raw"
	must(t, os.WriteFile(base, append(make([]byte, mib), []byte(strings.Repeat("base", int(mib)/4))...), 0o600))
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 4 * mib, backing: base})
	b := newBackup(v, "vda")
	v.write("vda", 9, mib+64*kib, 64*kib)
	must(t, b.run(false))
	equal(t, "full", b.images["vda"], v.truth("vda"))
	v.io("vda", "discard 1M 128k") // the overlay now says zero over the backing file's data
	v.write("vda", 7, 3*mib, 512)
	must(t, b.run(false))
	equal(t, "incremental", b.images["vda"], v.truth("vda"))
	if !b.decisions["vda"].Incremental {
		t.Error("not incremental")
	}
}

// TestLiveSnapshotIsReadWhole: the overlay's writes were not recorded.
func TestLiveSnapshotIsReadWhole(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 4 * mib})
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, mib)
	must(t, b.run(false))
	must(t, v.conn.Execute(testContext(t), "blockdev-snapshot-sync", map[string]string{
		"node-name": "vda", "snapshot-file": v.dir + "/over.qcow2", "format": "qcow2", "snapshot-node-name": "over"}, nil))
	v.write("vda", 2, 0, 100*kib)
	d := v.disk("vda")
	if d.Node != "over" || len(d.Below) != 1 {
		t.Errorf("disk: %s", pretty(d))
	}
	must(t, b.run(false))
	if d := b.decisions["vda"]; d.Incremental || !strings.Contains(d.Reason, "image files changed") {
		t.Errorf("decision: %+v", d)
	}
	if b.images["vda"][0] != 2 || b.images["vda"][500*kib] != 1 {
		t.Error("wrong bytes")
	}
	must(t, b.run(false))
	if !b.decisions["vda"].Incremental {
		t.Errorf("on the new top image: %+v", b.decisions["vda"])
	}
}

// TestSnapshotBelowFilter: a live snapshot slips in below our filter; Release
// puts the device on the new node.
func TestSnapshotBelowFilter(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 4 * mib})
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, mib)
	b.during = func() {
		err := v.conn.Execute(testContext(t), "blockdev-snapshot-sync", map[string]string{
			"node-name": "vda", "snapshot-file": v.dir + "/over.qcow2", "format": "qcow2", "snapshot-node-name": "over"}, nil)
		if err != nil {
			t.Logf("QEMU refuses the snapshot: %v", err)
		}
	}
	must(t, b.run(false))
	if b.images["vda"][0] != 1 {
		t.Error("wrong bytes")
	}
	if top := v.disk("vda").Top; top != "over" && top != "vda" {
		t.Errorf("the device reads %q", top)
	}
	v.write("vda", 5, 0, mib)
}

// tmpfs mounts a small filesystem for the length of the test.
func tmpfs(t *testing.T, size int64) string {
	t.Helper()
	dir := shortTemp(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("needs a small tmpfs, and mounting one is not allowed: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// TestScratchFull: the fleece breaks, the writer does not.
func TestScratchFull(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 16 * mib})
	small := tmpfs(t, mib)
	b := newBackup(v, "vda")
	v.write("vda", 1, 0, 8*mib)
	b.options = func(o *FleeceOptions) { o.ScratchDir = small }
	b.during = func() { v.write("vda", 2, 0, 6*mib) }
	err := b.run(false)
	if !errors.Is(err, ErrFleeceBroken) {
		t.Fatalf("got %v, want ErrFleeceBroken", err)
	}
	if out := v.io("vda", "read -P 2 0 6M"); strings.Contains(out, "ailed") {
		t.Errorf("the writer's data: %s", out)
	}
	if entries, _ := os.ReadDir(small); len(entries) > 0 {
		t.Errorf("left in the scratch space: %v", entries)
	}
	b.options, b.during = nil, nil
	truth := v.truth("vda")
	must(t, b.run(false))
	equal(t, "the next run", b.images["vda"], truth)
	b.options = func(o *FleeceOptions) { o.ScratchDir, o.MinScratch = small, 2*mib }
	if err := b.run(false); !errors.Is(err, ErrScratchSpace) {
		t.Errorf("too small from the beginning: got %v", err)
	}
}

// TestClientDeath: all sockets close in the middle of reading; the next
// process cleans up and goes on.
func TestClientDeath(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 8 * mib}, testDisk{id: "vdb", format: "qcow2", size: 4 * mib})
	b := newBackup(v, "vda", "vdb")
	v.write("vda", 1, 0, mib)
	must(t, b.run(false))
	v.write("vda", 2, 0, 100*kib)
	f, _, err := b.begin()
	must(t, err)
	_, err = f.Point(testContext(t), false)
	must(t, err)
	sources, err := f.Export(testContext(t))
	must(t, err)
	_, err = sources[0].ReadAt(testContext(t), make([]byte, 4096), 0)
	must(t, err)
	for _, c := range f.conns { // what the kernel does when a process dies
		c.Abandon()
	}
	v.conn.Close()
	v.connect()

	stranger := map[string]any{"driver": "null-co", "node-name": "cairn-cbw-x", "size": 1024}
	must(t, v.conn.Execute(testContext(t), "blockdev-add", stranger, nil))
	if d := v.disk("vda"); d.Top != "vda" || d.Skip != "" || len(d.Bitmaps) != 3 {
		t.Errorf("through our own filter the disk looks like %s", pretty(d))
	}
	left, err := Leftovers(testContext(t), v.conn)
	must(t, err)
	removed, err := Clean(testContext(t), v.conn)
	must(t, err)
	// For each disk an export, three nodes and a merged bitmap (vdb's, too: it is incremental).
	if len(left) != 10 || len(removed) != 10 {
		t.Errorf("left %v\nremoved %v", left, removed)
	}
	if files, _ := filepath.Glob(v.dir + "/cairn-fleece-*"); len(files) > 0 {
		t.Errorf("scratch files: %v", files)
	}
	if left, err := Leftovers(testContext(t), v.conn); err != nil || len(left) > 0 {
		t.Errorf("after Clean: %v, %v", left, err)
	}
	must(t, v.conn.run(testContext(t), blockdevDel{"cairn-cbw-x"}, nil)) // was not touched
	v.write("vda", 3, mib, 64*kib)
	must(t, b.run(false)) // takes the dead run's NBD server over
	if !b.decisions["vda"].Incremental || len(b.decisions["vda"].Merge) != 2 {
		t.Errorf("decision: %+v", b.decisions["vda"])
	}
	equal(t, "vda", b.images["vda"], v.truth("vda"))
}

func TestForeignNBDServer(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 4 * mib})
	start := nbdServerStart{}
	start.Addr.Type, start.Addr.Data.Path = "unix", v.dir+"/foreign"
	must(t, v.conn.run(testContext(t), start, nil))
	_, _, err := newBackup(v, "vda").begin()
	if !errors.Is(err, ErrNBDServerBusy) {
		t.Errorf("got %v, want ErrNBDServerBusy", err)
	}
	if left, err := Leftovers(testContext(t), v.conn); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if files, _ := filepath.Glob(v.dir + "/cairn-fleece-*"); len(files) > 0 {
		t.Errorf("scratch files: %v", files)
	}
	must(t, v.conn.run(testContext(t), nbdServerStop{}, nil)) // it still ran
}

// TestQEMUDeath: Release after QEMU's death removes the files and is content.
func TestQEMUDeath(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 4 * mib})
	b := newBackup(v, "vda")
	f, _, err := b.begin()
	must(t, err)
	_, err = f.Point(testContext(t), true)
	must(t, err)
	sources, err := f.Export(testContext(t))
	must(t, err)
	v.cmd.Process.Kill()
	<-v.exited
	if _, err := sources[0].ReadAt(testContext(t), make([]byte, 4096), 0); err == nil {
		t.Error("a read from a dead QEMU")
	}
	must(t, f.Release(testContext(t)))
	must(t, f.Release(testContext(t)))
	if !errors.Is(v.conn.Dead(), io.ErrUnexpectedEOF) {
		t.Errorf("monitor: %v", v.conn.Dead())
	}
	if files, _ := filepath.Glob(v.dir + "/cairn-fleece-*"); len(files) > 0 {
		t.Errorf("scratch files: %v", files)
	}
}

// TestIOThread: QEMU 7.2 aborts if the order of Release is wrong.
func TestIOThread(t *testing.T) {
	t.Parallel()
	v := newVM(t, testDisk{id: "vda", format: "qcow2", size: 4 * mib, iothread: true}, testDisk{id: "vdb", format: "raw", size: 4 * mib, iothread: true})
	b := newBackup(v, "vda", "vdb")
	for i := range 4 {
		v.write("vda", i+1, int64(i)*64*kib, mib)
		must(t, b.run(i == 1))
		if !v.alive() {
			t.Fatal("QEMU died")
		}
	}
	equal(t, "vda", b.images["vda"], v.truth("vda"))
	// A read that failed half-way, with requests in flight.
	f, _, err := b.begin()
	must(t, err)
	_, err = f.Point(testContext(t), true)
	must(t, err)
	sources, err := f.Export(testContext(t))
	must(t, err)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	for range 20 {
		sources[0].ReadAt(ctx, make([]byte, 4*mib), 0)
	}
	must(t, f.Release(testContext(t)))
	if !v.alive() {
		t.Fatal("QEMU died")
	}
}

// TestFailEachCommand refuses the Nth command of a run, for N = 1, 2, … until
// a run needs no more; or QEMU does it and the answer is lost. After each failure nothing is left, the VM runs, and in
// the end the image is the disk.
func TestFailEachCommand(t *testing.T) {
	t.Parallel()
	for _, verdict := range []qmptest.Verdict{qmptest.Refuse, qmptest.Swallow} {
		t.Run(fmt.Sprint(verdict), func(t *testing.T) {
			t.Parallel() // it mostly waits
			failEachCommand(t, verdict)
		})
	}
}

func failEachCommand(t *testing.T, verdict qmptest.Verdict) {
	v := &vm{t: t, dir: shortTemp(t), running: true, disks: []testDisk{{id: "vda", format: "qcow2", size: 4 * mib}, {id: "vdb", format: "qcow2", size: 2 * mib}}}
	qemuBinary(t)
	for _, d := range v.disks {
		run(t, "qemu-img", "create", "-q", "-f", d.format, v.file(d.id), fmt.Sprint(d.size))
	}
	v.boot()
	b := newBackup(v, "vda", "vdb")
	must(t, b.run(false))
	direct := v.conn
	var count, failAt int
	var failed string
	judge := func(cmd qmptest.Command) qmptest.Verdict {
		if strings.HasPrefix(cmd.Execute, "query-") || strings.HasPrefix(cmd.Execute, "qom-get") || strings.HasPrefix(cmd.Execute, "qom-list") ||
			strings.HasPrefix(cmd.Execute, "human") || strings.HasPrefix(cmd.Execute, "x-debug") || cmd.Execute == "qmp_capabilities" || failAt == 0 {
			return qmptest.Pass
		}
		if count++; count != failAt {
			return qmptest.Pass
		}
		failed = cmd.Execute
		return verdict
	}
	proxy := qmptest.StartProxy(t, v.dir+"/qmp2", judge)
	conn, err := Dial(testContext(t), proxy.Path)
	must(t, err)
	defer conn.Close()
	conn.timeout = 5 * time.Second // a lost answer in an undo is waited for
	for n := 1; ; n++ {
		v.conn, count, failAt, failed = direct, 0, 0, ""
		v.write("vda", n, int64(n)*8*kib, 4*kib)
		v.write("vdb", n, int64(n)*4*kib, 4*kib)
		v.conn, failAt = conn, n
		begin := time.Now()
		err := attempt(t, b, verdict)
		if d := time.Since(begin); d > 4*time.Second {
			t.Logf("%d (%s) took %v: %v", n, failed, d, err)
		}
		done := count < n
		failAt = 0
		if done && errors.Is(err, context.DeadlineExceeded) {
			n-- // a loaded machine: again
			continue
		}
		if err != nil && done {
			t.Fatalf("%d: nothing failed, and yet: %v", n, err)
		}
		if _, err := Clean(testContext(t), conn); err != nil {
			t.Fatalf("%d (%s): Clean: %v", n, failed, err)
		}
		if left, err := Leftovers(testContext(t), conn); err != nil || len(left) > 0 {
			t.Fatalf("%d (%s): left over: %v, %v", n, failed, left, err)
		}
		if state, running, err := status(testContext(t), conn); err != nil || !running {
			t.Fatalf("%d (%s): the VM is %s, %v", n, failed, state, err)
		}
		if done {
			t.Logf("%d commands failed in turn", n-1)
			break
		}
		if n > 60 {
			t.Fatal("no end")
		}
	}
	must(t, b.run(false))
	equal(t, "vda", b.images["vda"], v.truth("vda"))
	equal(t, "vdb", b.images["vdb"], v.truth("vdb"))
}

// attempt is one run whose Release may need a second call.
func attempt(t *testing.T, b *backup, verdict qmptest.Verdict) error {
	limit := func() (context.Context, context.CancelFunc) {
		if verdict == qmptest.Swallow { // the command happens, the answer never comes
			return context.WithTimeout(context.Background(), 250*time.Millisecond)
		}
		return context.WithTimeout(context.Background(), 20*time.Second)
	}
	begin, stop := limit()
	defer stop()
	b.begins = begin
	defer func() { b.begins = nil }()
	f, seq, err := b.begin()
	if err != nil {
		return err
	}
	defer func() {
		for range 3 {
			ctx, cancel := limit()
			failed := f.Release(ctx)
			cancel()
			if failed == nil {
				return
			}
		}
		t.Error("Release does not succeed")
	}()
	ctx, cancel := limit()
	defer cancel()
	if _, err = f.Point(ctx, true); err != nil {
		return err
	}
	sources, err := f.Export(ctx)
	if err != nil {
		return err
	}
	images := map[string][]byte{}
	for i, s := range sources {
		if images[b.ids[i]], err = b.apply(testContext(t), b.ids[i], s); err != nil {
			return err
		}
	}
	ctx, cancel = limit()
	defer cancel()
	if err := f.Release(ctx); err != nil {
		return err
	}
	ctx, cancel = limit()
	defer cancel()
	return b.commit(ctx, images, f, seq)
}
