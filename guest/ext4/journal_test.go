package ext4

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cairn/guest/filesystem"
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
			if !flush && l.options == "" && l.name != "default" {
				continue
			}
			name := l.name + "/noflush"
			if flush {
				name = l.name + "/flush"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
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

// TestFastCommitsAreNoted crashes behind a fast commit: what the last full
// commit has must be there, and a note must tell that something is missing.
func TestFastCommitsAreNoted(t *testing.T) {
	filesystemtest.NeedRoot(t)
	image := filesystemtest.Image(t, 32<<20, "mkfs.ext4", "-q", "-O", "fast_commit")
	dir, unmount := filesystemtest.LoopMount(t, image, "")
	if err := os.WriteFile(dir+"/full", []byte("full"), 0o644); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "sync", "-f", dir)
	f, err := os.OpenFile(dir+"/full", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(" and more"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	filesystemtest.ShutDown(t, dir, false)
	f.Close()
	unmount()
	fs := openImage(t, image)
	at(t, fs, "full")
	if notes := strings.Join(fs.Info().Notes, "; "); !strings.Contains(notes, "fast commits") {
		t.Errorf("notes: %s", notes)
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
			t.Parallel()
			for _, image := range filesystemtest.LiveCopies(t, 96<<20, 2, l.options, append(l.mkfs, "-q")...) {
				compareReplayed(t, image)
			}
		})
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestJournalFormats lets debugfs write transactions in every version of
// checksums, with revoked and escaped blocks, and reads the file they change.
func TestJournalFormats(t *testing.T) {
	filesystemtest.NeedTool(t, "debugfs")
	dir := t.TempDir()
	old := strings.Repeat("old ", 256)
	fill := func(name, content string) string {
		path := dir + "/" + name
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(dir+"/tree", 0o755); err != nil {
		t.Fatal(err)
	}
	fill("tree/file", strings.Repeat(old, 4))
	first := fill("new", strings.Repeat("new ", 256))
	magic := fill("magic", "\xC0\x3B\x39\x98"+strings.Repeat("x", 1020))
	for _, test := range []struct{ name, features, open string }{
		{"plain", "^metadata_csum,^64bit", "jo"},
		{"64bit", "^metadata_csum,64bit", "jo"},
		{"v2", "metadata_csum,64bit", "jo -c -v 2"},
		{"v2-32", "metadata_csum,^64bit", "jo -c -v 2"},
		{"v3", "metadata_csum,64bit", "jo -c -v 3"},
		{"v3-32", "metadata_csum,^64bit", "jo -c -v 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			image := filesystemtest.Image(t, 8<<20, "mkfs.ext4", "-q", "-b", "1024", "-O", test.features, "-d", dir+"/tree")
			fs := openImage(t, image)
			in := at(t, fs, "file")
			block := blockOffset(t, fs, in, 0) / 1024
			script := fill("script", strings.Join([]string{
				test.open,
				fmt.Sprintf("jw -b %d %s", block, first),
				fmt.Sprintf("jw -b %d %s", block+1, magic),
				fmt.Sprintf("jw -b %d %s", block+2, first),
				fmt.Sprintf("jw -r %d", block+2),
				"jc", "",
			}, "\n"))
			out, err := exec.Command("debugfs", "-w", "-f", script, image).CombinedOutput()
			if err != nil {
				t.Fatalf("debugfs: %v\n%s", err, out)
			}
			fs = openImage(t, image)
			f, err := fs.Open(context.Background(), filesystem.Ino(in.ino))
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 4096)
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			want := strings.Repeat("new ", 256) + "\xC0\x3B\x39\x98" + strings.Repeat("x", 1020) + old + old
			for i := range 4 {
				if got, want := string(b[i*1024:][:1024]), want[i*1024:][:1024]; got != want {
					t.Errorf("block %d: %.20q, want %.20q; notes %q\n%s", i, got, want, fs.Info().Notes, out)
				}
			}
			if strings.HasPrefix(test.name, "v") {
				testDamagedLog(t, image, in)
			}
		})
	}
}

// TestLogReplacesItsOwnMap writes a transaction that replaces the indirect
// block of the journal's own inode. Looking up where the copies lie must not
// ask the log again.
func TestLogReplacesItsOwnMap(t *testing.T) {
	filesystemtest.NeedTool(t, "debugfs")
	image := filesystemtest.Image(t, 8<<20, "mkfs.ext3", "-q", "-b", "1024")
	fs := openImage(t, image)
	in, err := fs.rawInode(fs.sb.journalIno)
	if err != nil {
		t.Fatal(err)
	}
	script := t.TempDir() + "/script"
	indirect := le.Uint32(in.iblock()[12*4:])
	if err := os.WriteFile(script, fmt.Appendf(nil, "jo\njw -b %d /dev/zero\njc\n", indirect), 0o644); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "debugfs", "-w", "-f", script, image)
	fs = openImage(t, image)
	if len(fs.replayed.blocks) != 1 || fs.replayed.blocks[0].home != uint64(indirect) {
		t.Fatalf("replayed: %+v", fs.replayed.blocks)
	}
	f, err := fs.Open(context.Background(), filesystem.Ino(in.ino))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<10)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, filesystem.ErrCorrupt) {
		t.Fatal(err)
	}
}

// testDamagedLog changes a block inside the log: only the file's block that it
// stands for may fail.
func testDamagedLog(t *testing.T, path string, in inode) {
	b := readFile(t, path)
	fs := openBytes(t, b)
	for _, r := range fs.replayed.blocks {
		b[int64(r.copy)*1024+500] ^= 1
	}
	fs = openBytes(t, b)
	f, err := fs.Open(context.Background(), filesystem.Ino(in.ino))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1024)
	for i, damaged := range []bool{true, true, false, false} {
		if _, err := f.ReadAt(p, int64(i)*1024); errors.Is(err, filesystem.ErrCorrupt) != damaged {
			t.Errorf("block %d with a damaged log: %v", i, err)
		}
	}
}
