package serve

import (
	"slices"
	"time"

	"cairn/cmd/internal/runs"
)

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
		if a.Kind == runs.Backup {
			delete(d.suspect, a.VM)
		}
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
