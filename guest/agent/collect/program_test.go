//go:build linux

package collect

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(script string, timeout time.Duration) program {
	return program{args: []string{"/bin/sh", "-c", script}, timeout: timeout, limit: 1000}
}

func TestProgram(t *testing.T) {
	p := shell("cat; echo err >&2; env", quick)
	p.input, p.env = "in\n", []string{"X=1"}
	t.Setenv("AGENT_SECRET", "1")
	out, stderr, err := p.runBoth(context.Background())
	if err != nil || !strings.HasPrefix(out, "in\n") || !strings.Contains(out, "X=1\n") || strings.Contains(out, "AGENT_SECRET") || stderr != "err\n" {
		t.Errorf("%q %q %v", out, stderr, err)
	}
	if _, err := shell("echo why >&2; exit 3", quick).run(context.Background()); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("it failed: %v", err)
	}
	if _, err := (program{args: []string{find("no-such-program")}, timeout: quick}).run(context.Background()); err == nil {
		t.Error("it is not there")
	}
}

// TestProgramIsBounded: in what it says, and how long it takes, with its
// children.
func TestProgramIsBounded(t *testing.T) {
	start := time.Now()
	if _, err := shell("yes", time.Minute).run(context.Background()); err == nil || !strings.Contains(err.Error(), "more than 1000 bytes") {
		t.Errorf("an endless one: %v", err)
	}
	if _, err := shell("while :; do echo x >&2; done", 200*time.Millisecond).run(context.Background()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an endless complaint: %v", err)
	}
	if _, err := shell("sleep 300.125 & trap : TERM; sleep 300.125", 200*time.Millisecond).run(context.Background()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a sleeping one: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, p := range (guest{proc: "/proc"}).processes("sleep") {
		if args := p.arguments(); len(args) == 2 && args[1] == "300.125" {
			t.Errorf("a child is left: %d", p.pid)
		}
	}
}

func TestProgramAsAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	p := program{args: []string{"/usr/bin/id", "-u"}, uid: 65534, timeout: quick}
	if out, err := p.run(context.Background()); err != nil || strings.TrimSpace(out) != "65534" {
		t.Errorf("%q %v", out, err)
	}
	p.args = []string{"/usr/bin/id", "-G"}
	if out, err := p.run(context.Background()); err != nil || strings.Contains(" "+strings.TrimSpace(out)+" ", " 0 ") {
		t.Errorf("groups of root are left: %q %v", out, err)
	}
}

func TestSession(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := open(ctx, shell("while read x; do echo got $x; done", 0), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := s.until(ctx, "a\nb\n", "got b")
	if err != nil || len(lines) != 1 || lines[0] != "got a" {
		t.Errorf("%q %v", lines, err)
	}
	if err := s.alive(); err != nil {
		t.Error(err)
	}
	s.end(quick)
	if s.alive() == nil {
		t.Error("it has not ended")
	}
	s.end(quick) // once is enough

	// One that says nothing, that dies, that says too much, that does not end.
	s, err = open(ctx, shell("sleep 100", 0), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	if _, err := s.until(short, "a\n", "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent one: %v", err)
	}
	start := time.Now()
	s.end(100 * time.Millisecond)
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("its end took %v", took)
	}
	for script, want := range map[string]string{"echo why >&2; exit 1": "why", "yes": ""} {
		s, err := open(ctx, shell(script, 0), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.until(ctx, "a\n", "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", script, err)
		}
		s.end(0)
	}
	s, err = open(ctx, shell("sleep 100", 0), 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.until(ctx, "a\n", "x"); err == nil || ctx.Err() != nil {
		t.Errorf("one that is held too long: %v", err)
	}
	s.end(0)
}

// TestProcesses finds the test itself, and its child by its directory.
func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	l := &lab{t: t, dir: dir}
	child := l.serve("", "/bin/sleep", "200")
	g := guest{proc: "/proc"}
	i := 0
	for _, p := range g.processes("sleep") {
		if p.in(dir) {
			i++
			if p.pid != child.Process.Pid || p.parent() != os.Getpid() || p.cwd() != dir || strings.Join(p.arguments(), " ") != "/bin/sleep 200" {
				t.Errorf("%+v: parent %d, in %s, %q", p, p.parent(), p.cwd(), p.arguments())
			}
		}
	}
	if i != 1 {
		t.Errorf("%d processes in %s", i, dir)
	}
	if _, ok := master([]process{{pid: child.Process.Pid, proc: "/proc/" + "self"}}); !ok {
		t.Error("a process alone is nobody's child")
	}
	if err := syscall.Kill(child.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
