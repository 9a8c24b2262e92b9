package serve

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// Book is what a plan asks of the book of runs.
type Book interface {
	NewestFor(kind runs.Kind, job, name string) (runs.Run, bool)
	NewestGoodFor(kind runs.Kind, job, name string) (runs.Run, bool)
	LastGood(kind runs.Kind, name string) (runs.Run, bool)
	Runs(limit int, keep func(runs.Run) bool) []runs.Run
}

// Input is all that a plan is made of.
type Input struct {
	Now   time.Time
	Since time.Time // from when on somebody has looked what is due
	Host  string
	// Config, VMs and what is known of them.
	Config   *config.Config
	Machines []config.Machine
	Facts    map[string]Fact      // by VM; what was not looked at is not in it
	Storages map[string][]string  // by VM; of which images are not known it is not in it
	Away     map[string]Away      // repositories that could not be opened
	Ran      map[string]bool      // by ranKey: VMs that ran since a job answered their last shutdown
	Seen     func(Pair) time.Time // since when a job and a VM are known together
	Book     Book
	Active   []Active
	Busy     map[string]string // VMs that must wait, and why
	// Suspect are VMs whose worker died: one of them may have made it die. They run
	// alone in their repository, so that it is no other's harm.
	Suspect map[string]bool
	Bare    []Bare // the one that has waited longest first
}

// Pair is a job and a VM, or a repository (with a kind as its job).
type Pair struct{ Job, VM string }

// Active is a run that is going on.
type Active struct {
	runs.Run
	// Free: the VM is let go, and the run does not count any more.
	Free     bool
	Storages []string
}

// Away is a repository that could not be opened.
type Away struct {
	Until  time.Time // not tried again before
	Reason string
}

// Fact is what a VM was like when it was looked at.
type Fact struct {
	At      time.Time
	Off     bool
	Known   map[string]int64 // bytes changed since the last point, by repository; of which it is not known it is not in it
	Lost    map[string]bool  // repositories of which no bitmap records it
	Images  []string
	Problem string // "": it could be looked at
}

// Plan is what is to be done now.
type Plan struct {
	Begin   []Start
	Skip    []runs.Run // slots that are over without a run
	Waiting []runs.Run // due, and not begun; Reason says why
	Look    []string   // VMs to look at
	Wake    time.Time  // when time alone changes the plan; zero: it does not
	Next    map[Pair]time.Time
	Late    map[string]bool
}

// Start is a run that may begin.
type Start struct {
	Run  runs.Run
	Jobs []config.Job // that it is for; none of upkeep but forget
	VM   config.VM    // of a backup
	VMs  []string     // of a forget
}

// Times of plans.
const (
	// alone is how long before Since a slot may be that counts as not missed:
	// the daemon was restarted, the host was not off.
	alone = 10 * time.Minute
	// fresh is how old a look at a VM may be.
	fresh = time.Minute
	// quickRetries is how often a run that was interrupted is begun again at once.
	quickRetries = 3
	// patience is how long a suspect waits to be alone; then the others wait.
	patience = time.Hour
)

// planner makes one plan.
type planner struct {
	Input
	plan   Plan
	ready  []candidate
	moment map[string]moments // by job
}

// moments are a job's: the same for all its VMs.
type moments struct {
	slot time.Time // the newest that has come
	next time.Time // when the next one comes
}

// candidate is a backup that could begin.
type candidate struct {
	run  runs.Run
	jobs []config.Job
	vm   config.Machine
	at   time.Time // since when
	good time.Time // when the VM had its last good run
}

// Make makes a plan. It changes nothing.
func Make(in Input) Plan {
	p := &planner{Input: in, moment: map[string]moments{}}
	p.plan.Next, p.plan.Late = map[Pair]time.Time{}, map[string]bool{}
	active := map[string]bool{}
	for _, a := range p.Active {
		if a.Kind == runs.Backup {
			active[a.VM] = true
		}
	}
	for _, j := range p.Config.Jobs {
		delay := delayOf(j, p.Host)
		m := moments{latest(j.Schedules, delay, time.Duration(j.RandomDelay), p.Now), upcoming(j.Schedules, delay, time.Duration(j.RandomDelay), p.Now)}
		p.moment[j.Name] = m
		if !m.next.IsZero() {
			p.wake(m.next)
		}
	}
	byVM := map[string][]candidate{} // and repository
	for _, m := range p.Machines {
		for _, j := range p.Config.Jobs {
			if !j.Fits(m.VM) {
				continue
			}
			if next := p.moment[j.Name].next; !next.IsZero() {
				p.plan.Next[Pair{j.Name, m.Name}] = j.Window.Opens(next)
			}
			p.late(j, m.VM)
			if active[m.Name] {
				continue
			}
			if c, ok := p.backup(j, m); ok {
				key := m.Name + "\x00" + j.Repository
				byVM[key] = append(byVM[key], c)
			}
		}
	}
	for _, list := range byVM {
		p.ready = append(p.ready, merge(list))
	}
	p.begin()
	p.upkeep()
	slices.SortFunc(p.plan.Waiting, func(a, b runs.Run) int {
		return cmp.Or(a.Due.Compare(b.Due), cmp.Compare(a.VM, b.VM), cmp.Compare(a.Job, b.Job))
	})
	return p.plan
}

// wake asks to be planned again at a time.
func (p *planner) wake(at time.Time) {
	if at.After(p.Now) && (p.plan.Wake.IsZero() || at.Before(p.plan.Wake)) {
		p.plan.Wake = at
	}
}

func (p *planner) wait(r runs.Run, format string, args ...any) {
	r.Reason = fmt.Sprintf(format, args...)
	p.plan.Waiting = append(p.plan.Waiting, r)
}

func (p *planner) skip(r runs.Run, format string, args ...any) {
	r.Reason, r.Outcome = fmt.Sprintf(format, args...), runs.Skipped
	p.plan.Skip = append(p.plan.Skip, r)
}

// due finds the slot of a job for a VM that is to be run. ok is false if none is.
// What has failed or was interrupted is due again at a later time.
func (p *planner) due(kind runs.Kind, job, name string, slot time.Time) (r runs.Run, at time.Time, ok bool) {
	last, has := p.Book.NewestFor(kind, job, name)
	r = runs.Run{Kind: kind, Job: job, Due: slot, Attempt: 1}
	if p.isNew(kind, job, name, slot, last, has) {
		return r, slot, true
	}
	if !has || last.Good() || last.Outcome == runs.Skipped || last.Due.After(p.Now) {
		return r, at, false
	}
	r.Due, r.Attempt = last.Due, last.Attempt+1
	switch {
	case last.Ended.After(p.Now): // the clock went back
	case last.Outcome == runs.Interrupted && last.Attempt < quickRetries:
	default:
		at = last.Ended.Add(backOff(last.Attempt, job, name, p.Host))
	}
	r.Cause = fmt.Sprintf("tried again (attempt %d), as it failed: %s", r.Attempt, last.Reason)
	if last.Outcome == runs.Interrupted {
		r.Cause = fmt.Sprintf("begun again (attempt %d), as it was interrupted", r.Attempt)
	}
	return r, at, true
}

// isNew says whether a slot has never been run or skipped.
func (p *planner) isNew(kind runs.Kind, job, name string, slot time.Time, last runs.Run, has bool) bool {
	if slot.IsZero() || !slot.After(p.Seen(Pair{pairJob(kind, job), name})) {
		return false
	}
	if !has || !last.Due.After(p.Now) {
		return !has || slot.After(last.Due)
	}
	// The clock was ahead: that the last one was later says nothing.
	return len(p.Book.Runs(1, func(r runs.Run) bool {
		return r.Kind == kind && (r.VM == name || r.VM == "" && r.Repository == name) &&
			slices.ContainsFunc(r.Slots(), func(s runs.Slot) bool { return s.Job == job && s.Due.Equal(slot) })
	})) == 0
}

// pairJob is how a job is called in a Pair: upkeep has none.
func pairJob(kind runs.Kind, job string) string {
	if kind == runs.Backup {
		return job
	}
	return "\x00" + string(kind) + "\x00" + job
}

// backup decides about one job and one VM.
func (p *planner) backup(j config.Job, m config.Machine) (candidate, bool) {
	slot := p.moment[j.Name].slot
	r, at, ok := p.due(runs.Backup, j.Name, m.Name, slot)
	r.VM, r.Repository = m.Name, j.Repository
	if ok && r.Attempt == 1 {
		r.Cause = p.cause(j, m.Name, slot)
		at = slot.Add(delayOf(j, p.Host)(slot))
		if j.NoCatchUp && at.Before(p.Since.Add(-alone)) {
			p.skip(r, "it was due while cairn serve did not run, and the job has no_catch_up")
			return candidate{}, false
		}
	}
	if !ok {
		if r, ok = p.event(j, m); !ok {
			return candidate{}, false
		}
		r.VM, r.Repository, at = m.Name, j.Repository, p.Now
	}
	if why, busy := p.Busy[m.Name]; busy {
		p.wait(r, "%s", why)
		return candidate{}, false
	}
	if at.After(p.Now) {
		p.wake(at)
		p.wait(r, "it failed, and is tried again at %s", clock(at, j.TimeZone))
		return candidate{}, false
	}
	if !j.Window.Contains(p.Now) {
		opens := j.Window.Opens(p.Now)
		p.wake(opens)
		p.wait(r, "its window %s opens at %s", j.Window, clock(opens, j.TimeZone))
		return candidate{}, false
	}
	if away := p.Away[j.Repository]; away.Until.After(p.Now) {
		p.wake(away.Until)
		p.wait(r, "the repository %s could not be opened, and is tried again at %s: %s", j.Repository, clock(away.Until, j.TimeZone), away.Reason)
		return candidate{}, false
	}
	if !p.allowed(j, m, r, at) {
		return candidate{}, false
	}
	last, _ := p.Book.LastGood(runs.Backup, m.Name)
	return candidate{run: r, jobs: []config.Job{j}, vm: m, at: at, good: last.Started}, true
}

// cause says in words why a slot is run.
func (p *planner) cause(j config.Job, vm string, slot time.Time) string {
	words := "scheduled"
	for _, s := range j.Schedules {
		if s.Next(slot.Add(-time.Second)).Equal(slot) {
			words = s.String()
			break
		}
	}
	if slot.Before(p.Since.Add(-alone)) {
		words += ", missed while cairn serve did not run"
	}
	if last, ok := p.Book.NewestFor(runs.Backup, j.Name, vm); ok && last.Due.Before(slot) {
		between := following(j.Schedules, last.Due)
		if !last.Good() && last.Outcome != runs.Skipped {
			words += fmt.Sprintf("; the one of %s was not made", clock(last.Due, j.TimeZone))
		}
		if between.Before(slot) && between.After(p.Seen(Pair{j.Name, vm})) {
			words += fmt.Sprintf("; the one run for all since %s", clock(between, j.TimeZone))
		}
	}
	return words
}

// clock writes a time for people who know the day.
func clock(t time.Time, zone *time.Location) string {
	if zone != nil {
		t = t.In(zone)
	}
	return t.Format("Mon 2006-01-02 15:04:05 MST")
}

// event looks for what makes a job due beside its schedules.
func (p *planner) event(j config.Job, m config.Machine) (r runs.Run, ok bool) {
	if !j.When.OnShutdown && j.When.OnChanged == 0 {
		return r, false
	}
	r = runs.Run{Kind: runs.Backup, Job: j.Name, Due: p.Now.Truncate(time.Second), Attempt: 1}
	fact := p.look(m.Name, p.Now.Add(-fresh))
	if fact == nil || fact.Problem != "" {
		return r, false
	}
	if last, has := p.Book.NewestGoodFor(runs.Backup, j.Name, m.Name); has && j.When.AtMostEvery > 0 {
		if again := last.Started.Add(time.Duration(j.When.AtMostEvery)); again.After(p.Now) && !last.Started.After(p.Now) {
			return r, false
		}
	}
	if j.When.OnShutdown && fact.Off && p.Ran[ranKey(j.Name, m.Name)] {
		r.Cause = "the VM was shut down"
		return r, true
	}
	if j.When.OnChanged > 0 && !fact.Off && fact.Lost[j.Repository] {
		r.Cause = "nothing records what has changed since the last point, or there is none"
		return r, true
	}
	if changed, known := p.changed(j, *fact); j.When.OnChanged > 0 && known && !fact.Off && changed >= int64(j.When.OnChanged) {
		r.Cause = config.Size(changed/(1<<20)*(1<<20)).String() + " changed since the last point"
		return r, true
	}
	return r, false
}

// look gives what is known of a VM if it is not older than since; else the VM is
// looked at, and it gives nil.
func (p *planner) look(vm string, since time.Time) *Fact {
	if f, ok := p.Facts[vm]; ok && !f.At.Before(since) && !f.At.After(p.Now) {
		return &f
	}
	if !slices.Contains(p.plan.Look, vm) {
		p.plan.Look = append(p.plan.Look, vm)
	}
	p.wake(p.Now.Add(fresh))
	return nil
}

// changed gives how much of a VM changed since its last point in a job's
// repository.
func (p *planner) changed(j config.Job, f Fact) (int64, bool) {
	n, ok := f.Known[j.Repository]
	return n, ok
}

// allowed asks a job's conditions; r is skipped, or waits for an answer, if it is
// false.
func (p *planner) allowed(j config.Job, m config.Machine, r runs.Run, at time.Time) bool {
	if !j.When.OnlyOff && j.When.OnlyChanged == 0 {
		return true
	}
	since := p.Now.Add(-fresh)
	if at.After(since) {
		since = at
	}
	f := p.look(m.Name, since)
	if f == nil {
		p.wait(r, "the VM is being looked at")
		return false
	}
	if f.Problem != "" {
		return true // the run will say what it is
	}
	if j.When.OnlyOff && !f.Off {
		p.skip(r, "the VM runs, and the job is for those that are off (only_off)")
		return false
	}
	if n, known := p.changed(j, *f); j.When.OnlyChanged > 0 && known && n < int64(j.When.OnlyChanged) {
		p.skip(r, "only %s changed since the last point, less than %s (only_changed)", config.Size(n), j.When.OnlyChanged)
		return false
	}
	return true
}

// merge makes one run of those of several jobs for one VM.
func merge(list []candidate) candidate {
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(a.run.Due.Compare(b.run.Due), cmp.Compare(a.run.Job, b.run.Job))
	})
	c := list[0]
	for _, o := range list[1:] {
		c.run.Also = append(c.run.Also, runs.Slot{Job: o.run.Job, Due: o.run.Due})
		c.jobs = append(c.jobs, o.jobs...)
		c.run.Cause += "; job " + o.run.Job + ": " + o.run.Cause
	}
	return c
}

// late notes a VM whose last slot has no good run yet.
func (p *planner) late(j config.Job, vm config.VM) {
	m := p.moment[j.Name]
	if m.slot.IsZero() || !m.slot.After(p.Seen(Pair{j.Name, vm.Name})) {
		return
	}
	good, has := p.Book.NewestGoodFor(runs.Backup, j.Name, vm.Name)
	if last, ok := p.Book.NewestFor(runs.Backup, j.Name, vm.Name); ok && last.Outcome == runs.Skipped && !last.Due.Before(m.slot) {
		return
	}
	if has && !good.Due.Before(m.slot) {
		return
	}
	from := j.Window.Opens(m.slot)
	if quarter := m.next.Sub(m.slot) / 4; m.next.IsZero() || p.Now.Sub(from) > quarter {
		p.plan.Late[vm.Name] = true
	}
}
