package config

import (
	"time"

	"cairn/cmd/internal/schedule"
	"cairn/index/restorepoint/retention"
)

// Config is what cairn.toml, cairn.d/*.toml and vms.d/*.toml say together.
// Everything is in the order of names.
type Config struct {
	Files        []string     `json:"files"` // that were read, in that order
	Host         Host         `json:"host"`
	Repositories []Repository `json:"repositories"`
	VMs          []Machine    `json:"vms"` // those with a table or a file of their own
	Discoveries  []Discovery  `json:"discoveries"`
	Jobs         []Job        `json:"jobs"`
	Notify       *Notify      `json:"notify,omitempty"` // nil: nobody is told
	Web          *Web         `json:"web,omitempty"`    // nil: there is no page
}

// What holds for a host that says nothing else.
const (
	DefaultConcurrency           = 2
	DefaultConcurrencyPerStorage = 1
)

// Host is what holds for all jobs of this host.
type Host struct {
	// Concurrency is how many VMs are backed up at once, and
	// ConcurrencyPerStorage how many of those that have images on one storage: one
	// filesystem, volume group or pool.
	Concurrency           int `json:"concurrency"`
	ConcurrencyPerStorage int `json:"concurrency_per_storage"`
	// ReadLimit and WriteLimit are shared by all that runs; 0 is none.
	ReadLimit  Rate           `json:"read_limit,omitempty"`
	WriteLimit Rate           `json:"write_limit,omitempty"`
	TimeZone   *time.Location `json:"-"` // of schedules and windows that name none
}

// Repository is where points go.
type Repository struct {
	Name  string `json:"name"`
	Where Where  `json:"where"`
	// Address is what -r takes. Places are other places of it, each of which opens
	// it when the address does not.
	Address     string   `json:"address"`
	Places      []string `json:"places,omitempty"`
	KeyFile     string   `json:"key_file,omitempty"` // as --password-file
	CAFile      string   `json:"ca_file,omitempty"`
	Concurrency int      `json:"concurrency,omitempty"` // VMs of this host that write to it at once; 0: as the host
	WriteLimit  Rate     `json:"write_limit,omitempty"` // shared by them; 0 is none
	Upkeep
}

// Upkeep is what `cairn serve` does for a repository by itself. A schedule that
// is nil never comes.
type Upkeep struct {
	GC        []schedule.Schedule `json:"gc,omitempty"`
	Check     []schedule.Schedule `json:"check,omitempty"`
	CheckData Percent             `json:"check_data,omitempty"`   // of the packs that one check reads; 0: none
	CheckRate Rate                `json:"check_rate,omitempty"`   // at which it reads them; 0 is no limit
	Engine    []schedule.Schedule `json:"engine_check,omitempty"` // of buckets
}

// Machine is a VM and from where it is known.
type Machine struct {
	VM
	Where     Where  `json:"where"`
	Discovery string `json:"discovery,omitempty"` // that found it; "" is a table or file of its own
}

// Discovery finds VMs that have no table of their own: the domains of a libvirt,
// or the monitors whose sockets are named by a pattern.
type Discovery struct {
	Name    string    `json:"name"`
	Where   Where     `json:"where"`
	Libvirt string    `json:"libvirt,omitempty"`
	QMP     string    `json:"qmp,omitempty"` // a VM is named like its socket, without the ending
	Include []Pattern `json:"include,omitempty"`
	Except  []Pattern `json:"except,omitempty"`
	Tags    []string  `json:"tags,omitempty"`
	Exclude []string  `json:"exclude,omitempty"` // names of disks to leave out
}

// Job says which VMs are backed up when, how, and what stays of their points.
type Job struct {
	Name       string    `json:"name"`
	Where      Where     `json:"where"`
	Repository string    `json:"repository"`
	VMs        []Pattern `json:"vms"`
	Except     []Pattern `json:"except,omitempty"`

	// Schedules make it due: whichever comes first. A run that was missed while the
	// host was off is made up for, unless NoCatchUp. RandomDelay spreads the runs of
	// many hosts.
	Schedules   []schedule.Schedule `json:"schedule,omitempty"`
	TimeZone    *time.Location      `json:"-"` // of schedules and window
	RandomDelay Duration            `json:"random_delay,omitempty"`
	NoCatchUp   bool                `json:"no_catch_up,omitempty"`
	// Window is when a VM's backup may begin; one that runs when it closes is
	// finished.
	Window schedule.Window `json:"window"`
	When   Conditions      `json:"when"`

	Concurrency           int  `json:"concurrency,omitempty"`             // VMs of this job at once; 0: as the host
	ConcurrencyPerStorage int  `json:"concurrency_per_storage,omitempty"` // the same
	ReadLimit             Rate `json:"read_limit,omitempty"`              // of each VM; 0 is none
	WriteLimit            Rate `json:"write_limit,omitempty"`             // the same
	ScratchLimit          Size `json:"scratch_limit,omitempty"`           // the same; 0: as cairn backup

	Objects      []string `json:"objects,omitempty"`       // as --object; none: all
	ExcludeDisks []string `json:"exclude_disks,omitempty"` // of all its VMs, beside their own
	Tags         []string `json:"tags,omitempty"`          // of the points
	NoFreeze     bool     `json:"no_freeze,omitempty"`
	EveryBlock   bool     `json:"every_block,omitempty"`
	AgentTimeout Duration `json:"agent_timeout,omitempty"` // 0: as cairn backup

	// Keep is what stays; an empty one forgets nothing. KeepText is the same in
	// the words of cairn forget.
	Keep     retention.Rules `json:"-"`
	KeepText string          `json:"keep,omitempty"`
}

// Conditions make a job due beside its schedules (on), or keep a VM out of a run
// (only).
type Conditions struct {
	OnShutdown  bool     `json:"on_shutdown,omitempty"`   // a VM was shut down
	OnChanged   Size     `json:"on_changed,omitempty"`    // so much has changed since its last point
	AtMostEvery Duration `json:"at_most_every,omitempty"` // for both: not again before that
	OnlyOff     bool     `json:"only_off,omitempty"`      // VMs that run are left out
	OnlyChanged Size     `json:"only_changed,omitempty"`  // and those of which less has changed
}

// Next gives the first moment after a moment at which a schedule makes the job
// due and its window is open; the zero time if none comes.
func (j Job) Next(after time.Time) (next time.Time) {
	for _, s := range j.Schedules {
		if t := s.Next(after); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if next.IsZero() {
		return next
	}
	return j.Window.Opens(next)
}

// Coming gives the next n runs.
func (j Job) Coming(after time.Time, n int) (list []time.Time) {
	for len(list) < n {
		if after = j.Next(after); after.IsZero() {
			break
		}
		list = append(list, after)
	}
	return list
}
