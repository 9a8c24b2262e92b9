package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
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

// moment is when a backup is hit: a while after it has noted a step, or after
// its start if step is empty.
type moment struct {
	step  string
	after time.Duration
}

func (m moment) String() string {
	if m.step == "" {
		return fmt.Sprintf("%v after the start", m.after)
	}
	return fmt.Sprintf("%v into step %q", m.after, m.step)
}

// moments are spread over all steps of a run; with CAIRN_LONG there are a
// hundred, most of them random.
func moments() []moment {
	const ms = time.Millisecond
	list := []moment{
		{"", 60 * ms}, {"fleece", 0}, {"fleece", 15 * ms}, {"freeze", 0}, {"freeze", 20 * ms}, {"freeze", 60 * ms}, {"point", 0},
		{"point", 3 * ms}, {"point", 15 * ms}, {"read", 0}, {"read", 40 * ms}, {"read", 200 * ms}, {"commit", 0}, {"commit", 12 * ms},
	}
	if !labtest.Long() {
		return list
	}
	for len(list) < 100 { // within what each step and those behind it take
		m := moment{step: list[rand.IntN(len(list))].step}
		span := map[string]time.Duration{"": 300, "fleece": 250, "freeze": 200, "point": 150, "read": 150, "commit": 25}[m.step] * ms
		m.after = rand.N(span)
		list = append(list, m)
	}
	return list
}

// TestKilledBackup kills cairn at many moments of a backup while the guest
// writes all the time. After each kill the guest writes on, all points there
// are whole, and the next run cleans up and makes a point.
//
// That the increments of all the runs are right is proven at the end: the
// guest makes files all the time, through every doomed backup, that it never
// writes to again, so a dirty bit lost by any run shows in the last comparison
// with the truth.
func TestKilledBackup(t *testing.T) {
	h := newHost(t)
	g := startVM(t, h)
	startWriter(t, g)
	first := h.backup(t).Point
	kept := map[string]string{}
	for _, disk := range guestDisks {
		kept[disk] = h.restoreDisk(t, first, disk) + ".kept"
		if err := os.Rename(strings.TrimSuffix(kept[disk], ".kept"), kept[disk]); err != nil {
			t.Fatal(err)
		}
	}
	hit := 0
	all := moments()
	for i, m := range all {
		before := h.points(t)
		r := h.start(t, backupOfRound(i)...)
		reached := h.awaitMoment(t, r, m)
		r.signal(t, syscall.SIGKILL)
		if got := r.wait(); got.code == -1 {
			hit++
			t.Logf("killed %v", m)
		} else {
			t.Logf("not killed %v (reached: %v): it had ended with %d", m, reached, got.code)
		}
		isAlive(t, g)
		isRunning(t, g)
		awaitTakenDown(t, h, g)
		labtest.Shell(t, g, fmt.Sprintf("head -c 100000 /dev/urandom >/srv/w/after-%d; sync", i))
		after := h.points(t)
		if len(after) != len(before) && len(after) != len(before)+1 {
			t.Fatalf("%v: %d points became %d", m, len(before), len(after))
		}
		h.run(t, exitOK, "check")
		if i%4 == 3 { // that the last point is whole, byte by byte
			h.run(t, exitOK, "check", "--read-data")
			h.restoreDisk(t, after[len(after)-1].ID, "vdb")
		}
		s := h.backup(t)
		if s.Consistency != "filesystem" || s.Read != "incremental" {
			t.Errorf("the backup behind the kill %v: %+v", m, s)
		}
		isTidy(t, h, g)
		if t.Failed() {
			t.FailNow()
		}
	}
	if hit < len(all)/2 {
		t.Errorf("only %d of %d kills hit a backup", hit, len(all))
	}
	t.Logf("the guest wrote %d times", stopWriter(t, g))
	backupPaused(t, h, g)
	h.run(t, exitOK, "check", "--read-data")
	for _, disk := range guestDisks {
		sameImage(t, disk+" of the first point", h.restoreDisk(t, first, disk), kept[disk])
	}
}

// awaitTakenDown waits until the guardian of a killed run has taken the fleece
// down: else its scratch files would grow until the next backup.
func awaitTakenDown(t *testing.T, h *host, g *lab.Guest) {
	t.Helper()
	var left, files []string
	for start := time.Now(); time.Since(start) < answerTime; time.Sleep(20 * time.Millisecond) {
		left, files = leftovers(t, g), listFiles(t, filepath.Join(h.state, "scratch"))
		if len(left)+len(files) == 0 {
			return
		}
	}
	log, err := os.ReadFile(filepath.Join(h.state, "guardian.log"))
	t.Fatalf("the guardian leaves %q in QEMU, and %q on the host; it says: %s %v", left, files, log, err)
}

// backupOfRound makes every third doomed backup a full read, which takes long
// enough to be hit while it reads.
func backupOfRound(i int) []string {
	args := []string{"backup", vmName, "--quiet"}
	if i%3 == 2 {
		args = append(args, "--full-read")
	}
	return args
}

// awaitMoment waits for a moment, and says whether the run got so far.
func (h *host) awaitMoment(t *testing.T, r *running, m moment) bool {
	t.Helper()
	if m.step != "" && !h.awaitStep(t, r, m.step) {
		return false
	}
	select {
	case <-r.done:
		return false
	case <-time.After(m.after):
		return true
	}
}

// TestInterruptedBackup: SIGTERM and Ctrl-C end a backup with 130, and leave
// the guest and the repository as if it had not been.
func TestInterruptedBackup(t *testing.T) {
	h := newHost(t)
	g := startVM(t, h)
	startWriter(t, g)
	h.backup(t)
	for _, c := range []struct {
		signal syscall.Signal
		moment moment
	}{
		{syscall.SIGTERM, moment{"fleece", 0}}, {syscall.SIGINT, moment{"freeze", 0}}, {syscall.SIGTERM, moment{"point", 0}},
		{syscall.SIGINT, moment{"read", 30 * time.Millisecond}}, {syscall.SIGTERM, moment{"read", 0}},
	} {
		before := h.points(t)
		r := h.start(t, "backup", vmName, "--quiet", "--full-read")
		if !h.awaitMoment(t, r, c.moment) {
			t.Fatalf("%v: the run ended before: %+v", c.moment, r.wait())
		}
		r.signal(t, c.signal)
		start := time.Now()
		got := r.wait()
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%v %v: it took %v to end", c.signal, c.moment, took)
		}
		t.Logf("%v %v: exit code %d after %.2f s: %s", c.signal, c.moment, got.code, time.Since(start).Seconds(), got.stderr)
		if got.code != exitInterrupted {
			t.Errorf("%v %v: exit code %d\n%s", c.signal, c.moment, got.code, got.stderr)
		}
		isAlive(t, g)
		if after := h.points(t); len(after) != len(before) {
			t.Errorf("%v %v: %d points became %d", c.signal, c.moment, len(before), len(after))
		}
		isTidy(t, h, g) // at once, not only behind the next run
	}
	h.run(t, exitOK, "check", "--read-data")
	h.backup(t)
	stopWriter(t, g)
	if s := backupPaused(t, h, g); s.Read != "incremental" {
		t.Errorf("behind the interrupted ones: %+v", s)
	}
	t.Run("PausedVM", func(t *testing.T) { testPausedVM(t, h, g) })
	backupPaused(t, h, g)
}

// testPausedVM: a VM that its operator has paused stays paused when a backup
// of it is killed. The guardian resumes only what cairn stopped.
func testPausedVM(t *testing.T, h *host, g *lab.Guest) {
	pause(t, g)
	r := h.start(t, "backup", vmName, "--quiet")
	if !h.awaitStep(t, r, "point") {
		t.Fatalf("the run ended before its point: %+v", r.wait())
	}
	r.signal(t, syscall.SIGSTOP)
	time.Sleep(300 * time.Millisecond) // what is on its way arrives
	r.signal(t, syscall.SIGKILL)
	r.wait()
	time.Sleep(3 * time.Second) // a guardian would have acted by now
	var status struct{ Status string }
	if err := g.Command(t.Context(), "query-status", nil, &status); err != nil || status.Status != "paused" {
		t.Errorf("the VM is %q (%v), its operator had paused it", status.Status, err)
	}
	resume(t, g)
	isAlive(t, g)
	h.backup(t)
	isTidy(t, h, g)
}

// TestKilledWithGuardian: cairn and its guardian are killed together while the
// guest is frozen, or stopped: nobody is left to undo it. The next run finds
// it in the journal.
func TestKilledWithGuardian(t *testing.T) {
	h := newHost(t)
	g := startVM(t, h)
	startWriter(t, g)
	h.backup(t)
	for _, after := range []time.Duration{0, 2 * time.Millisecond, 5 * time.Millisecond, 9 * time.Millisecond} {
		r := h.start(t, "backup", vmName, "--quiet")
		if !h.awaitMoment(t, r, moment{"point", after}) {
			t.Fatalf("the run ended before its point: %+v", r.wait())
		}
		r.signal(t, syscall.SIGSTOP)
		for _, pid := range childrenOf(t, r.cmd.Process.Pid) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
		}
		r.signal(t, syscall.SIGKILL)
		r.wait()
		time.Sleep(300 * time.Millisecond) // what is on its way arrives
		var status struct{ Status string }
		if err := g.Command(t.Context(), "query-status", nil, &status); err != nil {
			t.Fatal(err)
		}
		t.Logf("killed with its guardian %v into the point: the VM is %s", after, status.Status)
		if s := h.backup(t); s.Consistency != "filesystem" || s.Read != "incremental" {
			t.Errorf("the next run: %+v", s)
		}
		isRunning(t, g)
		isAlive(t, g)
		isTidy(t, h, g)
	}
	stopWriter(t, g)
	backupPaused(t, h, g)
}

// killRun kills a run of cairn, with its guardian if both is set: then nobody is
// left to undo anything. It says whether the run was hit, and the guardian, too.
func killRun(t *testing.T, r *running, both bool) (hit, guardian bool) {
	t.Helper()
	if both && !r.ended() {
		r.signal(t, syscall.SIGSTOP) // it starts no other one
		for _, pid := range childrenIfAny(t, r.cmd.Process.Pid) {
			err := syscall.Kill(pid, syscall.SIGKILL)
			if err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			guardian = guardian || err == nil
		}
	}
	r.signal(t, syscall.SIGKILL)
	return r.wait().code == -1, guardian
}

// childrenOf lists the processes that a process has started: its guardian.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	pids := childrenIfAny(t, pid)
	if len(pids) == 0 {
		t.Fatalf("process %d has no guardian", pid)
	}
	return pids
}

// childrenIfAny is childrenOf of a process that may have none, or have ended.
func childrenIfAny(t *testing.T, pid int) []int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) { // a thread that ended
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}
