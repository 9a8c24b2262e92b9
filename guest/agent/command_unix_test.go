//go:build unix

package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func sh(script string) *Command { return &Command{Args: []string{"/bin/sh", "-c", script}} }

func TestCommandSucceeds(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	c := sh("pwd >" + out + "; echo $WORD >>" + out + "; exit 0")
	c.Env = []string{"WORD=hello"}
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); string(b) != "/\nhello\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestCommandFails(t *testing.T) {
	err := sh("echo no such table; exit 3").Run(t.Context())
	var failed *CommandError
	if !errors.As(err, &failed) || failed.Output != "no such table" || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v: %+v", err, failed)
	}
	for _, c := range []*Command{{}, {Args: []string{"/no/such/program"}}, {Args: []string{"/bin/true"}, User: "nobody-has-this-name"}} {
		if err := c.Run(t.Context()); !errors.As(err, &failed) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// A command that hangs is killed with its children.
func TestCommandHangs(t *testing.T) {
	child := filepath.Join(t.TempDir(), "child")
	c := sh("sleep 1000 & echo $! >" + child + "; echo waiting; wait")
	c.TimeoutMS = 300
	start := time.Now()
	err := c.Run(t.Context())
	var failed *CommandError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), "300ms") || failed.Output != "waiting" {
		t.Errorf("%v: %+v", err, failed)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	b, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if !isGone(pid) {
		t.Errorf("its child %d is still there", pid)
	}
}

// isGone waits until a process has ended, or only waits for its parent.
func isGone(pid int) bool {
	for range 200 {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || strings.Contains(string(b), ") Z ") {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func TestCommandEndsWithItsRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := sh("sleep 1000").Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// Endless output costs no memory; its end is kept.
func TestCommandPrintsEndlessly(t *testing.T) {
	c := sh("yes 0123456789")
	c.TimeoutMS = 300
	err := c.Run(t.Context())
	var failed *CommandError
	if !errors.As(err, &failed) || len(failed.Output) > outputKept+8 || !strings.Contains(failed.Output, "0123456789\n0123456789") {
		t.Errorf("%v: %d bytes", err, len(failed.Output))
	}
	err = sh("seq 100000; exit 1").Run(t.Context())
	if !errors.As(err, &failed) || !strings.HasSuffix(failed.Output, "\n99999\n100000") || !strings.HasPrefix(failed.Output, "…") {
		t.Errorf("%v: %.20q", err, failed.Output)
	}
}

// A service that a command starts may hold its output for good.
func TestCommandLeavesAService(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	start := time.Now()
	if err := sh("sleep 60 & echo $! >" + pidFile).Run(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the service did not live on: %v", err)
	}
}

func TestCommandAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	c := sh(`test "$(id -un) $USER" = "nobody nobody"`)
	c.User = "nobody"
	if err := c.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		writes []string
		want   string
	}{
		{nil, ""},
		{[]string{"abc"}, "abc"},
		{[]string{"abcd", "e"}, "…bcde"},
		{[]string{"a", "bcdefgh"}, "…efgh"},
		{[]string{"abcd"}, "abcd"},
	} {
		tail := tail{limit: 4}
		for _, w := range c.writes {
			if n, err := tail.Write([]byte(w)); n != len(w) || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}
		if got := tail.String(); got != c.want {
			t.Errorf("%q: %q, want %q", c.writes, got, c.want)
		}
	}
}
