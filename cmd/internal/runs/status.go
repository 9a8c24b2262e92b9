package runs

import "time"

// Status is what the daemon knows at a moment. It is a copy: nobody changes it.
type Status struct {
	Host         string       `json:"host"`
	Version      string       `json:"version"`
	Now          time.Time    `json:"now"`
	Since        time.Time    `json:"since"` // when the daemon started
	Stopping     bool         `json:"stopping,omitempty"`
	Problem      string       `json:"problem,omitempty"` // with the configuration that was read last; the one before it goes on to hold
	VMs          []VM         `json:"vms"`
	Jobs         []Job        `json:"jobs"`
	Repositories []Repository `json:"repositories"`
	Running      []Live       `json:"running"` // in the order in which they began
	Waiting      []Run        `json:"waiting"` // due, and not begun
	// Troubles are what is wrong around the daemon, each once, for however many jobs:
	// a libvirt that does not answer, say.
	Troubles []Trouble `json:"troubles,omitempty"`

	// Beat is when the scheduler's loop last went round, by the clock of Now: it
	// does so at least once a minute. Zero if nobody tells.
	Beat time.Time `json:"beat,omitzero"`
}

// Trouble is something wrong that is no single job's.
type Trouble struct {
	Key  string `json:"key"` // the same for as long as it goes on
	Text string `json:"text"`
}

// VM is one VM that the configuration names or discovers. Without a job it is
// not protected.
type VM struct {
	Name     string    `json:"name"`
	Jobs     []string  `json:"jobs"`
	Last     *Run      `json:"last,omitempty"`      // that ended
	LastGood *Run      `json:"last_good,omitempty"` // its age is what to watch
	Next     time.Time `json:"next,omitzero"`
	Failures int       `json:"failures"` // in a row
	// Late: no good backup since the last moment at which one was due, and a
	// quarter of the time to the next one is over.
	Late bool `json:"late,omitempty"`
}

// Protected says whether a job backs the VM up.
func (v VM) Protected() bool { return len(v.Jobs) > 0 }

// Job is a job of the configuration.
type Job struct {
	Name       string    `json:"name"`
	Repository string    `json:"repository"`
	When       string    `json:"when"` // in words
	Keep       string    `json:"keep"` // in words; "" is everything
	VMs        []string  `json:"vms"`
	Next       time.Time `json:"next,omitzero"`
	Problem    string    `json:"problem,omitempty"` // the one of Troubles that concerns it, say
}

// Repository is a repository of the configuration.
type Repository struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Problem string `json:"problem,omitempty"` // it cannot be opened, say
	// Away are the places that did not answer when it was last used.
	Places int      `json:"places"`
	Away   []string `json:"away,omitempty"`
	Points int      `json:"points"`
	LastGC *Run     `json:"last_gc,omitempty"`
	// LastCheck is the last check that ended, LastGood the last that found all well.
	LastCheck *Run `json:"last_check,omitempty"`
	LastGood  *Run `json:"last_good_check,omitempty"`
	// Findings are those of the last check that came to its end: one that failed
	// takes none back.
	Findings int `json:"findings"`
	// Bytes is what it takes, as last counted; 0 if nobody counted.
	Bytes int64 `json:"bytes,omitempty"`
}

// Live is a run that is going on.
type Live struct {
	Run
	Step  string `json:"step"` // the last line that it said
	Work  string `json:"work"` // what Done and Total count, "" if nothing
	Done  int64  `json:"done"`
	Total int64  `json:"total"` // 0 while it is not known
	Bytes bool   `json:"bytes"` // that Done and Total count bytes
}
