package serve

import (
	"time"

	"cairn/cmd/internal/runs"
)

// stop begins the end: nothing is begun any more.
func (d *Daemon) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopping = true
	d.stopAt = time.Now().Add(d.Grace)
	d.systemd.tell("STOPPING=1\nSTATUS=stopping")
	d.Log.Info("stopping: nothing is begun any more", "running", len(d.active), "grace", d.Grace.String())
	time.AfterFunc(d.Grace, func() { d.post(func() { d.stopStep() }) })
}

// stopStep interrupts and kills what does not end by itself.
func (d *Daemon) stopStep() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	switch {
	case !d.stopping:
		return false
	case d.killAt.IsZero() && !now.Before(d.stopAt):
		d.killAt = now.Add(stopTime)
		for w := range d.all {
			for id, a := range w.runs {
				d.Log.Warn("interrupting", "kind", a.Kind, "vm", a.VM, "repository", a.Repository, "run", id)
				a.stopped = true
				w.say(Order{Do: DoInterrupt, Run: runs.Run{ID: id}})
			}
		}
	case !d.killAt.IsZero() && now.After(d.killAt):
		for w := range d.all {
			w.kill()
		}
	}
	return true
}

// finish ends the workers.
func (d *Daemon) finish(cancel func()) {
	cancel()
	d.systemd.tell("STOPPING=1\nSTATUS=stopping")
	d.mu.Lock()
	for w := range d.all {
		w.end()
	}
	left := len(d.over)
	d.mu.Unlock()
	quiet := make(chan struct{})
	go func() { d.workers.Wait(); close(quiet) }()
	kill := time.NewTimer(stopTime)
	defer kill.Stop()
	for waiting := true; waiting; {
		select {
		case <-quiet:
			waiting = false
		case m := <-d.events: // nobody else hears what they say
			if m.then == nil && m.event == nil {
				d.hear(m)
			}
		case <-kill.C:
			d.mu.Lock()
			for w := range d.all {
				w.kill()
			}
			d.mu.Unlock()
		}
	}
	if left > 0 {
		d.Log.Error("the ends of runs could not be written: the next start finds out about them", "runs", left)
	}
	d.Log.Info("cairn serve has ended", "done", d.result.Done, "warnings", d.result.Warned, "failed", d.result.Failed)
}
