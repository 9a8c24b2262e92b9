package webtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"cairn/cmd/internal/runs"
)

// Daemon is a made-up `cairn serve`: what it says is set by the test.
type Daemon struct {
	mu     sync.Mutex
	status runs.Status
	book   *runs.Book
	now    func() time.Time
}

// NewDaemon gives a daemon with an empty book in dir.
func NewDaemon(dir string, now func() time.Time) (*Daemon, error) {
	book, err := runs.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Daemon{book: book, now: now, status: runs.Status{Host: "host1", Version: "demo", Since: now().Add(-300 * time.Hour)}}, nil
}

// Status gives what was set, with the time.
func (d *Daemon) Status() runs.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status
	s.Now = d.now()
	s.Running = slices.Clone(s.Running)
	return s
}

// Book gives the book.
func (d *Daemon) Book() *runs.Book { return d.book }

// Set changes the status.
func (d *Daemon) Set(change func(*runs.Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status
	s.VMs, s.Running = slices.Clone(s.VMs), slices.Clone(s.Running)
	change(&s)
	d.status = s
}

// Begin lets a run begin, and shows it as one that goes on.
func (d *Daemon) Begin(r runs.Run) error {
	if err := d.book.Begin(r); err != nil {
		return err
	}
	d.Set(func(s *runs.Status) {
		s.Running = append(s.Running, runs.Live{Run: r, Step: "probe: asking QEMU for its disks"})
	})
	return nil
}

// Step tells of the progress of a run.
func (d *Daemon) Step(id, step string, done, total int64) {
	d.Set(func(s *runs.Status) {
		for i := range s.Running {
			if l := &s.Running[i]; l.ID == id {
				l.Step, l.Work, l.Done, l.Total, l.Bytes = step, "read", done, total, true
			}
		}
	})
}

// End ends a run, as the scheduler would.
func (d *Daemon) End(r runs.Run) error {
	err := d.book.End(r)
	r.Log = nil
	d.Set(func(s *runs.Status) {
		s.Running = slices.DeleteFunc(s.Running, func(l runs.Live) bool { return l.ID == r.ID })
		for i := range s.VMs {
			v := &s.VMs[i]
			if v.Name != r.VM || r.Kind != runs.Backup {
				continue
			}
			v.Last = &r
			if r.Good() {
				v.LastGood, v.Failures, v.Late = &r, 0, false
			} else if r.Outcome != runs.Skipped {
				v.Failures++
			}
		}
	})
	return err
}

// NewRun gives the backup of a VM that began at a moment.
func NewRun(vm string, at time.Time) runs.Run {
	return runs.Run{ID: runs.NewID(), Kind: runs.Backup, Job: "nightly", VM: vm, Repository: "main", Due: at, Cause: "hourly", Attempt: 1, Started: at}
}

// Good ends a run well, with a point.
func Good(r runs.Run, id string, took time.Duration, random *rand.Rand) runs.Run {
	r.Ended, r.Outcome = r.Started.Add(took), runs.Done
	stored := int64(random.IntN(40<<20) + 1<<20)
	r.Point = &runs.Point{ID: id, Time: r.Started.Add(time.Second), Read: "incremental", ReadReason: "vda: incremental: bitmap cairn-b3f94e59 recorded all changes since the last point",
		Consistency: "application", Why: "postgresql@15-main and redis were told; 2 filesystems frozen", Pace: "12.4 s, of which reading the disks took 9.0 s (202 MiB/s)",
		BytesDisk: 40 << 30, BytesDirty: 4 * stored, BytesRead: 4 * stored, BytesStored: stored, FrozenMS: 130, PausedUS: 4800, Audited: 509, DurationMS: took.Milliseconds()}
	r.Log = []string{"probe: QEMU 7.2.22, running, 1 disk", "prepare: the inside agent described 14 objects", "quiesce: postgresql@15-main, redis told; 2 filesystems frozen",
		"point: bitmap cairn-b3f94e59-1795890003474 begins", "thaw: after 130 ms", fmt.Sprintf("read: %d MiB", 4*stored>>20), "commit: the point is durable"}
	return r
}

// Bad ends a run that failed.
func Bad(r runs.Run, why string) runs.Run {
	r.Ended, r.Outcome, r.Reason, r.Exit = r.Started.Add(3*time.Second), runs.Failed, why, 1
	r.Log = []string{"probe: connecting to /run/" + r.VM + ".qmp", "cairn: " + why}
	return r
}
