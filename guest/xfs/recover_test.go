package xfs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// compareReplayed holds our view of a dirty image against the kernel's, which
// recovers a copy, and our free space against a mount that runs over rubbish.
func compareReplayed(t *testing.T, image string) {
	t.Helper()
	fs := openImage(t, image)
	got, err := filesystemtest.Walk(context.Background(), fs)
	if err != nil {
		t.Fatal(err)
	}
	recovered := filesystemtest.CopyImage(t, image)
	want := filesystemtest.Truth(t, recovered, "rw,nouuid")
	os.Remove(recovered)
	for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
		t.Error(d)
	}
	notes := strings.Join(fs.Info().Notes, "; ")
	t.Logf("%d names, %s", len(want), notes)
	if len(want) < 100 {
		t.Errorf("only %d names: the test does not test much", len(want))
	}
	if !strings.Contains(notes, "log replayed") {
		t.Errorf("the log was not replayed: %s", notes)
	}
	options := "rw,nouuid"
	open := func(t *testing.T, image string) filesystem.Reader { return openImage(t, image) }
	filesystemtest.TestFree(t, image, open, want, filesystemtest.AllFields, 0.5, &options)
}

var logLayouts = []struct {
	name, options string
	mkfs          []string
}{
	{"default", "", []string{"mkfs.xfs", "-q"}},
	{"1k", "logbsize=256k", mkfs("-b", "size=1024", "-n", "size=4096", "-m", "rmapbt=1")},
	{"stripe", "logbsize=32k", mkfs("-l", "su=32k", "-i", "nrext64=1")},
	{"small-log", "", mkfs("-b", "size=1024", "-l", "size=4m")},
	{"dirs16k-inodes1k", "wsync", mkfs("-n", "size=16384", "-i", "size=1024", "-m", "bigtime=0")},
}

// TestLogAfterShutDown shuts busy filesystems down as a crash does.
func TestLogAfterShutDown(t *testing.T) {
	for _, l := range logLayouts {
		for _, flush := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/flush=%v", l.name, flush), func(t *testing.T) {
				t.Parallel()
				filesystemtest.NeedRoot(t)
				filesystemtest.NeedTool(t, "mkfs.xfs")
				image := filesystemtest.Image(t, 320*mib, l.mkfs...)
				dir, unmount := filesystemtest.LoopMount(t, image, l.options)
				churn := func(d time.Duration) {
					ctx, cancel := context.WithTimeout(context.Background(), d)
					defer cancel()
					filesystemtest.Churn(ctx, dir, uint64(len(l.name)))
				}
				churn(300 * time.Millisecond)
				if err := exec.Command("sync", "-f", dir).Run(); err != nil {
					t.Fatal(err)
				}
				churn(200 * time.Millisecond)
				filesystemtest.ShutDown(t, dir, flush)
				unmount()
				compareReplayed(t, image)
			})
		}
	}
}

// TestLogWraps fills a small log several times over, in steps, and looks at it
// after each: the end is where the newest record is, wherever that lies.
func TestLogWraps(t *testing.T) {
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.xfs")
	image := filesystemtest.Image(t, 128*mib, mkfs("-b", "size=1024", "-l", "size=4m")...)
	cycles := make(map[uint64]bool)
	for i := range 12 {
		dir, unmount := filesystemtest.LoopMount(t, image, "logbsize=256k")
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		filesystemtest.Churn(ctx, dir, uint64(i))
		cancel()
		filesystemtest.ShutDown(t, dir, true)
		unmount()
		fs := openImage(t, image)
		l, err := fs.openLog()
		if err != nil {
			t.Fatal(err)
		}
		last, clean, err := l.lastRecord(context.Background())
		if err != nil || clean {
			t.Fatalf("unmounted %v, %v", clean, err)
		}
		cycles[last.lsn>>32] = true
		newest := uint64(0)
		for at := range l.sectors {
			if r, err := l.recordAt(at); err == nil {
				if _, err := l.load(r); err == nil {
					newest = max(newest, r.lsn)
				}
			}
		}
		if last.lsn != newest {
			t.Errorf("the newest record is %#x, found %#x", newest, last.lsn)
		}
		if notes := strings.Join(fs.Info().Notes, "; "); !strings.Contains(notes, "log replayed") {
			t.Errorf("notes: %s", notes)
		}
	}
	if len(cycles) < 3 {
		t.Errorf("only cycles %v: the test does not test much", cycles)
	}
	compareReplayed(t, image)
}

// TestFrozenGuest copies the disk under a filesystem that fsfreeze(8) holds:
// it is whole, but its log is not empty.
func TestFrozenGuest(t *testing.T) {
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.xfs")
	image := filesystemtest.Image(t, 320*mib, "mkfs.xfs", "-q")
	dir, unmount := filesystemtest.LoopMount(t, image, "")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	filesystemtest.Churn(ctx, dir, 5)
	cancel()
	freeze := func(request uint) error {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.IoctlSetInt(int(f.Fd()), request, 0)
	}
	const fifreeze, fithaw = 0xC0045877, 0xC0045878
	if err := freeze(fifreeze); err != nil {
		t.Fatal(err)
	}
	copied := filesystemtest.CopyImage(t, image)
	if err := freeze(fithaw); err != nil {
		t.Fatal(err)
	}
	unmount()
	fs := openImage(t, copied)
	l, err := fs.openLog()
	if err != nil {
		t.Fatal(err)
	}
	if _, clean, err := l.lastRecord(context.Background()); clean || err != nil {
		t.Errorf("the log is empty (%v, %v): the test does not test much", clean, err)
	}
	got, err := filesystemtest.Walk(context.Background(), fs)
	if err != nil {
		t.Fatal(err)
	}
	want := filesystemtest.Truth(t, copied, "rw,nouuid") // changes the copy
	for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
		t.Error(d)
	}
	if len(want) < 100 || fs.unsure != nil {
		t.Errorf("%d names, notes %q", len(want), fs.Info().Notes)
	}
}

// TestLogOfLiveCopies copies the disk under a running filesystem, as a
// crash-consistent restore point does.
func TestLogOfLiveCopies(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	layouts, copies := logLayouts[:2], 2
	if filesystemtest.Long() {
		layouts, copies = logLayouts, 8
	}
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			for _, image := range filesystemtest.LiveCopies(t, 320*mib, copies, l.options, l.mkfs...) {
				compareReplayed(t, image)
			}
		})
	}
}
