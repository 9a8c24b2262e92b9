package ext4

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cairn/guest/filesystem/filesystemtest"
)

// compareReplayed holds our view of a dirty image against the kernel's, which
// replays the journal of a copy. It says how often ours was replayed.
func compareReplayed(t *testing.T, image string) {
	t.Helper()
	fs := openImage(t, image)
	got, err := filesystemtest.Walk(context.Background(), fs)
	if err != nil {
		t.Fatal(err)
	}
	replayed := image + ".kernel"
	filesystemtest.Run(t, "cp", "--reflink=auto", "--sparse=always", image, replayed)
	want := filesystemtest.Truth(t, replayed, "rw")
	os.Remove(replayed)
	for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
		t.Error(d)
	}
	t.Logf("%d names, %q", len(want), fs.Info().Notes)
	if len(want) < 100 {
		t.Errorf("only %d names: the test does not test much", len(want))
	}
	if notes := strings.Join(fs.Info().Notes, "; "); !strings.Contains(notes, "journal replayed") {
		t.Errorf("the journal was not replayed: %s", notes)
	}
}

var journalLayouts = []struct {
	name, options string
	mkfs          []string
}{
	{"default", "", []string{"mkfs.ext4", "-b", "4096"}},
	{"data-journal", "data=journal", []string{"mkfs.ext4", "-b", "1024", "-O", "inline_data"}},
	{"ext3", "", []string{"mkfs.ext3", "-b", "1024"}},
	{"checksum-v1", "journal_checksum", []string{"mkfs.ext4", "-b", "1024", "-O", "^metadata_csum"}},
	{"async-commit", "journal_async_commit,data=writeback", []string{"mkfs.ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"}},
	{"no-64bit", "", []string{"mkfs.ext4", "-b", "2048", "-O", "^64bit"}},
}

// TestJournalAfterShutDown shuts busy filesystems down as a crash does.
func TestJournalAfterShutDown(t *testing.T) {
	for _, l := range journalLayouts {
		for _, flush := range []bool{true, false} {
			name := l.name + "/noflush"
			if flush {
				name = l.name + "/flush"
			}
			t.Run(name, func(t *testing.T) {
				filesystemtest.NeedRoot(t)
				image := filesystemtest.Image(t, 64<<20, append(l.mkfs, "-q", "-N", "8192")...)
				dir, unmount := filesystemtest.LoopMount(t, image, l.options)
				churn := func(d time.Duration) {
					ctx, cancel := context.WithTimeout(context.Background(), d)
					defer cancel()
					filesystemtest.Churn(ctx, dir, uint64(len(name)))
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

// TestJournalOfLiveCopies copies the disk under a running filesystem, as a
// crash-consistent restore point does.
func TestJournalOfLiveCopies(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, l := range journalLayouts[:2] {
		t.Run(l.name, func(t *testing.T) {
			for _, image := range filesystemtest.LiveCopies(t, 96<<20, 3, l.options, append(l.mkfs, "-q")...) {
				compareReplayed(t, image)
			}
		})
	}
}
