package serve

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

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
