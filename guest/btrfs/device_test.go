package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cairn/guest/filesystem"
	"cairn/guest/filesystem/filesystemtest"
)

// attach puts images on loop devices that vanish with the test.
func attach(t testing.TB, images []string) []string {
	t.Helper()
	var loops []string
	for _, image := range images {
		out, err := exec.Command("losetup", "--show", "-f", image).Output()
		if err != nil {
			t.Skipf("no loop device: %v", err)
		}
		loop := strings.TrimSpace(string(out))
		loops = append(loops, loop)
		t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
	}
	return loops
}

// array makes images of one filesystem, fills it and records what the kernel
// shows.
func array(t testing.TB, count int, size int64, mkfs ...string) ([]string, filesystemtest.Tree) {
	t.Helper()
	filesystemtest.NeedRoot(t)
	filesystemtest.NeedTool(t, "mkfs.btrfs")
	var images []string
	for range count {
		images = append(images, filesystemtest.Image(t, size))
	}
	loops := attach(t, images)
	filesystemtest.Run(t, append(append([]string{"mkfs.btrfs", "-q"}, mkfs...), loops...)...)
	dir := t.TempDir()
	mount := func(options string) {
		t.Helper()
		for _, loop := range loops {
			options += ",device=" + loop
		}
		if out, err := exec.Command("mount", "-t", "btrfs", "-o", strings.TrimPrefix(options, ","), loops[0], dir).CombinedOutput(); err != nil {
			t.Skipf("this kernel does not mount it: %s", out)
		}
	}
	t.Cleanup(func() { exec.Command("umount", dir).Run() }) // when the test ends before
	mount("")
	if err := filesystemtest.Populate(dir, filesystemtest.SmallScale()); err != nil {
		t.Fatal(err)
	}
	volumes(t, dir)
	filesystemtest.Unmount(t, dir)
	mount("ro")
	tree, err := filesystemtest.Record(dir)
	if err != nil {
		t.Fatal(err)
	}
	filesystemtest.Unmount(t, dir)
	return images, withoutStubTimes(tree)
}

func devices(t testing.TB, images ...string) []Device {
	var d []Device
	for _, image := range images {
		d = append(d, openDevice(t, image))
	}
	return d
}

// compare holds a walk of the devices to the truth.
func compare(t *testing.T, d []Device, want filesystemtest.Tree) *FS {
	t.Helper()
	fs, err := Open(context.Background(), d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := filesystemtest.Walk(context.Background(), timeless{fs})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := want["sub/nodatacow"]; !ok {
		delete(got, "sub/nodatacow")
	}
	for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
		t.Error(d)
	}
	return fs
}

// rotten is an image of which only superblocks can be trusted: what is read
// elsewhere is changed, or is an error when broken is set.
type rotten struct {
	io.ReaderAt
	broken bool
}

var errBroken = errors.New("the medium is broken")

func (r rotten) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	for _, s := range superOffsets {
		if off == s {
			return n, err
		}
	}
	if r.broken {
		return 0, errBroken
	}
	for i := range p {
		p[i] ^= 0x40
	}
	return n, err
}

// TestArrays reads filesystems on several devices, whole, in another order,
// without one device and with one that rots.
func TestArrays(t *testing.T) {
	for _, test := range []struct {
		name      string
		count     int
		size      int64
		mkfs      []string
		redundant bool // a device may be away
	}{
		{"single", 2, 160 * mib, []string{"-d", "single", "-m", "raid1"}, false},
		{"raid0", 3, 160 * mib, []string{"-d", "raid0", "-m", "raid0", "-n", "4096"}, false},
		{"raid1", 2, 256 * mib, []string{"-d", "raid1", "-m", "raid1"}, true},
		{"raid10", 4, 160 * mib, []string{"-d", "raid10", "-m", "raid10", "--csum", "xxhash"}, true},
		{"raid1c3", 3, 256 * mib, []string{"-d", "raid1", "-m", "raid1c3", "-n", "65536"}, true},
		{"raid1c4", 4, 200 * mib, []string{"-d", "raid1c4", "-m", "raid1c4", "--csum", "sha256"}, true},
		{"raid5", 3, 256 * mib, []string{"-d", "raid5", "-m", "raid1"}, false},
		{"raid6", 4, 256 * mib, []string{"-d", "raid6", "-m", "raid1"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			images, want := array(t, test.count, test.size, append(test.mkfs, "-L", test.name)...)
			all := devices(t, images...)
			fs := compare(t, all, want)
			if notes := fs.Info().Notes; len(notes) > 0 {
				t.Errorf("notes: %q", notes)
			}
			ids := make(map[uint64]bool)
			for _, d := range all {
				s, err := Probe(context.Background(), d.Image, d.Size)
				if err != nil || s.NumDevices != uint64(test.count) || s.FSID != fs.Info().UUID || s.Label != test.name {
					t.Errorf("probe: %+v, %v", s, err)
				}
				ids[s.DevID] = true
			}
			if len(ids) != test.count {
				t.Errorf("devices %v", ids)
			}
			last := all[len(all)-1]
			rest := append([]Device{}, all[:len(all)-1]...)
			compare(t, append([]Device{last}, rest...), want)
			if !test.redundant {
				testLost(t, rest, test.count, want)
				return
			}
			fs = compare(t, rest, want)
			text := fmt.Sprintf("device %d is missing", test.count)
			if notes := strings.Join(fs.Info().Notes, "; "); !strings.Contains(notes, text) {
				t.Errorf("notes: %s", notes)
			}
			compare(t, append([]Device{{rotten{last.Image, true}, last.Size}}, rest...), want)
			compare(t, append(all[1:], Device{rotten{all[0].Image, true}, all[0].Size}), want)
			delete(want, "sub/nodatacow") // nobody can see that it rots
			compare(t, append([]Device{{rotten{last.Image, false}, last.Size}}, rest...), want)
		})
	}
}

// testLost reads without a device that nothing replaces: an error with its
// number, at Open or for the files on it, and nothing that is wrong.
func testLost(t *testing.T, rest []Device, id int, want filesystemtest.Tree) {
	t.Helper()
	number := fmt.Sprintf("device %d", id)
	fs, err := Open(context.Background(), rest)
	if err != nil {
		if !errors.Is(err, ErrDeviceMissing) || !strings.Contains(err.Error(), number) {
			t.Errorf("without device %d: %v", id, err)
		}
		return
	}
	got, err := filesystemtest.Walk(context.Background(), timeless{fs})
	if err != nil {
		t.Fatal(err)
	}
	lost, unlisted := 0, false
	for path, n := range got {
		if n.Err != "" {
			lost++
			unlisted = unlisted || n.Mode&filesystem.ModeType == filesystem.ModeDir || n.Mode == 0
			if !strings.Contains(n.Err, number) {
				t.Errorf("%q: %s", path, n.Err)
			}
			delete(got, path)
			delete(want, path)
		}
	}
	for path := range want { // what lies in a directory that cannot be listed
		if _, ok := got[path]; !ok && unlisted {
			delete(want, path)
		}
	}
	for _, d := range filesystemtest.Compare(want, got, filesystemtest.AllFields) {
		t.Error(d)
	}
	t.Logf("%d of %d cannot be read", lost, len(got)+lost)
	if lost == 0 {
		t.Error("all can be read without the device")
	}
}

// TestStaleDevice lets commits go by without one device of two. What it has
// of them must not be taken, with checksums or without.
func TestStaleDevice(t *testing.T) {
	images, _ := array(t, 2, 256*mib, "-d", "raid1", "-m", "raid1")
	stale := filesystemtest.CopyImage(t, images[1])
	loops := attach(t, images)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "btrfs", "-o", "device="+loops[0]+",device="+loops[1], loops[0], dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %s", out)
	}
	patch(t, dir+"/sub/nodatacow", 4096, "new contents, which the other device has not")
	if err := os.WriteFile(dir+"/new", []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	filesystemtest.Run(t, "sync", "-f", dir)
	tree, err := filesystemtest.Record(dir)
	filesystemtest.Unmount(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := withoutStubTimes(tree)
	for _, order := range [][]string{{images[0], stale}, {stale, images[0]}} {
		fs := compare(t, devices(t, order...), want)
		if notes := strings.Join(fs.Info().Notes, "; "); !strings.Contains(notes, "device 2 missed the commits") {
			t.Errorf("notes: %s", notes)
		}
	}
	other := filesystemtest.Image(t, 128*mib, "mkfs.btrfs", "-q")
	if _, err := Open(context.Background(), devices(t, images[0], other)); !errors.Is(err, filesystem.ErrUnsupported) {
		t.Errorf("devices of two filesystems: %v", err)
	}
}
