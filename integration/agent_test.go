package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab/labtest"
)

// TestGuestWithoutAgent: a guest whose agent is not there, hangs, or begins to
// hang while it should freeze, is backed up all the same, and never left
// frozen.
func TestGuestWithoutAgent(t *testing.T) {
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
			labtest.Shell(t, g, `rm -f /run/halted; (while [ ! -e /run/qga.state.isfrozen ]; do usleep 2000; done
p=$(pidof qemu-ga); kill -STOP $p; touch /run/halted; sleep 13; kill -CONT $p) </dev/null >/dev/null 2>&1 &`)
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
	backupPaused(t, h, g)
}
