package btrfs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// several makes a filesystem on n devices, fills it, and gives the images and
// what the kernel shows.
func several(t *testing.T, n int, mkfs ...string) (images []string, want filesystemtest.Tree) {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	dir := filesystemtest.ImageDir(t)
	var loops []string
	for i := range n {
		path := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 200<<20); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("losetup", "--find", "--show", path).Output()
		if err != nil {
			t.Skipf("needs loop devices: %v", err)
		}
		loop := strings.TrimSpace(string(out))
		t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
		images, loops = append(images, path), append(loops, loop)
	}
	filesystemtest.Run(t, append(append([]string{"mkfs.btrfs", "-q", "-f"}, mkfs...), loops...)...)
	filesystemtest.Run(t, append([]string{"btrfs", "device", "scan"}, loops...)...)
	at := t.TempDir()
	filesystemtest.Run(t, "mount", "-t", "btrfs", loops[0], at)
	mounted := true
	unmount := func() {
		if mounted {
			mounted = unix.Unmount(at, unix.MNT_DETACH) != nil
		}
	}
	t.Cleanup(unmount)
	scale := filesystemtest.SmallScale()
	scale.Entries, scale.Extents = 300, 300
	populate(t, at, scale)
	want, err := filesystemtest.Record(at)
	if err != nil {
		t.Fatal(err)
	}
	unmount()
	for _, loop := range loops { // what the kernel still holds of them is written
		filesystemtest.Run(t, "blockdev", "--flushbufs", loop)
	}
	return images, stubs(want)
}

// TestSeveralDevices reads filesystems on two to four devices in any order, and
// with one away where there are copies.
func TestSeveralDevices(t *testing.T) {
	for _, test := range []struct {
		name    string
		devices int
		copies  bool
		mkfs    []string
	}{
		{"raid1", 2, true, []string{"-d", "raid1", "-m", "raid1"}},
		{"raid0", 3, false, []string{"-d", "raid0", "-m", "raid0"}},
		{"raid10", 4, true, []string{"-d", "raid10", "-m", "raid10"}},
		{"raid1c3", 3, true, []string{"-d", "raid1c3", "-m", "raid1c3"}},
		{"raid5", 3, false, []string{"-d", "raid5", "-m", "raid1"}},
		{"single", 2, false, []string{"-d", "single", "-m", "dup"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			images, want := several(t, test.devices, test.mkfs...)
			images[0], images[1] = images[1], images[0]
			compare := func(fs *FS, fields filesystemtest.Fields) {
				t.Helper()
				got, err := filesystemtest.Walk(context.Background(), fs)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range filesystemtest.Compare(want, got, fields) {
					t.Error(d)
				}
			}
			fs := openImage(t, images...)
			compare(fs, filesystemtest.AllFields)
			if err := fs.Free(context.Background(), func(int64, int64) error { return nil }); err == nil {
				t.Error("free space is told of several devices")
			}
			if test.copies {
				for gone := range images {
					rest := append(append([]string{}, images[:gone]...), images[gone+1:]...)
					fs := openImage(t, rest...)
					compare(fs, filesystemtest.AllFields)
					if len(fs.Info().Notes) == 0 {
						t.Error("no note says that a device is missing")
					}
				}
			} else if fs, err := Open(context.Background(), []Device{device(t, images[0])}); err == nil {
				// What lies on the other alone is an error, and lasting.
				got, err := filesystemtest.Walk(context.Background(), fs)
				if err != nil && !errors.Is(err, filesystem.ErrUnsupported) && !errors.Is(err, filesystem.ErrCorrupt) {
					t.Fatal(err)
				}
				if len(filesystemtest.Compare(want, got, filesystemtest.Contents)) == 0 {
					t.Error("everything could be read without a device")
				}
			}
		})
	}
}

func TestWrongDevices(t *testing.T) {
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	a := filesystemtest.Image(t, 120<<20, "mkfs.btrfs", "-q")
	b := filesystemtest.Image(t, 120<<20, "mkfs.btrfs", "-q")
	for _, images := range [][]string{{a, b}, {a, a}, {}} {
		var devices []Device
		for _, path := range images {
			devices = append(devices, device(t, path))
		}
		if _, err := Open(context.Background(), devices); err == nil {
			t.Errorf("%d devices that do not belong together were opened", len(images))
		}
	}
}
