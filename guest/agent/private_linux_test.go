package agent

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

// Tests freeze real filesystems. They do so in a mount namespace of their own,
// below a directory of their own, and a process of its own thaws what they
// leave, also if they are killed: a filesystem that stays frozen wedges the
// machine.

// Modes of the test program besides that of testing, by this variable.
const modeVariable = "CAIRN_TEST_MODE"

func TestMain(m *testing.M) {
	switch os.Getenv(modeVariable) {
	case "watchdog":
		watchdogMain(os.Args[1:])
	case "agent":
		agentMain(os.Args[1:])
	default:
		os.Exit(m.Run())
	}
}

// private runs a test in a mount namespace of its own: it says true there.
func private(t *testing.T) bool {
	t.Helper()
	if os.Getenv("CAIRN_TEST_PRIVATE") != "" {
		return true
	}
	filesystemtest.NeedRoot(t)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=150s")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_PRIVATE=1")
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

// stage is a directory with real filesystems mounted below it.
type stage struct {
	t   *testing.T
	dir string // what the agent may freeze lies below it
}

func newStage(t *testing.T) *stage {
	return &stage{t: t, dir: filepath.Join(filesystemtest.ImageDir(t), "stage")}
}

// mount makes a filesystem and mounts it.
func (s *stage) mount(name, kind string) string {
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
	return s.mountImage(name, filesystemtest.Image(s.t, size, command...))
}

func (s *stage) mountImage(name, image string, options ...string) string {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	filesystemtest.Run(s.t, "mount", "-o", strings.Join(append([]string{"loop"}, options...), ","), image, dir)
	// Lazily: another mount may have come to lie over it.
	s.t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	s.watch(dir)
	return dir
}

func (s *stage) bind(from, to string, options ...string) string {
	s.t.Helper()
	dir := filepath.Join(s.dir, to)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	filesystemtest.Run(s.t, append(append([]string{"mount", "--bind"}, options...), from, dir)...)
	s.t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	return dir
}

// watch starts the process that thaws dir when this one ends in any way, or
// after two minutes.
func (s *stage) watch(dir string) {
	s.t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), modeVariable+"=watchdog")
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

func watchdogMain(dirs []string) {
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
		_ = linux{}.Thaw(fd) // usually it is not frozen
	}
}

// isFrozen asks the kernel by the way it tells: a second freeze is refused. One
// that is not is undone.
func isFrozen(t *testing.T, dir string) bool {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	switch err := (linux{}).Freeze(fd); err {
	case nil:
		if err := (linux{}).Thaw(fd); err != nil {
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

// writer is a process that appends to a file and syncs, a hundred times a
// second. A goroutine would do, but would hang with the test.
type writer struct {
	t    *testing.T
	path string
}

func newWriter(t *testing.T, dir string) *writer {
	t.Helper()
	w := &writer{t: t, path: filepath.Join(dir, "written")}
	cmd := exec.Command("sh", "-c", `while echo x >>"$0"; do sleep 0.01; done`, w.path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it ends when it is thawed
	})
	w.mustWrite()
	return w
}

func (w *writer) size() int64 {
	w.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(w.path, &st); err != nil && err != unix.ENOENT {
		w.t.Fatal(err)
	}
	return st.Size
}

// mustStand fails the test if the writer goes on.
func (w *writer) mustStand() {
	w.t.Helper()
	time.Sleep(30 * time.Millisecond) // a write under way
	before := w.size()
	time.Sleep(200 * time.Millisecond)
	if after := w.size(); after != before {
		w.t.Errorf("%s grew from %d to %d bytes while frozen", w.path, before, after)
	}
}

// mustWrite waits until the writer goes on.
func (w *writer) mustWrite() {
	w.t.Helper()
	before := w.size()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if w.size() > before {
			return
		}
	}
	w.t.Errorf("%s does not grow", w.path)
}
