package serve

import (
	"strings"
	"time"

	"cairn/cmd/internal/runs"
)

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
		for _, slot := range r.Slots() {
			if d.facts[r.VM].Off {
				d.seen.ran(slot.Job, r.VM, false)
			}
		}
		delete(d.facts, r.VM) // what had changed is stored
	}
	if err := d.book.End(r); err != nil {
		d.over = append(d.over, r)
		d.woe(err, now)
	}
}
