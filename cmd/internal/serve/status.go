package serve

import (
	"cmp"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// Status gives what the daemon knows now. It is a copy.
func (d *Daemon) Status() runs.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := runs.Status{Host: d.Host, Version: d.Version, Now: d.Now(), Since: d.started, Beat: d.beat, Stopping: d.stopping, Problem: cmp.Or(d.bookWoe, d.problem),
		VMs: []runs.VM{}, Jobs: []runs.Job{}, Repositories: []runs.Repository{}, Running: []runs.Live{}, Waiting: slices.Clone(d.plan.Waiting), Troubles: slices.Clone(d.woes)}
	if s.Waiting == nil {
		s.Waiting = []runs.Run{}
	}
	for _, m := range d.machines {
		s.VMs = append(s.VMs, d.vm(m))
	}
	for _, j := range d.config.Jobs {
		s.Jobs = append(s.Jobs, d.job(j))
	}
	for _, r := range d.config.Repositories {
		s.Repositories = append(s.Repositories, d.repo(r))
	}
	for _, a := range d.active {
		s.Running = append(s.Running, runs.Live{Run: a.Run, Step: a.step, Work: a.work, Done: a.done, Total: a.total, Bytes: a.bytes})
	}
	slices.SortFunc(s.Running, func(a, b runs.Live) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID)) })
	return s
}

func (d *Daemon) vm(m config.Machine) runs.VM {
	v := runs.VM{Name: m.Name, Jobs: []string{}, Failures: d.failures[m.Name], Late: d.plan.Late[m.Name]}
	for _, j := range d.config.Jobs {
		if !j.Fits(m.VM) {
			continue
		}
		v.Jobs = append(v.Jobs, j.Name)
		if next := d.plan.Next[Pair{j.Name, m.Name}]; !next.IsZero() && (v.Next.IsZero() || next.Before(v.Next)) {
			v.Next = next
		}
	}
	if r, ok := d.book.Last(runs.Backup, m.Name); ok {
		v.Last = &r
	}
	if r, ok := d.book.LastGood(runs.Backup, m.Name); ok {
		v.LastGood = &r
	}
	return v
}

func (d *Daemon) job(j config.Job) runs.Job {
	out := runs.Job{Name: j.Name, Repository: j.Repository, When: When(j), Keep: j.KeepText, VMs: []string{}}
	for _, m := range j.Machines(d.machines) {
		out.VMs = append(out.VMs, m.Name)
		if next := d.plan.Next[Pair{j.Name, m.Name}]; !next.IsZero() && (out.Next.IsZero() || next.Before(out.Next)) {
			out.Next = next
		}
	}
	out.Problem = d.woeOf(j)
	return out
}

// woeOf says why a job may not have all its VMs, or not as they are now: a discovery
// failed that found some of them, or might have.
func (d *Daemon) woeOf(j config.Job) string {
	for _, from := range d.config.Discoveries {
		why := d.unfound[from.Name]
		if why == "" {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(d.machines), func(m config.Machine) bool { return m.Discovery == from.Name })
		its := func(m config.Machine) bool { return m.Discovery == from.Name }
		if slices.ContainsFunc(j.Machines(d.machines), its) || from.MayFeed(j, others) {
			return why
		}
	}
	return ""
}

func (d *Daemon) repo(r config.Repository) runs.Repository {
	out := d.places[r.Name]
	out.Name, out.Address = r.Name, r.Address
	out.Away = slices.Clone(out.Away)
	if out.Places == 0 {
		out.Places = 1
	}
	if away, ok := d.away[r.Name]; ok {
		out.Problem = away.Reason
	}
	if last, ok := d.book.Last(runs.GC, r.Name); ok {
		out.LastGC = &last
	}
	if last, ok := d.book.Last(runs.Check, r.Name); ok {
		out.LastCheck, out.Findings = &last, d.findings(last)
	}
	if good, ok := d.book.LastGood(runs.Check, r.Name); ok {
		out.LastGood = &good
	}
	return out
}

// findings gives those of the last check that came to its end.
func (d *Daemon) findings(last runs.Run) int {
	whole := func(r runs.Run) bool {
		return r.Kind == runs.Check && r.Repository == last.Repository && (r.Good() || r.Exit == exitDamage)
	}
	if whole(last) {
		return last.Findings
	}
	for _, r := range d.book.Runs(1, whole) {
		return r.Findings
	}
	return 0
}

// When says in words what makes a job run.
func When(j config.Job) string {
	var words []string
	for _, s := range j.Schedules {
		words = append(words, s.Describe())
	}
	if j.When.OnShutdown {
		words = append(words, "when a VM is shut down")
	}
	if j.When.OnChanged > 0 {
		words = append(words, "when "+j.When.OnChanged.String()+" changed")
	}
	text := ""
	for i, w := range words {
		if i > 0 {
			text += "; "
		}
		text += w
	}
	return text
}

// statusTimeout bounds an answer to a question for the status, and the wait for it.
const statusTimeout = 5 * time.Second

func socketName(dirs config.Dirs) string { return filepath.Join(StateDir(dirs), "status.sock") }

// AnswerStatus answers, at a socket in the state folder, whoever asks for the
// status. It ends with stop, and only the host's administrator can ask.
func (d *Daemon) AnswerStatus() (stop func(), err error) {
	name := socketName(d.Dirs)
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(statusTimeout)) // a unix socket has deadlines
			_ = json.NewEncoder(c).Encode(d.Status())        // who has gone needs no answer
			_ = c.Close()
		}
	}()
	return func() { _ = l.Close(); <-done }, nil
}

// AskStatus asks the daemon of this host; os.ErrNotExist if none runs.
func AskStatus(dirs config.Dirs) (s runs.Status, err error) {
	c, err := net.DialTimeout("unix", socketName(dirs), statusTimeout)
	if err != nil {
		return s, os.ErrNotExist
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * statusTimeout)) // a unix socket has deadlines
	return s, json.NewDecoder(c).Decode(&s)
}
