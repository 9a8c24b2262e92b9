package serve

import (
	"slices"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/schedule"
	"cairn/cmd/internal/wire"
)

// forgetAnyway is how long backups of a job may put off its forget.
const forgetAnyway = 24 * time.Hour

// upkeep plans what is done for repositories: one thing at a time for each.
func (p *planner) upkeep() {
	at := map[string]bool{} // repositories that something is done for
	checks := false         // one reads the disks of the host at once
	for _, a := range p.Active {
		if a.Kind != runs.Backup {
			at[a.Repository] = true
			checks = checks || a.Kind == runs.Check
		}
	}
	begin := func(s Start) {
		repo := s.Run.Repository
		switch away := p.Away[repo]; {
		case away.Until.After(p.Now):
			p.wake(away.Until)
			p.wait(s.Run, "the repository %s could not be opened, and is tried again at %s: %s", repo, clock(away.Until, nil), away.Reason)
		case at[repo]:
			p.wait(s.Run, "something else is done for the repository %s", repo)
		case s.Run.Kind == runs.Check && checks:
			p.wait(s.Run, "another repository is checked")
		default:
			at[repo] = true
			checks = checks || s.Run.Kind == runs.Check
			p.plan.Begin = append(p.plan.Begin, s)
		}
	}
	for _, j := range p.Config.Jobs {
		if s, ok := p.forget(j); ok {
			begin(s)
		}
	}
	for _, r := range p.Config.Repositories {
		for _, u := range []struct {
			kind runs.Kind
			when []schedule.Schedule
			off  bool
		}{{runs.Engine, r.Engine, !wire.IsBucket(r.Address)}, {runs.Check, r.Check, false}, {runs.GC, r.GC, false}} {
			if u.off || len(u.when) == 0 {
				continue
			}
			if next := following(u.when, p.Now); !next.IsZero() {
				p.wake(next)
				p.plan.Next[Pair{pairJob(u.kind, ""), r.Name}] = next
			}
			run, from, ok := p.due(u.kind, "", r.Name, latest(u.when, noDelay, 0, p.Now))
			run.Repository = r.Name
			if !ok {
				continue
			}
			if last, has := p.Book.NewestFor(u.kind, "", r.Name); run.Attempt > 1 && has && last.Exit == exitDamage {
				continue // it was done, and found what somebody must see to
			}
			if run.Cause == "" {
				run.Cause = texts(u.when)
			}
			if from.After(p.Now) {
				p.wake(from)
				p.wait(run, "it failed, and is tried again at %s", clock(from, nil))
				continue
			}
			begin(Start{Run: run})
		}
	}
	p.catalogues(at)
}

// catalogues plans the making of one catalogue that was not made with its point, when
// nothing else is done for its repository.
func (p *planner) catalogues(at map[string]bool) {
	busy := map[string]bool{}
	for _, a := range p.Active {
		if a.Kind == runs.Catalogue {
			return // one at a time
		}
		busy[a.Repository] = true
	}
	for _, b := range p.plan.Begin {
		busy[b.Run.Repository] = true
	}
	for _, b := range p.Bare {
		known := slices.ContainsFunc(p.Config.Repositories, func(r config.Repository) bool { return r.Name == b.Repository })
		patient := p.Now.Sub(b.Since) < forgetAnyway // a repository may never be quiet
		switch {
		case !known, at[b.Repository], busy[b.Repository] && patient:
		case b.Again.After(p.Now):
			p.wake(b.Again)
		case p.Away[b.Repository].Until.After(p.Now):
			p.wake(p.Away[b.Repository].Until)
		default:
			p.plan.Begin = append(p.plan.Begin, Start{Run: runs.Run{Kind: runs.Catalogue, Repository: b.Repository, VM: b.VM, Of: b.Point, Due: b.Since, Attempt: b.Tries + 1,
				Cause: "it was not made with its point"}})
			return
		}
	}
}

// exitDamage is cairn's exit code for damage found in the repository.
const exitDamage = 4

func texts(list []schedule.Schedule) (text string) {
	for i, s := range list {
		if i > 0 {
			text += ", "
		}
		text += s.String()
	}
	return text
}

// forget plans a job's: when it has made points since, and its backups are through.
func (p *planner) forget(j config.Job) (s Start, ok bool) {
	if j.Keep.Empty() {
		return s, false
	}
	last, has := p.Book.NewestFor(runs.Forget, j.Name, j.Repository)
	var made time.Time // when the newest point came
	for _, m := range j.Machines(p.Machines) {
		if good, ok := p.Book.NewestGoodFor(runs.Backup, j.Name, m.Name); ok && good.Ended.After(made) {
			made = good.Ended
		}
		s.VMs = append(s.VMs, m.Name)
	}
	has = has && !last.Started.After(p.Now) // else the clock went back
	if made.IsZero() || has && !made.After(last.Started) {
		return s, false
	}
	s.Run = runs.Run{Kind: runs.Forget, Job: j.Name, Repository: j.Repository, Due: made, Attempt: 1, Cause: "after the job's backups"}
	s.Jobs = []config.Job{j}
	busy := false
	for _, a := range p.Active {
		busy = busy || a.Kind == runs.Backup && forJob(a.Run, j.Name)
	}
	for _, b := range p.plan.Begin {
		busy = busy || b.Run.Kind == runs.Backup && forJob(b.Run, j.Name)
	}
	for _, c := range p.ready {
		busy = busy || forJob(c.run, j.Name)
	}
	if busy && !(has && p.Now.Sub(last.Started) > forgetAnyway) {
		return s, false
	}
	return s, true
}

func forJob(r runs.Run, job string) bool {
	for _, s := range r.Slots() {
		if s.Job == job {
			return true
		}
	}
	return false
}
