package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/integration/lab/labtest"
)

// mountMemory mounts a small filesystem in memory, until the test ends.
func mountMemory(t *testing.T, dir string, mebibytes int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("cairn-test", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mebibytes)); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestFullScratch: the guest overwrites more while it is backed up than the
// scratch disk holds. The backup fails in words; the guest never notices.
//
// The overflow is no matter of speed: cairn is halted (SIGSTOP) from the point
// in time on until the guest has overwritten everything.
func TestFullScratch(t *testing.T) {
	h := newHost(t)
	g := startVM(t, h)
	const mebibytes = 110
	write := fmt.Sprintf("dd if=/dev/vda of=/srv/big bs=1M count=%d", mebibytes)
	labtest.Shell(t, g, write+" 2>&1 && sync")
	h.backup(t)
	scratch := filepath.Join(h.dir, "scratch")
	mountMemory(t, scratch, 80)

	r := h.start(t, "backup", vmName, "--full-read", "--scratch", scratch)
	if !h.awaitStep(t, r, "read") {
		t.Fatalf("the run ended before it read: %+v", r.wait())
	}
	time.Sleep(20 * time.Millisecond) // some is read, or its exports are being made
	r.signal(t, syscall.SIGSTOP)
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := g.Shell(ctx, fmt.Sprintf("dd if=/dev/urandom of=/srv/big bs=1M count=%d conv=notrunc,fsync 2>&1 && sync", mebibytes)); err != nil {
		t.Errorf("the guest's write: %v", err)
	}
	t.Logf("the guest wrote %d MiB in %.1f s; the scratch disk has %d KiB left", mebibytes, time.Since(start).Seconds(), freeBytes(t, scratch)>>10)
	isRunning(t, g)
	r.signal(t, syscall.SIGCONT)
	got := r.wait()
	t.Logf("exit code %d: %s", got.code, got.stderr)
	if got.code != exitFailed {
		t.Errorf("a backup whose scratch space was full ended with %d", got.code)
	}
	got.mentions(t, "scratch")
	isAlive(t, g)
	if out := labtest.Shell(t, g, "dmesg | grep -iE 'I/O error|EXT4-fs error|remount' || :"); out != "" {
		t.Errorf("the guest noticed: %s", out)
	}
	isTidy(t, h, g)
	if files := listFiles(t, scratch); len(files) > 0 {
		t.Errorf("left in the scratch folder: %q", files)
	}
	if n := len(h.points(t)); n != 1 {
		t.Errorf("%d points, want 1", n)
	}
	if s := backupPaused(t, h, g); s.BytesDirty < mebibytes<<20 {
		t.Errorf("the next backup: %+v", s)
	}
	h.run(t, exitOK, "check", "--read-data")
}

// TestFullRepository: the repository's disk is full in the middle of a backup.
func TestFullRepository(t *testing.T) {
	h := bareHost(t)
	place := filepath.Join(h.dir, "place")
	mountMemory(t, place, 120)
	h.repo = filepath.Join(place, "repo")
	h.init(t)
	g := startVM(t, h)
	s := h.backup(t)
	kept := h.restoreDisk(t, s.Point, "vdb") + ".kept"
	if err := os.Rename(filepath.Join(h.dir, "restored-vdb.raw"), kept); err != nil {
		t.Fatal(err)
	}

	ballast := filepath.Join(place, "ballast")
	fill(t, ballast, freeBytes(t, place)-24<<20)
	labtest.Shell(t, g, "head -c 60000000 /dev/urandom >/srv/large; sync")
	for range 2 { // a second failure is as harmless as the first
		r := h.run(t, exitFailed, "backup", vmName)
		r.mentions(t, "the place is full")
		t.Logf("full: %s", r.stderr)
		isAlive(t, g)
		isTidy(t, h, g)
		if n := len(h.points(t)); n != 1 {
			t.Errorf("%d points, want 1", n)
		}
		h.run(t, exitOK, "check", "--read-data")
		sameImage(t, "the point from before", h.restoreDisk(t, s.Point, "vdb"), kept)
	}
	t.Logf("%d KiB are free behind the failed runs", freeBytes(t, place)>>10)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if s := backupPaused(t, h, g); s.Read != "incremental" || s.BytesDirty < 60_000_000 {
		t.Errorf("after space was made: %+v", s)
	}
	h.run(t, exitOK, "check", "--read-data")
}

// fill makes a file of zeros that takes its space.
func fill(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for ; size > 0; size -= int64(len(buf)) {
		if _, err := f.Write(buf[:min(size, int64(len(buf)))]); err != nil {
			t.Fatal(err)
		}
	}
}
