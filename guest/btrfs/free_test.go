package btrfs

import (
	"context"
	"strings"
	"testing"

	"cairn/guest/filesystem/filesystemtest"
)

func TestFree(t *testing.T) {
	scale := filesystemtest.SmallScale()
	scale.Entries, scale.Extents = 300, 300
	for _, mkfs := range [][]string{nil, {"-M"}} {
		path := image(t, 200<<20, scale, "", mkfs...)
		want := stubs(filesystemtest.Truth(t, filesystemtest.CopyImage(t, path), "ro"))
		filesystemtest.TestFree(t, path, openAny, want, filesystemtest.AllFields, 0.7, nil)
	}
}

// TestFreeAsTheKernelSees: the kernel mounts what was spoiled, reads it, writes
// to it, and finds it whole.
func TestFreeAsTheKernelSees(t *testing.T) {
	scale := filesystemtest.SmallScale()
	scale.Entries, scale.Extents = 100, 100
	path := image(t, 200<<20, scale, "compress=zstd")
	want := stubs(filesystemtest.Truth(t, path, "ro"))
	fs := openImage(t, path)
	f := openWritable(t, path)
	rubbish := []byte(strings.Repeat("rubbish!", 8<<10))
	err := fs.Free(context.Background(), func(start, end int64) error {
		for start < end {
			n, err := f.WriteAt(rubbish[:min(int64(len(rubbish)), end-start)], start)
			if err != nil {
				return err
			}
			start += int64(n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "btrfs", "check", "--readonly", "--check-data-csum", path)
	for _, d := range filesystemtest.Compare(want, stubs(filesystemtest.Truth(t, path, "ro")), filesystemtest.AllFields) {
		t.Error(d)
	}
}

// TestLiveCopies reads copies of a busy filesystem: what the last commit left,
// which is what the kernel shows without the log tree.
func TestLiveCopies(t *testing.T) {
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	for _, path := range filesystemtest.LiveCopies(t, 160<<20, 2, "commit=1", "mkfs.btrfs", "-q") {
		fs := openImage(t, path)
		want := filesystemtest.Truth(t, filesystemtest.CopyImage(t, path), "ro,rescue=nologreplay")
		got, err := filesystemtest.Walk(context.Background(), fs)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
			t.Error(d)
		}
		notes := strings.Join(fs.Info().Notes, "; ")
		err = fs.Free(context.Background(), func(int64, int64) error { return nil })
		if log := fs.super.log != 0; log != strings.Contains(notes, "log tree") || log != (err != nil) {
			t.Errorf("a log tree: %v; notes %q; free: %v", log, notes, err)
		}
		t.Logf("%d names, notes %q", len(got), notes)
	}
}
