package serve

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// work does what is due. It needs d.mu.
func (d *Daemon) work(ctx context.Context) {
	now := d.Now()
	if gap := now.Sub(d.tick); gap > alone || gap < 0 { // the host slept, or the clock was set
		d.since = now
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

// woe notes that the book cannot be written.
func (d *Daemon) woe(err error, now time.Time) {
	text := "nothing is begun, as it could not be written down: " + err.Error()
	if d.bookWoe != text {
		d.Log.Error("nothing is begun, as it could not be written down", "error", err.Error(), "folder", StateDir(d.Dirs))
	}
	d.bookWoe, d.bookAgain = text, now.Add(time.Minute)
}

// rewrite tries again what could not be written.
func (d *Daemon) rewrite(now time.Time) {
	if d.bookWoe == "" || now.Before(d.bookAgain) && now.After(d.bookAgain.Add(-2*time.Minute)) {
		return
	}
	d.bookWoe = ""
	for len(d.over) > 0 {
		if err := d.book.End(d.over[0]); err != nil {
			d.woe(err, now)
			return
		}
		d.over = d.over[1:]
	}
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

// give hands a run to a worker.
func (d *Daemon) give(a *active, now time.Time) {
	w, err := d.worker(a.Repository, a.Kind != runs.Backup)
	if err != nil {
		d.conclude(a, End{Exit: 1, Reason: err.Error()}, now)
		return
	}
	w.runs[a.ID] = a
	w.say(a.order)
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

// worker gives a repository's worker, and starts one if there is none.
func (d *Daemon) worker(repo string, upkeep bool) (*worker, error) {
	key := crewKey{repo, upkeep}
	if w := d.crew[key]; w != nil && !w.ending {
		if w.stop != nil {
			w.stop()
		}
		return w, nil
	}
	r, ok := d.repository(repo)
	if !ok {
		return nil, fmt.Errorf("the repository %s is not in the configuration any more", repo)
	}
	d.workers.Add(1)
	w, err := startWorker(repo, d.Process, func(w *worker, e *Event, err error) {
		d.send(message{worker: w, event: e, err: err})
		if e == nil {
			d.workers.Done()
		}
	})
	if err != nil {
		d.workers.Done()
		return nil, err
	}
	w.key = key
	d.crew[key], d.all[w] = w, true
	w.how = howOpened(r)
	w.say(Order{Do: DoOpen, Open: &w.how})
	return w, nil
}

func howOpened(r config.Repository) Repository {
	return Repository{Name: r.Name, Addresses: append([]string{r.Address}, r.Places...), KeyFile: r.KeyFile, CAFile: r.CAFile, WriteLimit: int64(r.WriteLimit)}
}

// retire lets workers that have opened a repository as it is not configured any
// more end what they do, and gives them nothing new.
func (d *Daemon) retire() {
	for key, w := range d.crew {
		if r, ok := d.repository(w.repo); ok && reflect.DeepEqual(w.how, howOpened(r)) {
			continue
		}
		delete(d.crew, key)
		w.retired = true
		d.idle(w)
	}
}

// share divides the host's limits among the workers that do something.
func (d *Daemon) share() {
	var busy []*worker
	for w := range d.all {
		if len(w.runs) > 0 {
			busy = append(busy, w)
		}
	}
	n := int64(max(len(busy), 1))
	l := Limits{Read: part(int64(d.config.Host.ReadLimit), n), Write: part(int64(d.config.Host.WriteLimit), n)}
	for _, w := range busy {
		if w.limits != l {
			w.limits = l
			w.say(Order{Do: DoLimits, Limits: &l})
		}
	}
}

// part divides a limit; what is limited stays so.
func part(limit, n int64) int64 {
	if limit <= 0 {
		return 0
	}
	return max(limit/n, 1)
}

// hear takes one message. It says whether the plan may be another one now.
func (d *Daemon) hear(m message) bool {
	if m.then != nil {
		m.then()
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.Now()
	if m.event == nil {
		d.gone(m.worker, m.err, now)
		return true
	}
	e, w := m.event, m.worker
	a := w.runs[e.Run]
	switch e.Event {
	case Opened:
		w.ready = true
		delete(d.away, w.repo)
		delete(d.attempts, w.repo)
		if e.Tag != "" {
			d.tags[e.Tag] = w.repo
		}
		return true
	case Places:
		if e.Place != nil {
			d.places[w.repo] = *e.Place
		}
		return false
	case Found:
		d.foundRuns(w, e, now)
		return true
	case Noted:
		d.Log.Info(e.Text, "repository", w.repo)
		return false
	}
	if a == nil {
		return false // it was given up
	}
	switch e.Event {
	case Begun:
		a.begun = true
	case Said:
		a.say(e.Text)
	case Moved:
		a.work, a.done, a.total, a.bytes = e.Work, e.Done, e.Total, e.Bytes
	case PointMet:
		a.free = true
		if e.End != nil {
			a.point = e.End.Point
			d.storages[a.VM] = storages(e.End.Images)
		}
		return true
	case Ended:
		delete(w.runs, a.ID)
		delete(d.suspect, a.VM)
		end := End{Exit: 1, Reason: "the worker did not say why"}
		if e.End != nil {
			end = *e.End
		}
		if end.Away {
			d.repoAway(w.repo, end.Reason, now)
		}
		if len(end.Images) > 0 {
			d.storages[a.VM] = storages(end.Images)
		}
		d.conclude(a, end, now)
		d.idle(w)
		return true
	}
	return false
}

// Lines of a run's log that are kept in memory: the first and the last.
const (
	headLines = 200
	tailLines = 800
)

func (a *active) say(text string) {
	text = text[:min(len(text), maxText)]
	a.step = text
	if len(a.log) >= headLines+2*tailLines {
		a.log = slices.Delete(a.log, headLines, headLines+tailLines)
	}
	a.log = append(a.log, text)
}

// idle lets a worker end when nobody needs it for a while: then others on the host
// may use the index.
func (d *Daemon) idle(w *worker) {
	if len(w.runs) > 0 || w.finds || w.ending {
		return
	}
	if w.retired {
		w.end()
		return
	}
	if d.Once {
		// What follows at once keeps it: it is asked when the plan is made.
		t := time.AfterFunc(200*time.Millisecond, func() { d.post(func() { d.endIdle(w) }) })
		w.stop = t.Stop
		return
	}
	t := time.AfterFunc(idleTime, func() { d.post(func() { d.endIdle(w) }) })
	w.stop = t.Stop
}

func (d *Daemon) endIdle(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(w.runs) == 0 && !w.finds {
		w.end()
	}
}

// repoAway notes that a repository could not be opened.
func (d *Daemon) repoAway(repo, reason string, now time.Time) {
	if d.away[repo].Until.After(now) {
		return // of runs that failed together the first counts
	}
	d.attempts[repo]++
	until := now.Add(backOff(d.attempts[repo], repo, d.Host))
	d.away[repo] = Away{until, reason}
	d.Log.Error("the repository could not be opened", "repository", repo, "reason", reason, "again", until.Format(time.RFC3339))
}

// conclude writes down that a run is over.
func (d *Daemon) conclude(a *active, end End, now time.Time) {
	r := a.Run
	delete(d.active, r.ID)
	r.Ended, r.Exit, r.Reason, r.Warnings, r.Point, r.Freed, r.Findings = now, end.Exit, end.Reason, end.Warnings, end.Point, end.Freed, end.Findings
	r.Log = a.log
	switch {
	case end.Exit == 0:
		r.Outcome = runs.Done
	case end.Exit == 3:
		r.Outcome = runs.Warned
	case end.Exit == exitInterrupted || a.stopped:
		r.Outcome = runs.Interrupted
	default:
		r.Outcome = runs.Failed
	}
	d.write(r, now)
}

// exitInterrupted is cairn's exit code for it.
const exitInterrupted = 130

// write puts an end into the book, now or later, and says it.
func (d *Daemon) write(r runs.Run, now time.Time) {
	if r.Ended.Before(r.Started) { // the clock was set back
		r.Ended = r.Started
	}
	d.count(r)
	level := d.Log.Info
	switch {
	case r.Exit == exitDamage:
		d.result.Damage++
		level = d.Log.Error
	case r.Outcome == runs.Failed:
		d.result.Failed++
		level = d.Log.Error
	case r.Outcome == runs.Warned || r.Outcome == runs.Interrupted:
		d.result.Warned++
		level = d.Log.Warn
	default:
		d.result.Done++
	}
	args := []any{"kind", r.Kind, "job", r.Job, "vm", r.VM, "repository", r.Repository, "outcome", r.Outcome, "took", r.Ended.Sub(r.Started).Round(time.Millisecond).String(), "run", r.ID}
	if r.Reason != "" {
		args = append(args, "reason", r.Reason)
	}
	if r.Point != nil {
		args = append(args, "point", r.Point.ID[:min(8, len(r.Point.ID))], "read", r.Point.Read, "bytes_read", r.Point.BytesRead, "bytes_stored", r.Point.BytesStored)
	}
	if len(r.Warnings) > 0 {
		args = append(args, "warnings", strings.Join(r.Warnings, "; "))
	}
	level("end", args...)
	if r.Good() && r.Kind == runs.Backup {
		if d.facts[r.VM].Off {
			d.seen.ran(r.VM, false)
		}
		delete(d.facts, r.VM) // what had changed is stored
	}
	if err := d.book.End(r); err != nil {
		d.over = append(d.over, r)
		d.woe(err, now)
	}
}

// gone hears that a worker has ended.
func (d *Daemon) gone(w *worker, err error, now time.Time) {
	if d.crew[w.key] == w {
		delete(d.crew, w.key)
	}
	delete(d.all, w)
	if err != nil && !(d.stopping && !d.killAt.IsZero()) {
		d.Log.Error(w.died(err), "repository", w.repo, "last_words", w.stderr.all())
	}
	for _, l := range d.lost {
		if l.asked && l.Repository == w.repo {
			l.asked = false
			if w.finds {
				d.repoAway(w.repo, w.died(err), now)
			}
		}
	}
	ids := make([]string, 0, len(w.runs))
	for id := range w.runs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		a := w.runs[id]
		switch {
		case !a.begun && err == nil && !d.stopping: // it was ending when it was asked
			d.give(a, now)
		case a.Kind == runs.Backup && !d.stopping:
			l := &lost{Run: a.Run, outcome: runs.Failed}
			l.Reason, l.Exit, l.Log = w.died(err), 1, a.log
			delete(d.active, id)
			d.lost[id] = l
			d.suspect[a.VM] = true
		case d.stopping: // the next start finds out
			delete(d.active, id)
			if a.Kind != runs.Backup {
				a.stopped = true
				d.conclude(a, End{Exit: exitInterrupted, Reason: w.died(err)}, now)
			}
		default:
			d.conclude(a, End{Exit: 1, Reason: w.died(err)}, now)
		}
	}
	w.runs = nil
}

// recover takes over what a daemon that was killed had begun.
func (d *Daemon) recover() {
	now := d.Now()
	for _, r := range d.book.Unfinished() {
		r.Reason, r.Exit = "cairn serve was killed", exitInterrupted
		if _, ok := d.repository(r.Repository); r.Kind != runs.Backup || !ok {
			r.Ended, r.Outcome = now, runs.Interrupted
			d.write(r, now)
			continue
		}
		d.lost[r.ID] = &lost{Run: r, outcome: runs.Interrupted}
	}
}

// findLost lets workers look for the points of runs that died.
func (d *Daemon) findLost(now time.Time) {
	ask := map[string][]*lost{}
	for _, l := range d.lost {
		if l.asked || d.away[l.Repository].Until.After(now) {
			continue
		}
		ask[l.Repository] = append(ask[l.Repository], l)
	}
	for repo, list := range ask {
		slices.SortFunc(list, func(a, b *lost) int { return cmp.Compare(a.ID, b.ID) })
		list = list[:min(len(list), 1000)]
		w, err := d.worker(repo, true)
		if err != nil {
			for _, l := range list { // the repository is not in the configuration any more
				d.resolve(l, nil, now)
			}
			continue
		}
		w.finds = true
		o := Order{Do: DoFind}
		for _, l := range list {
			l.asked = true
			o.Runs = append(o.Runs, runs.Run{ID: l.ID, VM: l.VM, Started: l.Started})
		}
		w.say(o)
	}
}

// learnTags opens repositories of which it must be known what bitmaps call them, for
// jobs that ask how much has changed.
func (d *Daemon) learnTags(now time.Time) {
	known := map[string]bool{}
	for _, repo := range d.tags {
		known[repo] = true
	}
	for _, j := range d.config.Jobs {
		if j.When.OnChanged == 0 && j.When.OnlyChanged == 0 || known[j.Repository] || d.away[j.Repository].Until.After(now) {
			continue
		}
		known[j.Repository] = true
		w, err := d.worker(j.Repository, true)
		if err != nil || w.finds || w.ready {
			continue // the next plan tries again
		}
		w.finds = true
		w.say(Order{Do: DoFind})
	}
}

// foundRuns hears which of them made a point.
func (d *Daemon) foundRuns(w *worker, e *Event, now time.Time) {
	w.finds = false
	if e.Text != "" {
		d.repoAway(w.repo, e.Text, now)
	}
	for id, l := range d.lost {
		if !l.asked || l.Repository != w.repo {
			continue
		}
		l.asked = false
		if e.Text == "" {
			d.resolve(l, e.Found[id], now)
		}
	}
	d.idle(w)
}

func (d *Daemon) resolve(l *lost, f *FoundRun, now time.Time) {
	r := l.Run
	delete(d.lost, r.ID)
	r.Ended, r.Outcome = now, l.outcome
	if f != nil {
		r.Reason, r.Exit = l.Reason+"; its point was made all the same", 0
		r.Outcome, r.Point, r.Warnings = runs.Done, &f.Point, f.Warnings
		if len(f.Warnings) > 0 {
			r.Outcome, r.Exit = runs.Warned, 3
		}
	}
	d.write(r, now)
}

// looksAtOnce bounds how many VMs are looked at at once.
const looksAtOnce = 4

// look looks at VMs, beside the loop.
func (d *Daemon) look(ctx context.Context) {
	for _, vm := range d.plan.Look {
		i := slices.IndexFunc(d.machines, func(m config.Machine) bool { return m.Name == vm })
		if d.looking[vm] || i < 0 || len(d.looking) >= looksAtOnce {
			continue
		}
		d.looking[vm] = true
		v, tags := d.machines[i].VM, maps.Clone(d.tags)
		at := d.Now()
		d.workers.Go(func() {
			f := Look(ctx, v, d.Dirs.State, tags)
			f.At = at
			d.post(func() { d.saw(vm, f) })
		})
	}
}

func (d *Daemon) saw(vm string, f Fact) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.looking, vm)
	d.facts[vm] = f
	if f.Problem == "" {
		d.storages[vm] = storages(f.Images)
		if !f.Off {
			d.seen.ran(vm, true)
		}
	}
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
