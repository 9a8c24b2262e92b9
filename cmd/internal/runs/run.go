package runs

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// Kind is what a run does.
type Kind string

// Kinds of runs.
const (
	Backup Kind = "backup" // of one VM
	Forget Kind = "forget" // of one job's points
	GC     Kind = "gc"     // of one repository
	Check  Kind = "check"  // of one repository: the weekly check and the scrub
	Engine Kind = "engine" // is the bucket's engine still as good as it was
	// Catalogue is of one point's files: it was not made with the point.
	Catalogue Kind = "catalogue"
)

// Outcome is how a run ended.
type Outcome string

// Outcomes of runs. Done and Warned are good: what was to be made exists.
const (
	Done        Outcome = "done"
	Warned      Outcome = "warnings"    // done; something was not read, or not as consistent as wanted
	Failed      Outcome = "failed"      // nothing was made
	Skipped     Outcome = "skipped"     // by a condition, a window, or since the VM is gone
	Interrupted Outcome = "interrupted" // the daemon was stopped or killed
)

// Run is one piece of work, from its beginning to its end.
type Run struct {
	ID         string    `json:"id"` // 16 hexadecimal digits
	Kind       Kind      `json:"kind"`
	Job        string    `json:"job,omitempty"`  // "" if no job asked for it
	VM         string    `json:"vm,omitempty"`   // of a backup, or of the point whose catalogue is made
	Of         string    `json:"of,omitempty"`   // that point
	Repository string    `json:"repository"`     // its name in the configuration
	Due        time.Time `json:"due"`            // when it should have begun
	Also       []Slot    `json:"also,omitempty"` // what this run was for as well
	Cause      string    `json:"cause"`          // in plain words: "hourly", "missed while the host was off", "20 GiB changed"
	Attempt    int       `json:"attempt"`        // 1 is the first
	Started    time.Time `json:"started"`
	Ended      time.Time `json:"ended,omitzero"` // zero while it runs
	Outcome    Outcome   `json:"outcome,omitempty"`
	Reason     string    `json:"reason,omitempty"` // why it failed or was skipped
	Exit       int       `json:"exit,omitempty"`   // exit code of cairn
	Point      *Point    `json:"point,omitempty"`  // that a backup made
	Freed      int64     `json:"bytes_freed,omitempty"`
	Findings   int       `json:"findings,omitempty"` // of damage, by a check
	Warnings   []string  `json:"warnings,omitempty"`
	// Log is what the run said, at most MaxLog bytes of it: the beginning and the
	// end. Only Book.Log gives it.
	Log []string `json:"log,omitempty"`
}

// Slot is a moment at which a job was due.
type Slot struct {
	Job string    `json:"job"`
	Due time.Time `json:"due"`
}

// Slots gives the moments that a run was for.
func (r Run) Slots() []Slot { return append([]Slot{{r.Job, r.Due}}, r.Also...) }

// Point is what a backup made, as in `cairn backup --json`.
type Point struct {
	ID          string    `json:"id"`
	Time        time.Time `json:"time"`
	Read        string    `json:"read"` // "full" or "incremental"
	ReadReason  string    `json:"read_reason"`
	Consistency string    `json:"consistency"`
	Why         string    `json:"consistency_reason"`
	Pace        string    `json:"pace,omitempty"`
	BytesDisk   int64     `json:"bytes_disk"`
	BytesDirty  int64     `json:"bytes_dirty"`
	BytesRead   int64     `json:"bytes_read"`
	BytesStored int64     `json:"bytes_stored"`
	FrozenMS    int64     `json:"frozen_ms"`
	PausedUS    int64     `json:"paused_us"`
	Audited     int64     `json:"chunks_audited"`
	Wrong       int64     `json:"chunks_wrong"` // of the audited: the bitmap lied
	DurationMS  int64     `json:"duration_ms"`
	// NoCatalogue: the list of its files was not made with it, and is made up for.
	NoCatalogue bool `json:"no_catalogue,omitempty"`
}

// Good says whether a run made what it was to make.
func (r Run) Good() bool { return r.Outcome == Done || r.Outcome == Warned }

// NewID gives a run's name.
func NewID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return hex.EncodeToString(b[:])
}
