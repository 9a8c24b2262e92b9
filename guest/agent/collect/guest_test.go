//go:build linux

package collect

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
	"cairn/guest/object/discover"
)

// lab is a guest of the test: its configuration is below a directory, and what
// that names, below the same directory, has this system's paths. Its processes
// are this system's.
type lab struct {
	t   *testing.T
	dir string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab") // sockets' names must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, dir: dir}
}

// write makes a file of the configuration.
func (l *lab) write(name, text string) {
	l.t.Helper()
	at := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// folder makes a directory that belongs to a user, and gives its path.
func (l *lab) folder(name, owner string) string {
	l.t.Helper()
	at := filepath.Join(l.dir, name)
	if err := os.MkdirAll(at, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if c := l.credential(owner); c != nil {
		if err := os.Chown(at, int(c.Uid), int(c.Gid)); err != nil {
			l.t.Fatal(err)
		}
	}
	return at
}

func (l *lab) guest() guest {
	return guest{open: func() tree { return labTree{discover.OS(l.dir), discover.OS("/"), l.dir} }, proc: "/proc"}
}

// labTree is a lab's configuration, and what it names.
type labTree struct {
	config, system *discover.OSRoot
	dir            string
}

func (r labTree) of(name string) *discover.OSRoot {
	if strings.HasPrefix(name, r.dir) {
		return r.system
	}
	return r.config
}
func (r labTree) ReadFile(name string, limit int64) ([]byte, error) {
	return r.of(name).ReadFile(name, limit)
}
func (r labTree) ReadDir(name string, limit int) ([]string, error) {
	return r.of(name).ReadDir(name, limit)
}
func (r labTree) Stat(name string) (discover.Info, error) { return r.of(name).Stat(name) }
func (r labTree) Close() error                            { r.config.Close(); return r.system.Close() }

// credential is a user's, nil when the test cannot be anybody else.
func (l *lab) credential(owner string) *syscall.Credential {
	l.t.Helper()
	if os.Geteuid() != 0 || owner == "" {
		return nil
	}
	u, err := user.Lookup(owner)
	if err != nil {
		l.t.Skip(err)
	}
	uid, _ := strconv.Atoi(u.Uid) // they are numbers
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// as runs a program as a user, and gives what it said.
func (l *lab) as(owner string, args ...string) string {
	l.t.Helper()
	out, err := l.try(owner, args...)
	if err != nil {
		l.t.Fatalf("%q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(out)
}

func (l *lab) try(owner string, args ...string) (string, error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = l.dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=/nonexistent"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.credential(owner)}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// serve starts a server that ends with the test.
func (l *lab) serve(owner string, args ...string) *exec.Cmd {
	l.t.Helper()
	log, err := os.Create(filepath.Join(l.dir, filepath.Base(args[0])+".log"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = l.dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.credential(owner), Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill() // may be over
		_ = cmd.Wait()
		if l.t.Failed() {
			b, _ := os.ReadFile(log.Name())
			l.t.Logf("%s said: %s", args[0], b[max(0, len(b)-2000):])
		}
	})
	return cmd
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("%s: not within a minute", what)
}

// installed skips a test whose software is not there.
func installed(t *testing.T, pattern string) string {
	t.Helper()
	found, _ := filepath.Glob(pattern) // a good pattern
	if len(found) == 0 {
		t.Skipf("%s is not installed", pattern)
	}
	return found[len(found)-1]
}

// inventory gives a collector's objects by name, after a check that they can be
// in a document.
func inventory(t *testing.T, c Collector) (map[string]agent.Found, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all, err := c.Inventory(ctx)
	d := &object.Document{Version: object.Version, Source: object.SourceAgent}
	found := map[string]agent.Found{}
	for _, f := range all {
		d.Objects = append(d.Objects, f.Object)
		found[f.Object.Name] = f
		if f.Object.Consistency.Reason == "" {
			t.Errorf("%s: no reason is given for its consistency", f.Object.Name)
		}
	}
	b, encodeErr := object.Encode(d)
	if encodeErr == nil {
		_, encodeErr = object.Decode(b)
	}
	if encodeErr != nil {
		t.Errorf("%s: %v", c.Name(), encodeErr)
	}
	return found, err
}

func paths(o object.Object) map[string]string {
	all := map[string]string{}
	for _, p := range o.Paths {
		all[p.Role] = p.Path
	}
	return all
}
