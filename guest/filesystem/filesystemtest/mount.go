package filesystemtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// NeedRoot skips a test that has to mount images.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting the reference needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("mounting the reference needs loop devices: %v", err)
	}
}

// NeedTool skips a test whose program is not installed.
func NeedTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
}

// Image makes a sparse file of size bytes and runs a command on it, whose
// last argument becomes the file's path: Image(t, 64<<20, "mkfs.ext4", "-q").
func Image(t testing.TB, size int64, command ...string) string {
	t.Helper()
	path := filepath.Join(ImageDir(t), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if len(command) > 0 {
		Run(t, append(command, path)...)
	}
	return path
}

// ImageDir is a directory for images that is removed with the test. It lies
// in /var/tmp, for /tmp may be small and in memory.
func ImageDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "cairn-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Run runs a command and fails the test with its output when it fails.
func Run(t testing.TB, command ...string) {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
}

// MountAt mounts an image on a directory. Of two programs that mount at the same
// time both may choose the same loop device: the one that lost tries again.
func MountAt(image, dir string, options ...string) error {
	o := strings.Join(append([]string{"loop"}, options...), ",")
	for tries := 1; ; tries++ {
		out, err := exec.Command("mount", "-o", strings.TrimSuffix(o, ","), image, dir).CombinedOutput()
		if err == nil {
			return nil
		}
		if tries == 20 || !strings.Contains(string(out), "busy") && !strings.Contains(string(out), "loop device") {
			return fmt.Errorf("mount %s: %w: %s", image, err, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Unmount unmounts a directory. A process that another test starts has our
// open files until it runs its program, and the directory is busy meanwhile.
func Unmount(t testing.TB, dir string) {
	t.Helper()
	for tries := 1; ; tries++ {
		out, err := exec.Command("umount", dir).CombinedOutput()
		if err == nil {
			return
		}
		if tries == 20 || !strings.Contains(string(out), "busy") {
			t.Fatalf("umount %s: %v: %s", dir, err, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// LoopMount mounts an image and gives the directory and a function that
// unmounts it, which the end of the test calls otherwise. options are
// mount(8)'s after "loop", such as "ro" or "data=journal". The test is skipped
// when the kernel does not mount it.
func LoopMount(t testing.TB, image, options string) (dir string, unmount func()) {
	t.Helper()
	NeedRoot(t)
	dir, unmount, err := loopMount(t, image, options)
	if err != nil {
		t.Skipf("this kernel does not mount the image: %v", err)
	}
	return dir, unmount
}

func loopMount(t testing.TB, image, options string) (dir string, unmount func(), err error) {
	if dir, err = os.MkdirTemp("/var/tmp", "cairn-mount-"); err != nil {
		return "", nil, err
	}
	if err := MountAt(image, dir, options); err != nil {
		os.Remove(dir)
		return "", nil, err
	}
	mounted := true
	unmount = func() {
		t.Helper()
		if mounted {
			mounted = false
			Unmount(t, dir)
			os.Remove(dir)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount, nil
}

// Truth mounts an image and records it. options are "ro" for an image that
// was unmounted; a dirty one needs "rw", which lets the kernel replay its log
// into the file, so give it a copy. An image that does not mount fails the
// test, for a test that gets here has mounted it before.
func Truth(t testing.TB, image, options string) Tree {
	t.Helper()
	dir, unmount, err := loopMount(t, image, options)
	if err != nil {
		t.Fatalf("mount %s: %v", image, err)
	}
	defer unmount()
	tree, err := Record(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}
