package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/guest"
	"cairn/guest/agent/stagetest"
)

// agentMain is an agent that freezes what is below its first argument, keeps its
// notes in the second, says so, and waits for its end. Its one object writes
// into the third.
func agentMain(args []string) {
	log := NewLog(os.Stderr)
	a := New(Options{
		Log: log, Logger: slog.New(slog.NewTextHandler(log, nil)), Below: args[0],
		RunDir: filepath.Join(args[1], "run"), StateDir: filepath.Join(args[1], "state"),
		Collectors: []Named{{"test", found{hooked(args[0], args[2])}}},
	})
	ctx := context.Background()
	fatal := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fatal(a.Start(ctx))
	call := func(name string, args any) {
		b, err := json.Marshal(args)
		fatal(err)
		_, err = a.Handle(ctx, guest.Call{Name: name, Args: b}, strings.NewReader(""))
		fatal(err)
	}
	call(guest.CallPrepare, guest.Prepare{Point: point})
	call(guest.CallFreeze, guest.Freeze{Point: point})
	fmt.Println("frozen")
	time.Sleep(2 * time.Minute)
}

// hooked is an object whose steps add their names to a file.
func hooked(dir, out string) Found {
	f := app("hooked", dir)
	post := sh("echo post >>" + out)
	f.Pre, f.Post, f.Owed = sh("echo pre >>"+out).Run, post.Run, post
	return f
}

// killWhileFrozen has an agent freeze, and kills it.
func killWhileFrozen(t *testing.T, below, dir, out string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], below, dir, out)
	cmd.Env = append(os.Environ(), modeVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line != "frozen\n" {
		t.Errorf("the agent said %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
}

func mustHold(t *testing.T, file, want string) {
	t.Helper()
	var got []byte
	for range 500 {
		got, _ = os.ReadFile(file) // compared
		if string(got) == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s holds %q, want %q", file, got, want)
}

// TestKilledWhileFrozen: kill -9, and the next start.
func TestKilledWhileFrozen(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	data := s.Mount("data", "ext4")
	other := s.Mount("other", "xfs")
	w := stagetest.NewWriter(t, data)
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	killWhileFrozen(t, s.Dir, dir, out)
	w.MustStand()
	if !stagetest.IsFrozen(t, other) {
		t.Error("the other one is not frozen")
	}
	mustHold(t, out, "pre\n")

	start := time.Now()
	a := testAgent(t, dir, s.Dir, found{hooked(data, out)})
	w.MustWrite()
	t.Logf("written again %v after the start", time.Since(start))
	if stagetest.IsFrozen(t, other) {
		t.Error("the other one is still frozen")
	}
	mustHold(t, out, "pre\npost\n")
	if welcome := a.Begin(t.Context()); !strings.Contains(welcome.Ended, "was killed") || !strings.Contains(welcome.Ended, data) {
		t.Errorf("welcome: %+v", welcome)
	}
	// It takes the next run, and owes nothing.
	begin(t, a)
	if th := must[guest.Thawn](t, a, guest.CallThaw, nil); !th.Held || th.Filesystems != 2 {
		t.Errorf("%+v", th)
	}
	mustHold(t, out, "pre\npost\npre\npost\n")
	a.Close(t.Context())
	for _, name := range []string{"run/frozen.json", "state/owed.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

// Notes that are damaged, on the filesystem that stands, do not keep the next
// start from thawing it.
func TestDamagedNotesWhileFrozen(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	data := s.Mount("data", "ext4")
	w := stagetest.NewWriter(t, data)
	dir, state := t.TempDir(), filepath.Join(data, "state")
	run := filepath.Join(dir, "run")
	if err := errors.Join(os.Mkdir(run, 0o700), os.Mkdir(state, 0o700), os.Symlink(state, filepath.Join(dir, "state")),
		os.WriteFile(filepath.Join(state, "owed.json"), []byte("[{"), 0o600),
		os.WriteFile(filepath.Join(run, "frozen.json"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	mount, err := os.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Close()
	if err := (linux{}).Freeze(int(mount.Fd())); err != nil {
		t.Fatal(err)
	}
	w.MustStand()
	testAgent(t, dir, s.Dir)
	w.MustWrite()
	if _, err := os.Stat(filepath.Join(state, "owed.json.damaged")); err != nil {
		t.Error(err)
	}
}

// What a start could not read is not noted: its step is not begun.
func TestTooMuchOwed(t *testing.T) {
	l := &ledger{stateDir: t.TempDir()}
	if err := l.owe([]owedStep{{Object: "x", Command: Command{Args: []string{strings.Repeat("x", maxLedger)}}}}); err == nil {
		t.Error("it was noted")
	}
	if n := l.owing(); n != 0 {
		t.Errorf("%d steps are owed", n)
	}
}

// After a power failure the notes in memory are gone, and those on the disk
// are not.
func TestOwedAfterReboot(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	data := s.Mount("data", "ext4")
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	killWhileFrozen(t, s.Dir, dir, out)
	if _, err := ThawAll(t.Context(), s.Dir); err != nil { // the reboot
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	testAgent(t, dir, s.Dir, found{hooked(data, out)})
	mustHold(t, out, "pre\npost\n")
}

// A step that must not be lost is not begun if it cannot be noted.
func TestPreThatCannotBeNoted(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	data := s.Mount("data", "ext4")
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	var e events
	other := app("other", data)
	other.Pre = e.step("pre")
	a := testAgent(t, dir, s.Dir, found{hooked(data, out), other})
	a.ledger.stateDir = "/no/such/folder"
	f := begin(t, a)
	th := must[guest.Thawn](t, a, guest.CallThaw, nil)
	d := document(t, a, f)
	if c := objectNamed(t, d, "hooked").Consistency; c.Level != "filesystem" || !strings.Contains(c.Reason, "could not be noted") || !th.Held {
		t.Errorf("%+v, %+v", c, th)
	}
	if c := objectNamed(t, d, "other").Consistency; c.Level != "application" || !e.has("pre") {
		t.Errorf("%+v", c)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("a step was begun: %v", err)
	}
}

func TestThawAll(t *testing.T) {
	if !stagetest.Private(t) {
		return
	}
	s := stagetest.New(t)
	data, still := s.Mount("data", "ext4"), s.Mount("still", "ext4")
	killWhileFrozen(t, data, t.TempDir(), filepath.Join(t.TempDir(), "out"))
	thawed, err := ThawAll(t.Context(), s.Dir)
	if err != nil || len(thawed) != 1 || thawed[0] != data {
		t.Errorf("%q, %v", thawed, err)
	}
	if stagetest.IsFrozen(t, data) || stagetest.IsFrozen(t, still) {
		t.Error("still frozen")
	}
}

func TestOneAgentOnly(t *testing.T) {
	dir := t.TempDir()
	testAgent(t, dir, "/no/such/place")
	b := New(Options{Log: NewLog(os.Stderr), Logger: slog.Default(), RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state")})
	if err := b.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "another cairn-agent") {
		t.Errorf("%v", err)
	}
}

// Notes that anybody could write are not followed, and damaged ones are put
// away.
func TestLedgerThatLies(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"of anybody": {`[{"object":"x","command":{"args":["/bin/sh","-c","touch OUT"]}}]`, 0o666},
		"damaged":    {`[{"object":"x","command":{"args":["/bin/sh","-c","touch OUT"]}}`, 0o600},
		"huge":       {"[" + strings.Repeat(`{"object":"x"},`, maxLedger/10) + "]", 0o600},
	} {
		dir := t.TempDir()
		out := filepath.Join(dir, "out")
		file := filepath.Join(dir, "state", "owed.json")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(c.text, "OUT", out)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		a := testAgent(t, dir, "/no/such/place")
		a.Close(t.Context())
		if _, err := os.Stat(out); !os.IsNotExist(err) {
			t.Errorf("%s: it was run", name)
		}
		if _, err := os.Stat(file + ".damaged"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The same one, well kept, is followed.
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state", "owed.json"), []byte(`[{"object":"x","command":{"args":["/bin/sh","-c","echo ran >`+out+`"]}}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	testAgent(t, dir, "/no/such/place")
	mustHold(t, out, "ran\n")
}
