package fs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cairn/fs/tree"
	"cairn/fs/tree/treetest"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Tests look at a mount from this process while a child, the test binary
// again, serves it: a process must not use its own mount. The child serves
// the world that its environment names until its standard input ends.
const (
	envWorld   = "CAIRN_TEST_WORLD"
	envDir     = "CAIRN_TEST_DIR"
	envRaw     = "CAIRN_TEST_RAW_LINKS"
	envSetting = "CAIRN_TEST_SETTING"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(envWorld); name != "" {
		os.Exit(serve(name, os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// serve is the child.
func serve(name string, stdin io.Reader, stdout, stderr io.Writer) int {
	w, err := worlds[name](os.Getenv(envSetting))
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	s := newServer(w, Options{
		RawLinks: os.Getenv(envRaw) != "",
		Deadline: w.deadline,
		Derive:   w.derive,
		Files:    w.files,
		Report:   func(err error) { fmt.Fprintln(stderr, "report:", err) },
	})
	if w.openTree != nil {
		s.openTree = w.openTree
	}
	if w.wrap != nil {
		s.wrap = w.wrap
	}
	if _, err := s.mount(context.Background(), os.Getenv(envDir)); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintln(stdout, "mounted")
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		fmt.Fprintln(stdout, w.command(s, lines.Text()))
	}
	if err := s.Unmount(context.Background()); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// world is a source made for a test.
type world struct {
	mu        sync.Mutex // for points and the counts
	points    []restorepoint.Summary
	images    map[string]restorepoint.Image
	manifest  *restorepoint.Manifest
	openTree  func(context.Context, *restorepoint.Manifest, func(string) (restorepoint.Image, error)) (*tree.Tree, error)
	deadline  time.Duration
	derive    Deriver
	files     catalogue.Opener
	manifests int // how many were read
	listings  int
	wrap      func(fuse.RawFileSystem) fuse.RawFileSystem
	do        func(s *Server, w *world, line string) string
}

func (w *world) Points(context.Context) ([]restorepoint.Summary, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listings++
	return append([]restorepoint.Summary(nil), w.points...), nil
}

func (w *world) Manifest(_ context.Context, id string) (*restorepoint.Manifest, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.manifests++
	for _, s := range w.points {
		if s.ID == id {
			m := *w.manifest
			m.ID, m.VM.Name, m.Time = id, s.VM, s.Time
			return &m, nil
		}
	}
	return nil, errors.New("no such point")
}

func (w *world) Image(_ context.Context, _ *restorepoint.Manifest, disk string) (restorepoint.Image, error) {
	if image := w.images[disk]; image != nil {
		return image, nil
	}
	return nil, errors.New("no such disk")
}

// command does what a test asks the child for.
func (w *world) command(s *Server, line string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case line == "counts":
		return fmt.Sprintf("manifests=%d listings=%d held=%d", w.manifests, w.listings, s.table.size())
	case w.do != nil:
		return w.do(s, w, line)
	}
	return "unknown"
}

func withVolumes(set treetest.Volumes) func(context.Context, *restorepoint.Manifest, func(string) (restorepoint.Image, error)) (*tree.Tree, error) {
	return func(_ context.Context, m *restorepoint.Manifest, _ func(string) (restorepoint.Image, error)) (*tree.Tree, error) {
		return tree.New(m, set.Scan), nil
	}
}

// mounted is a world mounted by a child.
type mounted struct {
	dir    string
	stdin  io.WriteCloser
	stdout *bufio.Scanner
	cmd    *exec.Cmd
}

func needFUSE(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse: ", err)
	}
}

func mountWorld(t testing.TB, name string, env ...string) *mounted {
	t.Helper()
	needFUSE(t)
	m := &mounted{dir: filepath.Join(t.TempDir(), "mnt")}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.start(t, name, env...)
	return m
}

func (m *mounted) start(t testing.TB, name string, env ...string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), envWorld+"="+name, envDir+"="+m.dir), env...)
	var messages strings.Builder
	cmd.Stderr = &messages
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.cmd, m.stdin, m.stdout = cmd, stdin, bufio.NewScanner(stdout)
	t.Cleanup(func() {
		stdin.Close()
		stop := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer stop.Stop()
		if err := cmd.Wait(); err != nil && m.cmd == cmd {
			t.Errorf("the child that served %s: %v", name, err)
			unix.Unmount(m.dir, unix.MNT_DETACH)
		}
		if text := messages.String(); text != "" {
			t.Logf("the child that served %s said:\n%.4000s", name, text)
		}
	})
	if !m.stdout.Scan() || m.stdout.Text() != "mounted" {
		t.Fatalf("the child did not mount %s", name)
	}
}

func (m *mounted) ask(t testing.TB, line string) string {
	t.Helper()
	fmt.Fprintln(m.stdin, line)
	if !m.stdout.Scan() {
		t.Fatalf("the child did not answer %q", line)
	}
	return m.stdout.Text()
}

func (m *mounted) path(names ...string) string {
	return filepath.Join(append([]string{m.dir}, names...)...)
}
