package notify

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// host is a daemon with a book, and a clock that the test moves.
type host struct {
	t    testing.TB
	dir  string
	book *runs.Book
	now  time.Time
	s    runs.Status
}

func newHost(t testing.TB, vms ...string) *host {
	h := &host{t: t, dir: t.TempDir(), now: noon}
	h.open()
	h.s = runs.Status{Host: "host1", Version: "1.2.3", Repositories: []runs.Repository{{Name: "main"}}}
	for _, vm := range vms {
		h.s.VMs = append(h.s.VMs, runs.VM{Name: vm, Jobs: []string{"nightly"}})
	}
	return h
}

func (h *host) open() {
	h.t.Helper()
	b, err := runs.Open(filepath.Join(h.dir, "book"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.book = b
	h.t.Cleanup(func() { b.Close() })
}

func (h *host) status() runs.Status { s := h.s; s.Now = h.now; return s }

func (h *host) end(r runs.Run) {
	h.t.Helper()
	r.ID, r.Started, r.Ended = runs.NewID(), h.now.Add(-time.Minute), h.now
	if r.Repository == "" {
		r.Repository = "main"
	}
	if err := h.book.End(r); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) backup(vm string, o runs.Outcome) {
	h.t.Helper()
	r := runs.Run{Kind: runs.Backup, VM: vm, Outcome: o}
	if o == runs.Failed {
		r.Reason = "QEMU does not answer"
	}
	h.end(r)
}

// step moves the clock, and gives what a message then says: states and keys.
func (h *host) step(l *ledger, d time.Duration) string {
	h.now = h.now.Add(d)
	l.update(h.status(), h.book, h.now)
	due := l.due(h.now, time.Minute, 24*time.Hour)
	if len(due) == 0 {
		return ""
	}
	m := compose(due, "host1", "1", h.now)
	l.told(due, h.now)
	var words []string
	for _, p := range m.Problems {
		words = append(words, p.State+" "+p.Key)
	}
	return strings.Join(words, ", ")
}

func newLedger(t testing.TB) *ledger {
	l, err := readLedger(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOneMessageForAProblem(t *testing.T) {
	h, l := newHost(t, "web", "db", "rare"), newLedger(t)
	steps := []struct {
		does func()
		wait time.Duration
		want string
	}{
		{func() {}, 0, ""},
		{func() { h.backup("web", runs.Failed) }, 0, ""}, // more may come
		{func() { h.backup("db", runs.Failed); h.s.VMs[2].Late = true }, 30 * time.Second, ""},
		{func() {}, 30 * time.Second, "new failure/backup/db/main, new failure/backup/web/main, new late/rare"},
		{func() { h.backup("web", runs.Failed); h.s.VMs[0].Late = true }, 30 * time.Second, ""},
		{func() {}, time.Minute, "new late/web"},
		{func() { h.backup("web", runs.Failed) }, 12 * time.Hour, ""},
		{func() {}, 11 * time.Hour, ""},
		// The reminder takes along what would be reminded of within six hours.
		{func() {}, time.Hour, "goes on failure/backup/db/main, goes on failure/backup/web/main, goes on late/rare, goes on late/web"},
		{func() { h.backup("web", runs.Warned); h.s.VMs[0].Late = false }, 0, ""},
		{func() {}, time.Minute, "over failure/backup/web/main, over late/web"},
		{func() {}, time.Minute, ""},
		{func() { h.backup("web", runs.Failed) }, 0, ""},
		{func() {}, time.Minute, "new failure/backup/web/main"},
		{func() { h.s.VMs = h.s.VMs[1:] }, 2 * time.Minute, ""}, // out of the configuration, or not found for a moment
		{func() {}, time.Hour, ""},
		{func() {}, time.Minute, "over failure/backup/web/main"},
		{func() { h.backup("other", runs.Skipped); h.backup("db", runs.Interrupted) }, 2 * time.Minute, ""},
	}
	for i, s := range steps {
		s.does()
		if got := h.step(l, s.wait); got != s.want {
			t.Errorf("step %d: %q, want %q", i, got, s.want)
		}
	}
}

// TestEachFailureByItself: what makes up for a failure is a good run of the same VM
// into the same repository, or of the same job's forget; and a check that found
// damage is damage, however it ended.
func TestEachFailureByItself(t *testing.T) {
	h, l := newHost(t, "web"), newLedger(t)
	h.s.Repositories = append(h.s.Repositories, runs.Repository{Name: "offsite"})
	h.step(l, 0)
	h.end(runs.Run{Kind: runs.Backup, VM: "web", Repository: "offsite", Outcome: runs.Failed})
	h.end(runs.Run{Kind: runs.Forget, Job: "a", Outcome: runs.Failed})
	h.end(runs.Run{Kind: runs.Check, Outcome: runs.Failed, Findings: 2})
	h.s.Repositories[0].Findings = 2
	h.step(l, 0)
	if got := h.step(l, time.Minute); got != "new damage/main, new failure/backup/web/offsite, new failure/forget/a/main" {
		t.Errorf("failed: %s", got)
	}
	h.end(runs.Run{Kind: runs.Backup, VM: "web", Outcome: runs.Done})
	h.end(runs.Run{Kind: runs.Forget, Job: "b", Outcome: runs.Done})
	if got := h.step(l, 0) + h.step(l, time.Minute); got != "" {
		t.Errorf("others went well: %s", got)
	}
	// The same at a first start: what goes on is in the past of the book.
	fresh := newLedger(t)
	h.step(fresh, 0)
	if got := h.step(fresh, time.Minute); got != "new damage/main, new failure/backup/web/offsite, new failure/forget/a/main" {
		t.Errorf("a new ledger: %s", got)
	}
	h.end(runs.Run{Kind: runs.Backup, VM: "web", Repository: "offsite", Outcome: runs.Done})
	h.end(runs.Run{Kind: runs.Forget, Job: "a", Outcome: runs.Done})
	h.step(l, 0)
	if got := h.step(l, time.Minute); got != "over failure/backup/web/offsite, over failure/forget/a/main" {
		t.Errorf("over: %s", got)
	}
}

// An interrupted run after a failed one is no recovery, and after a good one no
// failure.
func TestInterruptedIsNeither(t *testing.T) {
	h, l := newHost(t, "web"), newLedger(t)
	h.step(l, 0)
	h.backup("web", runs.Failed)
	if got := h.step(l, time.Minute) + h.step(l, time.Minute); got != "new failure/backup/web/main" {
		t.Errorf("failed: %q", got)
	}
	h.backup("web", runs.Interrupted)
	if got := h.step(l, time.Minute) + h.step(l, time.Minute); got != "" {
		t.Errorf("interrupted: %q", got)
	}
	h.backup("web", runs.Done)
	if got := h.step(l, time.Minute) + h.step(l, time.Minute); got != "over failure/backup/web/main" {
		t.Errorf("good: %q", got)
	}
}

func TestEveryKindOfProblem(t *testing.T) {
	h, l := newHost(t, "web"), newLedger(t)
	h.step(l, 0)
	h.s.Problem = "cairn.toml:1:1: what"
	h.s.Jobs = []runs.Job{{Name: "nightly", Problem: "libvirt does not answer"}}
	h.s.Repositories = []runs.Repository{{Name: "main", Problem: "no route", Places: 3, Away: []string{"/d2"}, Findings: 2}}
	h.end(runs.Run{Kind: runs.Backup, VM: "web", Outcome: runs.Done, Point: &runs.Point{Wrong: 3}})
	for _, k := range []runs.Kind{runs.GC, runs.Check, runs.Forget, runs.Engine} {
		h.end(runs.Run{Kind: k, Job: "nightly", Outcome: runs.Failed, Reason: "x"})
	}
	h.end(runs.Run{Kind: runs.Catalogue, VM: "web", Of: "a point", Outcome: runs.Failed, Reason: "x"}) // the point is whole
	h.s.Troubles = []runs.Trouble{{Key: "discover kvm", Text: "discover kvm: nothing was found"}}
	h.step(l, 0)
	want := "new audit/web/main, new config, new damage/main, new failure/check/main, new failure/engine/main, new failure/forget/nightly/main, new failure/gc/main, new job/nightly, new places/main, new repository/main, new trouble/discover kvm"
	if got := h.step(l, time.Minute); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	h.s.Troubles = nil
	h.s.Problem, h.s.Jobs[0].Problem, h.s.Repositories[0] = "", "", runs.Repository{Name: "main"}
	h.end(runs.Run{Kind: runs.Backup, VM: "web", Outcome: runs.Done, Point: &runs.Point{}})
	for _, k := range []runs.Kind{runs.GC, runs.Check, runs.Forget, runs.Engine} {
		h.end(runs.Run{Kind: k, Job: "nightly", Outcome: runs.Done})
	}
	h.step(l, 0)
	if got := h.step(l, time.Minute); got != strings.ReplaceAll(want, "new", "over") {
		t.Errorf("over: %s", got)
	}
}

// A host that was off for a night is late in everything when it starts: that it makes
// up for is not told, what it does not get to within an hour is.
func TestCatchingUpIsNotLate(t *testing.T) {
	h, l := newHost(t, "web", "db", "lost"), newLedger(t)
	h.s.Since = h.now
	for i := range h.s.VMs {
		h.s.VMs[i].Late = true
	}
	h.s.Waiting = []runs.Run{{Kind: runs.Backup, VM: "web"}}
	h.s.Running = []runs.Live{{Run: runs.Run{Kind: runs.Backup, VM: "db"}}}
	h.step(l, 0)
	if got := h.step(l, time.Minute); got != "new late/lost" {
		t.Errorf("at first: %q", got)
	}
	h.s.VMs[1].Late, h.s.Running = false, nil
	h.step(l, time.Hour)
	if got := h.step(l, time.Minute); got != "new late/web" {
		t.Errorf("after an hour: %q", got)
	}
}

// TestWhatAKillHides: a failure and its recovery that nobody saw, since the daemon
// was killed between them, is told; and what was before the first start is not.
func TestWhatAKillHides(t *testing.T) {
	h := newHost(t, "web", "db")
	h.backup("db", runs.Failed)
	h.backup("db", runs.Done)
	l := newLedger(t)
	if got := h.step(l, 0) + h.step(l, time.Hour); got != "" {
		t.Errorf("history is told: %s", got)
	}
	path := filepath.Join(t.TempDir(), "notify-x.json")
	h.backup("web", runs.Failed)
	h.step(l, 0) // noticed, not told
	if err := l.write(path); err != nil {
		t.Fatal(err)
	}
	h.backup("web", runs.Done)
	h.backup("db", runs.Failed)
	h.backup("db", runs.Done)
	h.backup("db", runs.Failed)
	h.book.Close()
	h.open()
	l, err := readLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	h.step(l, 0)
	if got := h.step(l, time.Minute); got != "new failure/backup/db/main, over failure/backup/web/main" {
		t.Errorf("after the kill: %q", got)
	}
	if len(l.Entries) != 1 || l.Entries[0].VM != "db" || l.Entries[0].Told.IsZero() {
		t.Errorf("left: %+v", l.Entries)
	}
}

// TestTheFirstRuns: what fails and goes well between the first two looks is told,
// also when no run had ended at the first.
func TestTheFirstRuns(t *testing.T) {
	h, l := newHost(t, "web"), newLedger(t)
	h.step(l, 0)
	h.backup("web", runs.Failed)
	h.backup("web", runs.Done)
	h.step(l, 0)
	if got := h.step(l, time.Minute); got != "over failure/backup/web/main" {
		t.Errorf("got %q", got)
	}
}

// TestClockIsSetBack: the order of the book counts, not the times in it.
func TestClockIsSetBack(t *testing.T) {
	h, l := newHost(t, "web"), newLedger(t)
	h.backup("web", runs.Done)
	h.step(l, 0)
	h.now = h.now.Add(-time.Hour)
	h.backup("web", runs.Failed)
	h.backup("web", runs.Done)
	h.step(l, 0)
	if got := h.step(l, time.Minute); got != "over failure/backup/web/main" {
		t.Errorf("got %q", got)
	}
}

func TestOverWhileItIsSent(t *testing.T) {
	h, l := newHost(t, "web"), newLedger(t)
	h.step(l, 0)
	h.backup("web", runs.Failed)
	h.step(l, 0)
	h.now = h.now.Add(time.Minute)
	due := l.due(h.now, time.Minute, time.Hour)
	h.backup("web", runs.Done)
	l.update(h.status(), h.book, h.now)
	l.told(due, h.now)
	if got := h.step(l, time.Minute); got != "over failure/backup/web/main" {
		t.Errorf("then: %q", got)
	}
	if len(l.Entries) != 0 || len(l.by) != 0 {
		t.Errorf("left: %v %v", l.Entries, l.by)
	}
}

func TestDamagedLedger(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":2}`, `{"version":1,"entries":[null]}`, strings.Repeat("[", 100_000)} {
		path := filepath.Join(t.TempDir(), "l")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := readLedger(path)
		if l == nil || err == nil {
			t.Fatalf("%.20q: %v %v", text, l, err)
		}
		h := newHost(t, "web")
		h.backup("web", runs.Failed)
		h.step(l, 0)
		if got := h.step(l, time.Minute); got != "new failure/backup/web/main" {
			t.Errorf("%.20q: %q", text, got)
		}
	}
}

func TestManyProblems(t *testing.T) {
	var vms []string
	for i := range maxEntries + 10 {
		vms = append(vms, fmt.Sprint("vm", i))
	}
	h, l := newHost(t, vms...), newLedger(t)
	for i := range h.s.VMs {
		h.s.VMs[i].Late = true
	}
	began := time.Now()
	l.update(h.status(), h.book, h.now)
	h.now = h.now.Add(time.Minute)
	due := l.due(h.now, time.Minute, time.Hour)
	m := compose(due, "h", "1", h.now)
	if len(l.Entries) != maxEntries || len(m.Problems) != maxTold || m.Omitted != maxEntries-maxTold || !strings.Contains(m.text(), "and 9950 more") {
		t.Errorf("%d entries, %d told, %d omitted", len(l.Entries), len(m.Problems), m.Omitted)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// What is wrong with all jobs at once is told once.
func TestTroubleIsToldOnce(t *testing.T) {
	dead := "discover kvm: nothing was found: it does not answer"
	s := runs.Status{Now: noon, Troubles: []runs.Trouble{{Key: "discover kvm", Text: dead}}}
	for _, name := range []string{"a", "b", "c"} {
		s.Jobs = append(s.Jobs, runs.Job{Name: name, Problem: dead})
	}
	s.Jobs = append(s.Jobs, runs.Job{Name: "d", Problem: "its own"})
	var got []string
	for _, p := range conditions(s) {
		got = append(got, p.Kind+" "+p.Key)
	}
	if strings.Join(got, ", ") != "trouble trouble/discover kvm, job job/d" {
		t.Errorf("%q", got)
	}
}
