package serve

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// work does what is due. It needs d.mu.
func (d *Daemon) work(ctx context.Context) {
	now := d.Now()
	if gap := now.Sub(d.tick); gap > alone || gap < 0 { // the host slept, or the clock was set
		d.since = now
		if gap < 0 { // what was to be waited for by it is tried now
			d.away, d.attempts, d.findAt = map[string]Away{}, map[string]int{}, time.Time{}
		}
	}
	d.tick = now
	d.rewrite(now)
	if d.stopping {
		d.plan = Plan{}
		return
	}
	if !now.Before(d.findAt) {
		d.search(ctx)
	}
	d.sight(now)
	d.findLost(now)
	d.learnTags(now)
	d.plan = Make(d.input(now))
	if d.bookWoe != "" {
		return // nothing begins that could be forgotten
	}
	for _, r := range d.plan.Skip {
		d.skip(r, now)
	}
	d.look(ctx)
	for _, s := range d.plan.Begin {
		if !d.begin(s, now) {
			break
		}
	}
	d.share()
	if time.Since(d.tidied) > tidyEvery {
		d.tidied = time.Now()
		d.seen.tidy(now)
		if err := d.book.Tidy(now); err != nil {
			d.Log.Error("old days of the book of runs could not be removed", "error", err.Error())
		}
	}
}

// sight takes down which jobs and VMs are there.
func (d *Daemon) sight(now time.Time) {
	for _, j := range d.config.Jobs {
		text := texts(j.Schedules) + " " + j.TimeZone.String()
		for _, m := range d.machines {
			if j.Fits(m.VM) {
				d.seen.note(Pair{j.Name, m.Name}, text, now)
			}
		}
	}
	for _, r := range d.config.Repositories {
		d.seen.note(Pair{pairJob(runs.GC, ""), r.Name}, texts(r.GC), now)
		d.seen.note(Pair{pairJob(runs.Check, ""), r.Name}, texts(r.Check), now)
		d.seen.note(Pair{pairJob(runs.Engine, ""), r.Name}, texts(r.Engine), now)
	}
	if err := d.seen.save(); err != nil {
		d.woe(err, now)
	}
}

// input is what a plan is made of.
func (d *Daemon) input(now time.Time) Input {
	in := Input{Now: now, Since: d.since, Host: d.Host, Config: d.config, Machines: d.machines, Facts: d.facts, Storages: d.storages, Away: d.away,
		Ran: d.seen.Ran, Seen: d.seen.since, Book: d.book, Busy: map[string]string{}, Suspect: d.suspect}
	for _, b := range d.bare {
		in.Bare = append(in.Bare, *b)
	}
	slices.SortFunc(in.Bare, func(a, b Bare) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Point, b.Point)) })
	for _, a := range d.active {
		in.Active = append(in.Active, Active{Run: a.Run, Free: a.free, Storages: a.storages})
	}
	for _, r := range d.over {
		in.Active = append(in.Active, Active{Run: r, Free: true})
	}
	for _, l := range d.lost {
		in.Busy[l.VM] = "it is being found out whether a run that died has made its point"
	}
	return in
}

// skip writes a slot down that is over without a run.
func (d *Daemon) skip(r runs.Run, now time.Time) {
	r.ID, r.Started, r.Ended = runs.NewID(), now, now
	if err := d.book.End(r); err != nil {
		d.woe(err, now)
		return
	}
	d.Log.Info("skipped", "kind", r.Kind, "job", r.Job, "vm", r.VM, "due", r.Due.Format(time.RFC3339), "reason", r.Reason)
}

// begin begins a run. false: nothing can begin now.
func (d *Daemon) begin(s Start, now time.Time) bool {
	r := s.Run
	r.ID, r.Started = runs.NewID(), now
	a := &active{Run: r, order: Order{Do: DoRun, Run: r}}
	switch r.Kind {
	case runs.Backup:
		a.order.Backup = backupOf(s)
		a.storages = d.storages[r.VM]
	case runs.Catalogue:
		a.order.Catalogue = &Catalogue{Point: r.Of}
	case runs.Forget:
		a.order.Forget = forgetOf(s)
	case runs.Check:
		repo, _ := d.repository(r.Repository)
		a.order.Check = &Check{Data: float64(repo.CheckData), Rate: int64(repo.CheckRate)}
	}
	if err := d.book.Begin(r); err != nil {
		d.woe(err, now)
		return false
	}
	d.Log.Info("begin", "kind", r.Kind, "job", r.Job, "vm", r.VM, "repository", r.Repository, "due", r.Due.Format(time.RFC3339), "why", r.Cause, "attempt", r.Attempt, "run", r.ID)
	d.active[r.ID] = a
	d.give(a, now)
	return true
}

func backupOf(s Start) *Backup {
	j := s.Jobs[0]
	b := &Backup{VM: s.VM, NoFreeze: j.NoFreeze, EveryBlock: j.EveryBlock, Objects: j.Objects, AgentTimeout: time.Duration(j.AgentTimeout),
		ScratchLimit: int64(j.ScratchLimit), ReadLimit: int64(j.ReadLimit), WriteLimit: int64(j.WriteLimit)}
	for _, o := range s.Jobs { // a run for several jobs is as good as each asks for
		b.NoFreeze = b.NoFreeze && o.NoFreeze
		b.EveryBlock = b.EveryBlock || o.EveryBlock
		if len(o.Objects) == 0 || len(b.Objects) == 0 {
			b.Objects = nil // all
		}
		for _, object := range o.Objects {
			if len(b.Objects) > 0 && !slices.Contains(b.Objects, object) {
				b.Objects = append(slices.Clone(b.Objects), object)
			}
		}
		for _, tag := range o.Tags {
			if !slices.Contains(b.Tags, tag) {
				b.Tags = append(b.Tags, tag)
			}
		}
	}
	return b
}

func forgetOf(s Start) *Forget {
	j := s.Jobs[0]
	f := &Forget{VMs: s.VMs, Rules: j.Keep, Words: "job " + j.Name + ": " + j.KeepText}
	if f.Rules.Zone != nil {
		f.Zone = f.Rules.Zone.String()
	}
	f.Rules.Zone = nil
	return f
}

func (d *Daemon) repository(name string) (config.Repository, bool) {
	for _, r := range d.config.Repositories {
		if r.Name == name {
			return r, true
		}
	}
	return config.Repository{}, false
}

// words is one line of what goes on, for systemd.
func (d *Daemon) words() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := fmt.Sprintf("%d running, %d waiting, %d VMs", len(d.active), len(d.plan.Waiting), len(d.machines))
	if d.problem != "" {
		text += "; the configuration has errors"
	}
	if d.bookWoe != "" {
		text += "; the book of runs cannot be written"
	}
	return text
}
