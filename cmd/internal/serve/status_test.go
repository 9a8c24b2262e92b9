package serve

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// still gives a daemon that is not run.
func (s *stage) still() *Daemon {
	s.t.Helper()
	c, err := config.Load(s.dirs)
	if err != nil {
		s.t.Fatal(err)
	}
	d, err := New(Options{Dirs: s.dirs, Config: c, Now: s.now, Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = d.Close() }) // it may be closed
	return d
}

// A libvirt that does not answer is told of once, and as the problem of those jobs
// alone whose VMs it has or may have.
func TestOneLibvirtIsOneTrouble(t *testing.T) {
	s := newStage(t)
	s.write(`[repository.main]
address = "/r"
[vm.here]
qmp = "/nowhere/here"
[discover.dead]
libvirt = "qemu:///system"
tags = ["prod"]
except = ["never*"]
[discover.good]
libvirt = "qemu:///session"
tags = ["test"]
[job.all]
vms = ["*"]
schedule = "hourly"
[job.tagged]
vms = ["tag:prod"]
schedule = "hourly"
[job.other]
vms = ["tag:test"]
schedule = "hourly"
[job.named]
vms = ["here", "there"]
schedule = "hourly"
[job.elsewhere]
vms = ["never1"]
schedule = "hourly"
[job.found]
vms = ["web"]
schedule = "hourly"
`)
	d := s.still()
	dead := false
	look := func() runs.Status {
		all, warnings, failed := d.config.FindNow(t.Context(), func(_ context.Context, uri string) ([]string, error) {
			if uri == "qemu:///session" {
				return []string{"there"}, nil
			}
			if dead {
				return nil, errors.New("it does not answer")
			}
			return []string{"web"}, nil
		})
		d.found(d.config, all, warnings, failed)
		return d.Status()
	}
	problems := func(st runs.Status) map[string]bool {
		out := map[string]bool{}
		for _, j := range st.Jobs {
			if j.Problem != "" {
				out[j.Name] = true
			}
			if j.Problem != "" && j.Problem != st.Troubles[0].Text {
				t.Errorf("job %s: %q", j.Name, j.Problem)
			}
		}
		return out
	}
	if st := look(); len(st.Troubles) != 0 || len(problems(st)) != 0 || len(st.VMs) != 3 {
		t.Fatalf("all is well: %+v", st)
	}
	dead = true
	st := look()
	if len(st.Troubles) != 1 || st.Troubles[0].Key != "discover dead" || len(st.VMs) != 3 {
		t.Fatalf("%+v of %d VMs", st.Troubles, len(st.VMs))
	}
	if got := problems(st); len(got) != 3 || !got["all"] || !got["tagged"] || !got["found"] {
		t.Errorf("jobs with a problem: %v", got)
	}
	dead = false
	if st := look(); len(st.Troubles) != 0 || len(problems(st)) != 0 {
		t.Errorf("it answers again: %+v", st.Troubles)
	}
}

// The last good check is one that was good; one that failed is the last, and takes
// back no finding of the one before.
func TestLastGoodCheck(t *testing.T) {
	s := newStage(t, "ok")
	d := s.still()
	at := s.now().Add(-24 * time.Hour)
	check := func(outcome runs.Outcome, exit, findings int) runs.Run {
		t.Helper()
		at = at.Add(time.Hour)
		r := runs.Run{ID: runs.NewID(), Kind: runs.Check, Repository: "main", Started: at, Ended: at.Add(time.Minute), Outcome: outcome, Exit: exit, Findings: findings}
		if err := d.book.End(r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	is := func(what string, last, good *runs.Run, findings int) {
		t.Helper()
		r := d.Status().Repositories[0]
		same := func(a, b *runs.Run) bool { return a == nil && b == nil || a != nil && b != nil && a.ID == b.ID }
		if !same(r.LastCheck, last) || !same(r.LastGood, good) || r.Findings != findings {
			t.Errorf("%s: last %+v, good %+v, %d findings", what, r.LastCheck, r.LastGood, r.Findings)
		}
	}
	is("none", nil, nil, 0)
	failed := check(runs.Failed, 1, 0)
	is("one failed", &failed, nil, 0)
	good := check(runs.Done, 0, 0)
	is("one was good", &good, &good, 0)
	bad := check(runs.Failed, exitDamage, 3)
	is("damage", &bad, &good, 3)
	away := check(runs.Failed, 10, 0)
	is("then the repository was away", &away, &good, 3)
	good = check(runs.Warned, 3, 0)
	is("mended", &good, &good, 0)
}
