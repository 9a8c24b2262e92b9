package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// TestGuestWithoutAgent: a guest whose agent is not there, hangs, or begins to
// hang while it should freeze, is backed up all the same, and never left
// frozen.
func TestGuestWithoutAgent(t *testing.T) {
	t.Parallel() // it boots guests of its own, and measures no time
	h := newHost(t)
	g := startVM(t, h)
	h.backup(t)

	t.Run("Stopped", func(t *testing.T) {
		labtest.Shell(t, g, "touch /run/no-qemu-ga; killall qemu-ga")
		awaitAgent(t, g, false)
		s := h.backup(t)
		if s.Consistency != "crash" || !strings.Contains(s.Why, "qemu-guest-agent") || s.Read != "incremental" {
			t.Errorf("without an agent: %+v", s)
		}
		isAlive(t, g)
		labtest.Shell(t, g, "rm /run/no-qemu-ga")
		awaitAgent(t, g, true)
	})

	t.Run("Hanging", func(t *testing.T) {
		labtest.Shell(t, g, "kill -STOP $(pidof qemu-ga)")
		s := h.backupExit(t, exitWarnings)
		if s.Consistency != "crash" || len(s.Warnings) == 0 || !strings.Contains(s.Why, "agent") {
			t.Errorf("with a hanging agent: %+v", s)
		}
		isAlive(t, g)
		labtest.Shell(t, g, "kill -CONT $(pidof qemu-ga)")
		isAlive(t, g) // whatever the agent finds in its channel now
		isTidy(t, h, g)
		if s := h.backup(t); s.Consistency != "filesystem" {
			t.Errorf("when the agent answers again: %+v", s)
		}
	})

	// Cairn is halted before it freezes; then the agent is; then cairn goes on
	// and freezes a guest whose agent does not answer. When it does again it
	// finds the commands of that run in its channel.
	t.Run("HangsInFreeze", func(t *testing.T) {
		r := h.start(t, "backup", vmName, "--json")
		if !h.awaitStep(t, r, "fleece") {
			t.Fatalf("the run ended before: %+v", r.wait())
		}
		r.signal(t, syscall.SIGSTOP)
		labtest.Shell(t, g, "kill -STOP $(pidof qemu-ga)")
		r.signal(t, syscall.SIGCONT)
		got := r.wait()
		isAlive(t, g) // nothing is frozen yet: the agent has not read it
		labtest.Shell(t, g, "kill -CONT $(pidof qemu-ga)")
		t.Logf("exit code %d: %s", got.code, got.stderr)
		if got.code != exitWarnings {
			t.Errorf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
		} else if s := summaryOf(t, got); s.Consistency != "crash" {
			t.Errorf("the point of a guest that could not be frozen: %+v", s)
		}
		isAlive(t, g)
		isTidy(t, h, g)
		if s := h.backup(t); s.Consistency != "filesystem" {
			t.Errorf("when the agent answers again: %+v", s)
		}
		isAlive(t, g)
	})

	// The agent hangs as soon as it has begun to freeze, and comes back later:
	// what it has frozen is thawed then, by the run or, if that was killed
	// meanwhile, by its guardian. A process of the guest halts the agent and
	// lets it go on, because its console may not answer until then.
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("HangsFrozen/killed=%v", kill), func(t *testing.T) {
			labtest.Shell(t, g, haltFrozen(13))
			r := h.start(t, "backup", vmName, "--json")
			if kill {
				time.Sleep(5 * time.Second)
				r.signal(t, syscall.SIGKILL)
			}
			got := r.wait()
			t.Logf("exit code %d: %s", got.code, got.stderr)
			if !kill && got.code != exitOK && got.code != exitWarnings {
				t.Errorf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
			}
			isAlive(t, g)
			labtest.Shell(t, g, "[ -e /run/halted ]")
			for range 20 { // the guardian may need the monitor and the agent a moment longer
				if labtest.Shell(t, g, "ls /run/qga.state.isfrozen 2>/dev/null || :") == "" {
					break
				}
				time.Sleep(500 * time.Millisecond)
			}
			if s := h.backup(t); s.Consistency != "filesystem" {
				t.Errorf("when the agent answers again: %+v", s)
			}
			isTidy(t, h, g)
			isAlive(t, g)
		})
	}

	// Cairn and its guardian are killed while the guest is frozen and its agent
	// hangs. Each run tries to thaw and warns, and the journal keeps that it is
	// owed, until the agent answers.
	t.Run("HangsFrozen/killed with its guardian", func(t *testing.T) {
		labtest.Shell(t, g, haltFrozen(30))
		r := h.start(t, "backup", vmName, "--json")
		time.Sleep(4 * time.Second)
		if hit, guardian := killRun(t, r, true); !hit || !guardian {
			t.Fatalf("killed the run: %v, its guardian: %v", hit, guardian)
		}
		s := h.backupExit(t, exitWarnings)
		if !strings.Contains(strings.Join(s.Warnings, " "), "had frozen the guest") {
			t.Errorf("while the agent hangs: %+v", s)
		}
		var kept struct{ Frozen bool }
		if b, err := os.ReadFile(filepath.Join(h.state, "journal", vmName+".json")); err != nil || json.Unmarshal(b, &kept) != nil || !kept.Frozen {
			t.Errorf("the journal forgot that a thaw is owed: %s, %v", b, err)
		}
		awaitFreeAgent(t, g)
		if s := h.backup(t); s.Consistency != "filesystem" || len(s.Warnings) > 0 {
			t.Errorf("when the agent answers again: %+v", s)
		}
		isTidy(t, h, g)
		isAlive(t, g)
	})
	backupPaused(t, h, g)
}

// haltFrozen is a shell command of the guest that halts its agent as soon as
// it has frozen, for some seconds.
func haltFrozen(seconds int) string {
	return fmt.Sprintf(`rm -f /run/halted; (while [ ! -e /run/qga.state.isfrozen ]; do usleep 2000; done
p=$(pidof qemu-ga); kill -STOP $p; touch /run/halted; sleep %d; kill -CONT $p; touch /run/going) </dev/null >/dev/null 2>&1 &
rm -f /run/going`, seconds)
}

// awaitFreeAgent waits until the agent that haltFrozen halted goes on.
func awaitFreeAgent(t *testing.T, g *lab.Guest) {
	t.Helper()
	for start := time.Now(); time.Since(start) < answerTime; time.Sleep(500 * time.Millisecond) {
		if labtest.Shell(t, g, "ls /run/going 2>/dev/null || :") != "" {
			return
		}
	}
	t.Fatal("the agent does not go on")
}

// TestFreezeTest: it freezes, thaws, says how long that took, and makes no
// point; without an agent it says what is missing.
func TestFreezeTest(t *testing.T) {
	h := newHost(t)
	g := startVM(t, h)
	var got struct {
		Filesystems int   `json:"filesystems"`
		FreezeMS    int64 `json:"freeze_ms"`
		FrozenMS    int64 `json:"frozen_ms"`
		Attempts    int   `json:"thaw_attempts"`
	}
	h.run(t, exitOK, "freeze-test", vmName, "--json").decode(t, &got)
	if got.Filesystems != 2 || got.FreezeMS <= 0 || got.FrozenMS <= 0 || got.Attempts < 1 {
		t.Errorf("%+v", got)
	}
	h.run(t, exitOK, "freeze-test", vmName).mentions(t, "froze 2 filesystems")
	isAlive(t, g)
	isTidy(t, h, g)
	if n := len(h.points(t)); n != 0 {
		t.Errorf("%d points", n)
	}

	// What doctor and show say in words.
	h.run(t, exitOK, "doctor", vmName).mentions(t, "there is no restore point")
	s := h.backup(t)
	doctor := h.run(t, exitOK, "doctor", vmName)
	for _, words := range []string{"QEMU has all that an incremental backup needs", "the next backup: incremental: bitmap", "the last one is of", "free for what the guest overwrites", "changed since bitmap"} {
		doctor.mentions(t, words)
	}
	show := h.run(t, exitOK, "show", s.Point)
	for _, words := range []string{"full: vda, vdb: full read: the repository has no earlier point", "filesystem: qemu-guest-agent froze 2", s.Pace} {
		show.mentions(t, words)
	}
	if !strings.Contains(s.Pace, "of which") {
		t.Errorf("where the time went: %q", s.Pace)
	}

	labtest.Shell(t, g, "touch /run/no-qemu-ga; killall qemu-ga")
	awaitAgent(t, g, false)
	h.run(t, exitFailed, "freeze-test", vmName).mentions(t, "install or start qemu-guest-agent")
	isTidy(t, h, g)
}

// TestThawedByAnother: somebody else thaws the guest between our freeze and the
// point: qemu-ga then thaws fewer filesystems than it froze, and the point is
// called what it is.
func TestThawedByAnother(t *testing.T) {
	h := newHost(t)
	g := startVM(t, h)
	h.backup(t)
	// In the guest, as soon as its root stands, a program that needs no file
	// thaws it: a FITHAW of what does not stand fails and does nothing.
	labtest.Shell(t, g, "cp /bin/busybox /run/busybox; (while [ ! -e /run/stop ]; do /run/busybox fsfreeze --unfreeze / 2>/dev/null; done) </dev/null >/dev/null 2>&1 &")
	var s summary
	for range 5 {
		r := h.start(t, "backup", vmName, "--json").wait()
		if r.code != exitOK && r.code != exitWarnings {
			t.Fatalf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
		if s = summaryOf(t, r); s.Consistency == "crash" {
			break
		}
	}
	if s.Consistency != "crash" || !strings.Contains(s.Why, "thawed before the point") {
		t.Errorf("with somebody else who thaws: %+v", s)
	}
	labtest.Shell(t, g, "touch /run/stop")
	isAlive(t, g)
}
