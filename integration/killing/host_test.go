package killing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/product"
)

// Exit codes of cairn, as its --help promises them.
const (
	exitOK       = 0
	exitFailed   = 1
	exitWarnings = 3
	exitDamage   = 4
	exitAway     = 10
	killed       = -1 // a signal ended it
)

// patience bounds every single run of cairn; a run that needs it has hung.
const patience = 2 * time.Minute

// host is one hypervisor host as cairn sees it.
type host struct {
	name, dir, repo, key string
}

// newHost makes a host below dir with a repository's address and its key.
func newHost(t *testing.T, dir, name, repo, key string) *host {
	t.Helper()
	h := &host{name: name, dir: filepath.Join(dir, name), repo: repo, key: key}
	if err := os.Mkdir(h.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return h
}

// initRepo makes a repository and gives a file with its recovery key.
func initRepo(t *testing.T, dir, repo string, args ...string) (key string) {
	t.Helper()
	key = filepath.Join(dir, filepath.Base(repo)+".key")
	write(t, key, []byte(product.Key+"\n"))
	h := host{dir: dir, repo: repo, key: key}
	var made struct {
		RecoveryKey string `json:"recovery_key"`
	}
	r := h.must(t, append([]string{"init", "--json"}, args...)...)
	if err := json.Unmarshal(r.stdout.Bytes(), &made); err != nil || made.RecoveryKey == "" {
		t.Fatalf("init: %v: %s", err, &r.stdout)
	}
	write(t, key, []byte(made.RecoveryKey+"\n"))
	return key
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run is a cairn that was started.
type run struct {
	cmd            *exec.Cmd
	args           []string
	stdout, stderr bytes.Buffer
	begun          time.Time
	took           time.Duration
	done           chan struct{}
	cancel         context.CancelFunc
}

// start starts cairn. Whatever happens it has ended when the test has.
func (h *host) start(t *testing.T, args ...string) *run {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	r := &run{args: args, done: make(chan struct{}), cancel: cancel, begun: time.Now()}
	r.cmd = exec.CommandContext(ctx, os.Getenv(product.Env), args...)
	r.cmd.Env = append(os.Environ(), "CAIRN_REPOSITORY="+h.repo, "CAIRN_PASSWORD_FILE="+h.key, "CAIRN_STATE_DIR="+filepath.Join(h.dir, "state"),
		"CAIRN_CACHE_DIR="+filepath.Join(h.dir, "cache"), "CAIRN_CONFIG_DIR="+filepath.Join(h.dir, "conf"))
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	r.cmd.WaitDelay = 30 * time.Second // a guardian that outlives it may hold its pipes
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // the code is in ProcessState
		r.took = time.Since(r.begun)
		close(r.done)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
	})
	return r
}

func (r *run) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal %v: %v", s, err)
	}
}

// code waits for the end and gives the exit code.
func (r *run) code() int {
	<-r.done
	r.cancel()
	return r.cmd.ProcessState.ExitCode()
}

// String is what it was and what it said, for a failed test.
func (r *run) String() string {
	return "cairn " + strings.Join(r.args, " ") + "\n" + r.stdout.String() + r.stderr.String()
}

// must runs cairn, which must end well.
func (h *host) must(t *testing.T, args ...string) *run {
	t.Helper()
	r := h.start(t, args...)
	if code := r.code(); code != exitOK {
		t.Fatalf("exit code %d: %s", code, r)
	}
	return r
}

// pointOf gives the point that a backup has reported; "" if it has not.
func (r *run) pointOf() string {
	id, _ := r.summary()
	return id
}

// summary gives the point that a backup has reported, and how many chunks it
// found changed that its bitmaps called unchanged.
func (r *run) summary() (point string, wrong int) {
	for line := range strings.Lines(r.stdout.String()) {
		var m struct {
			Type  string `json:"message_type"`
			Point string `json:"point"`
			Wrong int    `json:"chunks_wrong"`
		}
		if json.Unmarshal([]byte(line), &m) == nil && m.Type == "summary" {
			return m.Point, m.Wrong
		}
	}
	return "", 0
}

// warned says that a backup is right and warns of nothing but that it read the
// disk whole: forgotten points take their bitmaps with them, and gc may be about
// to remove what the last point shares with them.
func (r *run) warned(code int) bool {
	id, wrong := r.summary()
	return code == exitWarnings && id != "" && wrong == 0 &&
		(strings.Contains(r.stdout.String(), "is read whole for the second time in a row") ||
			strings.Contains(r.stdout.String(), "cairn gc is removing what it shares with forgotten ones"))
}

// listed is one of `cairn points --json`.
type listed struct {
	ID   string    `json:"id"`
	VM   string    `json:"vm"`
	Time time.Time `json:"time"`
}

func (h *host) points(t *testing.T) []listed {
	t.Helper()
	var list struct {
		Points []listed `json:"points"`
	}
	r := h.must(t, "points", "--json", "--quiet")
	if err := json.Unmarshal(r.stdout.Bytes(), &list); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	return list.Points
}
