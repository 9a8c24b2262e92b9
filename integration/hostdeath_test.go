package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/integration/lab"
	"cairn/integration/lab/labtest"
)

// startInsideVM is startVM of a guest in which cairn-agent runs.
func startInsideVM(t *testing.T, h *host) *lab.Guest {
	t.Helper()
	g := labtest.Start(t, func(o *lab.Options) {
		o.Inject = map[string]string{"cairn-agent": filepath.Join(filepath.Dir(os.Getenv(cairnEnv)), "cairn-agent")}
	})
	awaitAgent(t, g, true)
	h.run(t, exitOK, "vm", "add", vmName, "--qmp", g.QMPSocket, "--replace")
	awaitInside(t, h, g)
	return g
}

// awaitInside waits until cairn-agent answers.
func awaitInside(t *testing.T, h *host, g *lab.Guest) {
	t.Helper()
	for range 200 {
		if h.start(t, "agent", "status", vmName).wait().code == exitOK {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("cairn-agent does not answer")
}

// TestHostDiesWhileFrozen: cairn and its guardian are killed, or hang, while the
// inside agent holds the guest frozen. The guest writes on: at once when they
// die, for the agent sees that; within its own limit when they only hang.
func TestHostDiesWhileFrozen(t *testing.T) {
	h := newHost(t)
	g := startInsideVM(t, h)
	s := h.backup(t)
	if s.Consistency != "filesystem" || !strings.Contains(s.Why, "no application was told") {
		t.Errorf("a guest without an application: %+v", s)
	}
	// A step that fails lowers the point, is named, and ends in exit code 3; the post step is run.
	labtest.Shell(t, g, `mkdir -p /etc/cairn-agent && printf 'name = "shop"\npaths = ["/srv/www"]\npre = "echo the shop is closed >&2; exit 7"\npost = "echo x >>/run/post"\n' >/etc/cairn-agent/shop.toml`)
	if s := h.backupExit(t, exitWarnings); s.Consistency != "filesystem" || !strings.Contains(s.Why, "shop") || !strings.Contains(strings.Join(s.Warnings, " "), "the shop is closed") {
		t.Errorf("with a step that fails: %+v", s)
	}
	if got := strings.TrimSpace(labtest.Shell(t, g, "cat /run/post")); got != "x" {
		t.Errorf("the post step ran %q", got)
	}
	labtest.Shell(t, g, "rm /etc/cairn-agent/shop.toml")
	// The default of 30 s is waited for in the long variant only.
	limit := 30 * time.Second
	if !labtest.Long() {
		limit = 10 * time.Second
		labtest.Shell(t, g, "mkdir -p /etc/cairn-agent; echo 'freeze_limit = \"10s\"' >/etc/cairn-agent/agent.toml; killall cairn-agent")
		awaitInside(t, h, g)
	}
	h.run(t, exitOK, "freeze-test", vmName).mentions(t, "froze 2 filesystems")
	// Only the objects that the job names are told, and one that is not there is said.
	if r := h.run(t, exitOK, "backup", vmName, "--object", "users/a*"); !strings.Contains(r.stderr, "inventory: 1 users") {
		t.Errorf("with --object: %s", r.stderr)
	}
	h.run(t, exitWarnings, "backup", vmName, "--object", "postgresql*").mentions(t, `knows no object "postgresql*"`)
	startWriter(t, g)
	written := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(labtest.Shell(t, g, "cat /run/written 2>/dev/null || echo 0")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// writesAgain gives how long after since the guest had written again.
	writesAgain := func(since time.Time) time.Duration {
		t.Helper()
		before := written()
		for time.Since(since) < 2*time.Minute {
			if written() > before+2 { // one may have been on its way
				return time.Since(since)
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatal("the guest does not write any more")
		return 0
	}
	frozen := func() *running {
		t.Helper()
		r := h.start(t, "backup", vmName, "--json")
		if !h.awaitStep(t, r, "point") { // the filesystems stand by then
			t.Fatalf("the backup ended before its point: %+v", r.wait())
		}
		return r
	}

	hit := 0
	for i := range 6 {
		r := frozen()
		time.Sleep(time.Duration(i) * 2 * time.Millisecond)
		start := time.Now()
		if killed, _ := killRun(t, r, true); killed {
			hit++
		}
		// In the few milliseconds of the point the whole VM is stopped, until the
		// next run. A guest that did not run when QEMU saw the end of cairn does not
		// hear of it (QEMU 7.2): it has its own clock.
		atMost := 5 * time.Second
		if isPaused(t, g) {
			resume(t, g)
			atMost = limit + 5*time.Second
		}
		if took := writesAgain(start); took > atMost {
			t.Errorf("kill %d: the guest wrote again only after %v", i, took)
		} else {
			t.Logf("kill %d: the guest wrote again after %v", i, took)
		}
		if s := h.backup(t); s.Consistency != "filesystem" {
			t.Errorf("the backup after kill %d: %+v", i, s)
		}
	}
	if hit < 4 {
		t.Errorf("%d of 6 kills hit a run", hit)
	}

	// It hangs: the channel stays open, and the guest has only its own clock.
	r := frozen()
	start := time.Now()
	pids := append(childrenIfAny(t, r.cmd.Process.Pid), r.cmd.Process.Pid)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	if isPaused(t, g) {
		resume(t, g)
	}
	took := writesAgain(start)
	t.Logf("with a host that hangs the guest wrote again after %v", took)
	if took > limit+5*time.Second {
		t.Errorf("the guest stood for %v, its limit is %v", took, limit)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	got := r.wait()
	if got.code != exitWarnings && got.code != exitFailed {
		t.Errorf("the run that hung: exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
	if got.code == exitWarnings {
		if s := summaryOf(t, got); s.Consistency != "crash" || !strings.Contains(s.Why, "did not stand") {
			t.Errorf("the point of the run that hung: %+v", s)
		}
	}
	stopWriter(t, g)
	if s := h.backup(t); s.Consistency != "filesystem" {
		t.Errorf("the next one: %+v", s)
	}
	isTidy(t, h, g)
	isAlive(t, g)
}

// isPaused says whether the VM's processors are stopped.
func isPaused(t *testing.T, g *lab.Guest) bool {
	t.Helper()
	var is struct {
		Status string `json:"status"`
	}
	if err := g.Command(t.Context(), "query-status", nil, &is); err != nil {
		t.Fatal(err)
	}
	return is.Status == "paused"
}
