package cli

import (
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/runs"
)

// What cairn serve cannot begin with it says before anything is done. What it does is
// tested in integration/serving: its workers are processes of the program.
func TestServeRefuses(t *testing.T) {
	h := newHost(t)
	_, errs := h.must(exitFailed, "serve", "status")
	if !strings.Contains(errs, "no cairn serve runs on this host") {
		t.Errorf("status: %s", errs)
	}
	h.must(exitOK, "unless-served", "gc")
	h.must(exitUsage, "serve", "--grace", "-1s")
	h.configure("cairn.toml", "[job.web]\nvms = [\"*\"]\nschedul = \"daily\"\n")
	if _, errs := h.must(exitUsage, "serve"); !strings.Contains(errs, "cairn.toml:3:1") || !strings.Contains(errs, "did you mean schedule?") {
		t.Errorf("with errors: %s", errs)
	}
}

func TestStatusIsReadable(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	good := runs.Run{Ended: now.Add(-26 * time.Hour)}
	bad := runs.Run{Ended: now.Add(-time.Hour), Reason: "it hangs\x1b[2J"}
	s := runs.Status{Now: now, Problem: "the configuration has errors",
		VMs:          []runs.VM{{Name: "a", Jobs: []string{"daily"}, LastGood: &good, Late: true}, {Name: "b"}, {Name: "c", Jobs: []string{"daily"}, Last: &bad, Failures: 2}},
		Repositories: []runs.Repository{{Name: "main", Address: "/r", Away: []string{"/mnt/d2"}, Findings: 1, LastCheck: &bad}},
		Running:      []runs.Live{{Run: runs.Run{Kind: runs.Backup, VM: "d", Started: now.Add(-time.Minute)}, Step: "reading", Done: 1, Total: 4}},
		Waiting:      []runs.Run{{Kind: runs.Backup, VM: "e", Job: "daily", Due: now, Reason: "its window opens"}}}
	var out strings.Builder
	a := &app{stdout: &out, now: time.Now}
	if err := a.printStatus(s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PROBLEM: the configuration has errors\n", "running: backup of d for 1 minute, 25%: reading\n", "waiting: backup of e daily, due ", ": its window opens\n",
		"late", "not protected: in no job", `failed 2 times: "it hangs`, "1 day ago", "away: /mnt/d2", "1 finding"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("a VM's words reach the terminal as they are")
	}
	if !troubled(s) || troubled(runs.Status{VMs: []runs.VM{{Name: "a"}}}) {
		t.Error("troubled")
	}
}

// Lines come whole, whatever pieces they are written in, and none is endless.
func TestLinesOfARun(t *testing.T) {
	var got []string
	l := &lineTeller{say: func(s string) { got = append(got, s) }}
	for _, piece := range []string{"one\ntw", "o  \n\n", strings.Repeat("x", maxRest+5), "\nend"} {
		if n, err := l.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	l.flush()
	if len(got) < 4 || !slices.Equal(got[:2], []string{"one", "two"}) || got[len(got)-1] != "end" {
		t.Errorf("%.100q", got)
	}
	for _, line := range got {
		if len(line) > maxRest+5 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}
