package serve

import (
	"time"

	"cairn/cmd/internal/runs"
)

// Bare is a point without a catalogue of its files: its worker was killed, or stopped,
// behind the commit, or could not make it.
type Bare struct {
	Point, VM, Repository string
	Since                 time.Time
	Tries                 int
	Again                 time.Time // not tried before
}

// maxTries is how often a catalogue is tried to be made: the guest's filesystem may be
// one that cannot be read.
const maxTries = 3

// countBare keeps what a run that ended says of points without a catalogue. All of it
// is in the book, for the next start.
func (d *Daemon) countBare(r runs.Run) {
	switch {
	case r.Kind == runs.Backup && r.Point != nil && r.Point.NoCatalogue:
		d.bare[r.Point.ID] = &Bare{Point: r.Point.ID, VM: r.VM, Repository: r.Repository, Since: r.Ended}
	case r.Kind != runs.Catalogue || d.bare[r.Of] == nil:
	case r.Good():
		delete(d.bare, r.Of)
	case r.Outcome == runs.Failed:
		b := d.bare[r.Of]
		b.Tries++
		b.Again = r.Ended.Add(backOff(b.Tries, r.Of))
		if b.Tries == maxTries {
			delete(d.bare, r.Of)
		}
	}
}
