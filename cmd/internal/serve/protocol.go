package serve

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
	"cairn/index/restorepoint/retention"
)

// WorkerCommand is the hidden command by which cairn starts itself as a worker:
// its argument names the repository, for people who list processes.
const WorkerCommand = "serve-worker"

// maxMessage bounds a line between daemon and worker.
const maxMessage = 1 << 20

// What an Order asks for.
const (
	DoOpen      = "open"      // first of all
	DoLimits    = "limits"    // what this worker may take of the host's
	DoRun       = "run"       // Run.Kind says what
	DoInterrupt = "interrupt" // Run.ID
	DoFind      = "find"      // which of Runs made a point
)

// Order is a line from the daemon to a worker. The end of the lines ends the
// worker: at once, cleanly, if something runs.
type Order struct {
	Do        string      `json:"do"`
	Open      *Repository `json:"open,omitempty"`
	Limits    *Limits     `json:"limits,omitempty"`
	Run       runs.Run    `json:"run,omitzero"`
	Backup    *Backup     `json:"backup,omitempty"`
	Forget    *Forget     `json:"forget,omitempty"`
	Check     *Check      `json:"check,omitempty"`
	Runs      []runs.Run  `json:"runs,omitempty"`
	Catalogue *Catalogue  `json:"catalogue,omitempty"`
}

// Repository is how a repository is opened.
type Repository struct {
	Name       string   `json:"name"`
	Addresses  []string `json:"addresses"` // the first that opens is it
	KeyFile    string   `json:"key_file,omitempty"`
	CAFile     string   `json:"ca_file,omitempty"`
	WriteLimit int64    `json:"write_limit,omitempty"`
}

// Limits are bytes a second for all that a worker does; 0 is none.
type Limits struct {
	Read  int64 `json:"read,omitempty"`
	Write int64 `json:"write,omitempty"`
}

// Backup is how a VM is backed up.
type Backup struct {
	VM           config.VM     `json:"vm"`
	NoFreeze     bool          `json:"no_freeze,omitempty"`
	EveryBlock   bool          `json:"every_block,omitempty"`
	Objects      []string      `json:"objects,omitempty"`
	Tags         []string      `json:"tags,omitempty"`
	AgentTimeout time.Duration `json:"agent_timeout,omitempty"`
	ScratchLimit int64         `json:"scratch_limit,omitempty"`
	ReadLimit    int64         `json:"read_limit,omitempty"`
	WriteLimit   int64         `json:"write_limit,omitempty"`
}

// Forget is what of VMs' points stays.
type Forget struct {
	VMs   []string        `json:"vms"`
	Rules retention.Rules `json:"rules"` // without its zone
	Zone  string          `json:"zone"`
	Words string          `json:"words"`
}

// Check is how much of a repository is looked at.
type Check struct {
	Data float64 `json:"data,omitempty"` // percent of the packs to read
	Rate int64   `json:"rate,omitempty"`
}

// Catalogue says of which point the list of files is made.
type Catalogue struct {
	Point string `json:"point"`
}

// What an Event tells.
const (
	Opened   = "opened" // or not: Text says why
	Begun    = "begun"  // a run
	Said     = "said"   // a line of a run's log
	Moved    = "moved"  // progress of a run
	PointMet = "point"  // a run's point is committed, and the VM let go
	Ended    = "ended"  // a run
	Found    = "found"  // the answer to DoFind
	Places   = "places" // of the repository
	Noted    = "noted"  // a line that belongs to no run
)

// maxText bounds an Event's text that is kept, bytes.
const maxText = 64 << 10

// Event is a line from a worker to the daemon.
type Event struct {
	Event string               `json:"event"`
	Run   string               `json:"run,omitempty"` // its ID
	Text  string               `json:"text,omitempty"`
	Work  string               `json:"work,omitempty"`
	Done  int64                `json:"done,omitempty"`
	Total int64                `json:"total,omitempty"`
	Bytes bool                 `json:"bytes,omitempty"`
	End   *End                 `json:"end,omitempty"`
	Found map[string]*FoundRun `json:"found,omitempty"` // by run
	Place *runs.Repository     `json:"place,omitempty"` // its points, places and which are away
	Tag   string               `json:"tag,omitempty"`   // of an opened repository in bitmaps
}

// FoundRun is the point that a run made which could not say so.
type FoundRun struct {
	Point    runs.Point `json:"point"`
	Warnings []string   `json:"warnings,omitempty"`
}

// End is how a run ended.
type End struct {
	Exit     int         `json:"exit"` // as of the command
	Reason   string      `json:"reason,omitempty"`
	Warnings []string    `json:"warnings,omitempty"`
	Point    *runs.Point `json:"point,omitempty"`
	Freed    int64       `json:"freed,omitempty"`
	Findings int         `json:"findings,omitempty"`
	Images   []string    `json:"images,omitempty"` // of the VM's disks
	Away     bool        `json:"away,omitempty"`   // the repository is not there
}

// errTooLong: the other side does not keep to the protocol.
var errTooLong = errors.New("a line of more than 1 MiB")

// readLines calls fn for each line of r, decoded as a T.
func readLines[T any](r io.Reader, fn func(T) error) error {
	b := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := readLine(b)
		if len(line) > 0 && err == nil {
			var v T
			if jerr := json.Unmarshal(line, &v); jerr != nil {
				return fmt.Errorf("a line that cannot be read: %w", jerr)
			}
			if ferr := fn(v); ferr != nil {
				return ferr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func readLine(b *bufio.Reader) (line []byte, err error) {
	for {
		part, err := b.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxMessage {
			return nil, errTooLong
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err // a last line without its end is a dead writer's
		}
	}
}

// ReadOrders calls fn for each order that a worker is given, until they end.
func ReadOrders(r io.Reader, fn func(Order) error) error { return readLines(r, fn) }
