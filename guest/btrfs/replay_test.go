package btrfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// hostDir is a directory on a filesystem that clones files.
func hostDir(t testing.TB) string {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.xfs")
	dir, _ := filesystemtest.LoopMount(t, filesystemtest.Image(t, 2<<30, "mkfs.xfs", "-q", "-m", "reflink=1"), "")
	return dir
}

// logged makes an image that was copied just after a file was synced, with
// the log tree not yet committed.
func logged(t testing.TB, work func(dir string)) string {
	t.Helper()
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	host := hostDir(t)
	image := filepath.Join(host, "live")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256*mib); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "mkfs.btrfs", "-q", image)
	dir, unmount := filesystemtest.LoopMount(t, image, "commit=300")
	work(dir)
	f, err := os.Create(dir + "/synced")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("synced"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	to := filepath.Join(host, "copy")
	filesystemtest.Run(t, "cp", "--reflink=always", image, to)
	unmount()
	return to
}

// compareReplayed holds our view of a dirty image against the kernel's, which
// replays the log of a copy.
func compareReplayed(t *testing.T, image string, least int) *FS {
	t.Helper()
	fs := openImage(t, image)
	got, err := filesystemtest.Walk(context.Background(), timeless{fs})
	if err != nil {
		t.Fatal(err)
	}
	replayed := image + ".kernel"
	filesystemtest.Run(t, "cp", "--reflink=auto", "--sparse=always", image, replayed)
	mounted := time.Now().Unix()
	want := withoutStubTimes(filesystemtest.Truth(t, replayed, "rw"))
	os.Remove(replayed)
	for path, w := range want {
		// The kernel's replay sets some times to the present.
		g := got[path]
		if w.Mtime.Sec >= mounted {
			w.Mtime, g.Mtime = filesystem.Time{}, filesystem.Time{}
		}
		if w.Ctime.Sec >= mounted {
			w.Ctime, g.Ctime = filesystem.Time{}, filesystem.Time{}
		}
		if _, ok := got[path]; ok {
			want[path], got[path] = w, g
		}
	}
	for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
		t.Error(d)
	}
	t.Logf("%d names, %q", len(want), fs.Info().Notes)
	if len(want) < least {
		t.Errorf("only %d names: the test does not test much", len(want))
	}
	return fs
}

// TestReplayOfLiveCopies copies the disk under a running filesystem, as a
// crash-consistent restore point does.
func TestReplayOfLiveCopies(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	n := 2
	if filesystemtest.Long() {
		n = 12
	}
	for _, l := range []struct {
		name, options string
		mkfs          []string
	}{
		{"default", "", nil},
		{"no-holes-off-4k", "commit=1,compress=zstd", []string{"-n", "4096", "-O", "^no-holes"}},
	} {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			for _, image := range filesystemtest.LiveCopies(t, 256*mib, n, l.options, append([]string{"mkfs.btrfs", "-q"}, l.mkfs...)...) {
				compareReplayed(t, image, 2)
			}
		})
	}
}

// TestReplayEnds: directories without names that hold each other must not be
// counted for ever.
func TestReplayEnds(t *testing.T) {
	image, _ := filesystemtest.Sample(t, "plain")
	fs := openBytes(t, image)
	v := &fs.volumes[0]
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// The tree of checksums has no items that a log could have.
	r := replay{ctx: ctx, fs: fs, v: v, log: *fs.sums, over: &overlay{}, counted: make(map[uint64]bool)}
	v.over = r.over
	for oid, other := range map[uint64]uint64{5000: 5001, 5001: 5000} {
		item := make([]byte, inodeItemSize)
		le.PutUint32(item[52:], filesystem.ModeDir|0o755)
		entry := make([]byte, dirItemHead, dirItemHead+1)
		le.PutUint64(entry, other)
		entry[8] = typeInode
		le.PutUint16(entry[27:], 1)
		if err := errors.Join(r.set(key{oid, typeInode, 0}, item), r.set(key{oid, typeDirIndex, 2}, append(entry, 'x'))); err != nil {
			t.Fatal(err)
		}
		r.count(oid)
	}
	done := make(chan error, 1)
	go func() { done <- r.run() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Fatal("the replay does not end")
	}
}

// TestReplayedData: what was synced is verified by the checksums of the log.
func TestReplayedData(t *testing.T) {
	image := logged(t, func(dir string) {
		f, err := os.Create(dir + "/data")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(bytes.Repeat([]byte("synced data "), 100_000)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	})
	read := func() error {
		fs := openImage(t, image)
		if fs.volumes[0].over == nil {
			t.Fatal("the image has no log tree")
		}
		f, err := fs.Open(context.Background(), at(t, fs, "data"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, io.NewSectionReader(f, 0, f.Size()))
		return err
	}
	if err := read(); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	where := bytes.Index(b, bytes.Repeat([]byte("synced data "), 1000))
	patch(t, image, int64(where)+5000, "x")
	if err := read(); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("with damage: %v", err)
	}
}
