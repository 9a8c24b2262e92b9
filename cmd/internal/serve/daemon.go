package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// Options are what a Daemon needs of its surroundings.
type Options struct {
	Dirs    config.Dirs
	Config  *config.Config // to begin with; it is read anew when its files change
	Version string
	Host    string
	// Now is the clock by which work is due, and After waits by it. What is no
	// schedule's matter, like how long a process may idle, is in real time.
	Now     func() time.Time
	After   func(time.Duration) <-chan time.Time
	Getenv  func(string) string
	Process Process
	Domains config.Domains
	Log     *slog.Logger
	Grace   time.Duration // how long what runs may go on when the daemon is to stop
	Once    bool          // do what is due, and end
	Reload  <-chan os.Signal
	// Reloaded hears of each new configuration; it must not wait. nil: nobody.
	Reloaded func(*config.Config)
	Poll     time.Duration // real, between looks at the configuration's files; 0: the usual
}

// Real times.
const (
	idleTime    = 5 * time.Second  // of a worker
	pollTime    = 5 * time.Second  // between looks at the configuration's files
	stopTime    = 90 * time.Second // for what was interrupted to clean up
	beatTime    = time.Minute      // at most between two plans, by the clock of schedules
	tidyEvery   = 24 * time.Hour
	searchEvery = time.Minute     // between two searches for VMs, by the same
	searchLimit = 2 * time.Minute // of one, real
)

// ErrRunning: another daemon has this host's state.
var ErrRunning = errors.New("cairn serve runs already on this host")

// Daemon is `cairn serve`. Run is called once; Status at any time.
type Daemon struct {
	Options
	book    *runs.Book
	lock    *os.File
	systemd systemd
	events  chan message
	done    chan struct{} // closed when nobody listens any more
	workers sync.WaitGroup

	mu        sync.Mutex // of all below
	config    *config.Config
	files     string // what the configuration's files were like
	problem   string // of the configuration
	bookWoe   string // why the book cannot be written
	bookAgain time.Time
	machines  []config.Machine
	woes      []runs.Trouble    // of discoveries
	unfound   map[string]string // why a discovery failed
	finding   bool
	findAt    time.Time
	seen      *seen
	started   time.Time
	since     time.Time // see Input.Since
	tick      time.Time
	tidied    time.Time // real
	facts     map[string]Fact
	storages  map[string][]string
	looking   map[string]bool
	away      map[string]Away
	attempts  map[string]int // of opening a repository that is away
	tags      map[string]string
	places    map[string]runs.Repository
	failures  map[string]int   // of a VM, in a row
	bare      map[string]*Bare // by point
	suspect   map[string]bool
	active    map[string]*active
	over      []runs.Run       // that ended, and are not in the book yet
	lost      map[string]*lost // runs of which it is not known whether they made a point
	crew      map[crewKey]*worker
	all       map[*worker]bool // that have not ended
	plan      Plan
	beat      time.Time // when the loop last went round
	stopping  bool
	stopAt    time.Time // real: when what runs is interrupted
	killAt    time.Time // real: when it is killed
	result    Result
}

// Result is what a daemon did in its life.
type Result struct {
	Done, Warned, Failed, Damage int
}

// active is a run that is going on.
type active struct {
	runs.Run
	order    Order
	begun    bool // its worker has said so
	free     bool // the VM is let go
	stopped  bool // it was interrupted
	storages []string
	step     string
	work     string
	done     int64
	total    int64
	bytes    bool
	point    *runs.Point
	log      []string
}

// lost is a run whose worker died.
type lost struct {
	runs.Run
	outcome runs.Outcome // if it made no point
	asked   bool
}

// crewKey is what a worker is for.
type crewKey struct {
	repo   string
	upkeep bool
}

// message is what the loop hears.
type message struct {
	worker *worker
	event  *Event
	err    error // with neither: the worker's end
	then   func()
}

// New takes a host's state. Close gives it back.
func New(o Options) (*Daemon, error) {
	clock := o.Now
	// What the clock shows, without the count of the time since the host's start:
	// that stands while the host sleeps, and does not see that the clock was set.
	o.Now = func() time.Time { return clock().Round(0) }
	dir := StateDir(o.Dirs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: its lock is %s", ErrRunning, lock.Name())
		}
		return nil, err
	}
	d := &Daemon{Options: o, lock: lock, systemd: findSystemd(o.Getenv), events: make(chan message, 256), done: make(chan struct{}), config: o.Config,
		facts: map[string]Fact{}, storages: map[string][]string{}, looking: map[string]bool{}, away: map[string]Away{}, attempts: map[string]int{},
		tags: map[string]string{}, places: map[string]runs.Repository{}, failures: map[string]int{}, bare: map[string]*Bare{}, suspect: map[string]bool{}, active: map[string]*active{}, lost: map[string]*lost{}, crew: map[crewKey]*worker{}, all: map[*worker]bool{}}
	if d.seen, err = openSeen(filepath.Join(dir, "seen.json")); err == nil {
		d.book, err = runs.Open(filepath.Join(dir, "runs"))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	d.files = fingerprint(o.Dirs)
	// The first time an hour from now: by then the clock is right.
	d.started, d.tidied = o.Now(), time.Now().Add(time.Hour-tidyEvery)
	d.since, d.tick = d.started, d.started
	for _, r := range slices.Backward(d.book.Runs(1<<20, func(r runs.Run) bool { return r.Kind == runs.Backup || r.Kind == runs.Catalogue })) {
		d.count(r)
	}
	return d, nil
}

// StateDir is where a daemon keeps its book.
func StateDir(d config.Dirs) string { return filepath.Join(d.State, "serve") }

// Book gives the book of runs.
func (d *Daemon) Book() *runs.Book { return d.book }

// Close gives the host's state back.
func (d *Daemon) Close() error { return errors.Join(d.book.Close(), d.lock.Close()) }

// count keeps the failures of a VM in a row, and which points lack a catalogue.
func (d *Daemon) count(r runs.Run) {
	d.countBare(r)
	switch {
	case r.Kind != runs.Backup:
	case r.Good():
		delete(d.failures, r.VM)
	case r.Outcome == runs.Failed:
		d.failures[r.VM]++
	}
}

// Run is the daemon's life: until ctx ends, or, once, until nothing is due. When
// it returns, nothing that it started runs any more.
func (d *Daemon) Run(ctx context.Context) (Result, error) {
	defer d.workers.Wait()
	defer close(d.done)
	looks, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	d.mu.Lock()
	d.recover()
	if n := d.book.Damaged(); n > 0 {
		d.Log.Warn("lines of the book of runs cannot be read, and are as if they were not there", "lines", n, "folder", StateDir(d.Dirs))
	}
	d.mu.Unlock()
	d.mu.Lock()
	d.search(looks) // the first is waited for
	d.mu.Unlock()
	d.hear(<-d.events)
	d.systemd.tell("READY=1\nSTATUS=" + d.words())
	d.Log.Info("cairn serve has started", "version", d.Version, "jobs", len(d.config.Jobs), "vms", len(d.machines), "repositories", len(d.config.Repositories))
	if len(d.config.Jobs) == 0 {
		d.Log.Warn("there is no job: nothing is backed up (cairn config example)")
	}
	poll := time.NewTicker(cmp.Or(d.Poll, pollTime))
	defer poll.Stop()
	var beat <-chan time.Time
	if d.systemd.watchdog > 0 {
		t := time.NewTicker(d.systemd.watchdog)
		defer t.Stop()
		beat = t.C
	}
	stop := ctx.Done()
	due := true
	for {
		d.mu.Lock()
		d.beat = d.Now()
		if due {
			d.work(looks)
		}
		ended := d.ended()
		wake := d.wake()
		d.mu.Unlock()
		if ended {
			break
		}
		select {
		case m := <-d.events:
			due = d.hear(m)
			for range len(d.events) { // what else has come; one plan for all
				due = d.hear(<-d.events) || due
			}
		case <-d.After(wake):
			due = true
		case <-d.Reload:
			d.reload(true)
			due = true
		case <-stop:
			stop = nil
			d.stop()
			due = true
		case <-poll.C:
			due = d.reload(false)
			if d.stopStep() {
				due = true
			}
		case <-beat:
			due = false
		}
		d.systemd.tell("WATCHDOG=1\nSTATUS=" + d.words())
	}
	d.finish(cancel)
	return d.result, nil
}

// wake gives how long nothing is due.
func (d *Daemon) wake() time.Duration {
	now := d.Now()
	wait := beatTime
	if at := d.plan.Wake; !at.IsZero() {
		wait = min(wait, at.Sub(now))
	}
	if d.bookWoe != "" {
		wait = min(wait, d.bookAgain.Sub(now))
	}
	return max(wait, time.Millisecond)
}

// ended says whether the life is over. It needs d.mu.
func (d *Daemon) ended() bool {
	if len(d.active) > 0 {
		return false
	}
	if d.stopping {
		return true
	}
	for _, l := range d.lost {
		if l.asked || !d.away[l.Repository].Until.After(d.Now()) { // else the next start finds out
			return false
		}
	}
	if d.Once && d.bookWoe != "" {
		d.result.Failed++
		return true
	}
	return d.Once && !d.finding && len(d.looking) == 0 && len(d.plan.Begin) == 0 && len(d.plan.Look) == 0
}

// post lets the loop call f, unless it has ended.
func (d *Daemon) post(f func()) { d.send(message{then: f}) }

func (d *Daemon) send(m message) {
	select {
	case d.events <- m:
	case <-d.done:
	}
}
