//go:build linux

package stagetest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/guest/filesystem/filesystemtest"
)

// modeVariable has the test program do something else than testing.
const modeVariable = "CAIRN_TEST_WATCHDOG"

// Ioctls of linux/fs.h. They are written down here once more so that what tests
// the agent does not use it.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Main must be called by the TestMain of a package that uses a Stage, first.
func Main() {
	if os.Getenv(modeVariable) != "" {
		watchdog(os.Args[1:])
		os.Exit(0)
	}
}

// Private runs a test in a mount namespace of its own: it says true there.
func Private(t *testing.T) bool {
	t.Helper()
	if os.Getenv("CAIRN_TEST_PRIVATE") != "" {
		return true
	}
	filesystemtest.NeedRoot(t)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=150s")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_PRIVATE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	switch {
	case err != nil:
		t.Errorf("in its own mount namespace: %v", err)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skip("skipped in its own mount namespace")
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Error("it did not run")
	}
	return false
}

// Stage is a directory with real filesystems mounted below it.
type Stage struct {
	t   *testing.T
	Dir string // what may be frozen lies below it
}

// New makes an empty stage that goes with the test.
func New(t *testing.T) *Stage {
	return &Stage{t: t, Dir: filepath.Join(filesystemtest.ImageDir(t), "stage")}
}

// Mount makes a filesystem (ext4, xfs, btrfs) and mounts it below the stage.
func (s *Stage) Mount(name, kind string) string {
	s.t.Helper()
	filesystemtest.NeedTool(s.t, "mkfs."+kind)
	size := int64(64 << 20)
	command := []string{"mkfs." + kind, "-q"}
	switch kind {
	case "xfs":
		size = 320 << 20
	case "btrfs":
		size = 160 << 20
	}
	return s.MountImage(name, filesystemtest.Image(s.t, size, command...))
}

// MountImage mounts an image by a loop device.
func (s *Stage) MountImage(name, image string, options ...string) string {
	s.t.Helper()
	dir := filepath.Join(s.Dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := filesystemtest.MountAt(image, dir, options...); err != nil {
		s.t.Fatal(err)
	}
	// Lazily: another mount may have come to lie over it.
	s.t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	s.watch(dir)
	return dir
}

// Bind mounts a directory a second time, below the stage.
func (s *Stage) Bind(from, to string, options ...string) string {
	s.t.Helper()
	dir := filepath.Join(s.Dir, to)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	filesystemtest.Run(s.t, append(append([]string{"mount", "--bind"}, options...), from, dir)...)
	s.t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	return dir
}

// watch starts the process that thaws dir when this one ends in any way, or
// after two minutes.
func (s *Stage) watch(dir string) {
	s.t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), modeVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = in.Close() // which it waits for
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		s.t.Fatalf("the watchdog said %q, %v", line, err)
	}
}

func watchdog(dirs []string) {
	var fds []int
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_RDONLY, 0)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fds = append(fds, fd)
	}
	fmt.Println("ready")
	gone := make(chan bool)
	go func() {
		_, _ = io.ReadAll(os.Stdin) // until the test is gone
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(2 * time.Minute):
	}
	for _, fd := range fds {
		_ = ioctl(fd, fiThaw) // usually it is not frozen
	}
}

// IsFrozen asks the kernel by the way it tells: a second freeze is refused. One
// that is not is undone.
func IsFrozen(t *testing.T, dir string) bool {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	switch err := ioctl(fd, fiFreeze); err {
	case nil:
		if err := ioctl(fd, fiThaw); err != nil {
			t.Fatal(err)
		}
		return false
	case unix.EBUSY:
		return true
	default:
		t.Fatalf("freeze %s: %v", dir, err)
		return false
	}
}

func ioctl(fd int, request uint) error { return unix.IoctlSetInt(fd, request, 0) }

// Writer is a process that appends to a file, a hundred times a second. A
// goroutine would do, but would hang with the test.
type Writer struct {
	t    *testing.T
	path string
}

// NewWriter starts one in a directory. It ends with the test.
func NewWriter(t *testing.T, dir string) *Writer {
	t.Helper()
	w := &Writer{t: t, path: filepath.Join(dir, "written")}
	cmd := exec.Command("sh", "-c", `while echo x >>"$0"; do sleep 0.01; done`, w.path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it ends when it is thawed
	})
	w.MustWrite()
	return w
}

// Size gives how much was written, bytes.
func (w *Writer) Size() int64 {
	w.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(w.path, &st); err != nil && err != unix.ENOENT {
		w.t.Fatal(err)
	}
	return st.Size
}

// MustStand fails the test if the writer goes on.
func (w *Writer) MustStand() {
	w.t.Helper()
	time.Sleep(30 * time.Millisecond) // a write under way
	before := w.Size()
	time.Sleep(200 * time.Millisecond)
	if after := w.Size(); after != before {
		w.t.Errorf("%s grew from %d to %d bytes while frozen", w.path, before, after)
	}
}

// MustWrite waits until the writer goes on.
func (w *Writer) MustWrite() {
	w.t.Helper()
	before := w.Size()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if w.Size() > before {
			return
		}
	}
	w.t.Errorf("%s does not grow", w.path)
}
