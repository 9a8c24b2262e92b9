package serve

import (
	"cmp"
	"slices"
	"time"

	"cairn/cmd/internal/runs"
)

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
