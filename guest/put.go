package guest

import (
	"context"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"cairn/guest/archive"
	"cairn/guest/object"
)

// Limits of a Put and its result.
const (
	MaxPutTargets  = 16
	MaxPutPath     = 4095 // bytes (PATH_MAX)
	MaxPutFailures = 200  // listed one by one
	maxPutText     = 400  // bytes of a failure's path, and of its reason: a result must fit an answer
	maxPutEntries  = 1 << 40
	maxPutBytes    = 1 << 60
)

// Put are the arguments of the call "put": what the call's stream (package
// archive) holds, and where it belongs. All of it is written beside its targets
// and verified before the first target is touched; then all are renamed into
// place, or none is.
type Put struct {
	Targets []PutTarget `json:"targets"` // one for each tree of the stream, in its order
	// KeepBoth, when not "", leaves what is at a target: what is put gets the
	// target's name with this behind it, ".cairn-2026-10-12T02-00-00Z" for one.
	KeepBoth string `json:"keep_both,omitempty"`
	// DryRun only says what would be done. There is no stream.
	DryRun bool `json:"dry_run,omitempty"`
}

// PutTarget is where one tree goes, and how much it is. The stream must not
// hold more.
type PutTarget struct {
	Path    []byte   `json:"path"`    // absolute in the guest; raw bytes
	Name    []byte   `json:"name"`    // what the tree was called
	Where   PutWhere `json:"where"`   // what Path means
	Dir     bool     `json:"dir"`     // the tree is a directory
	Entries int64    `json:"entries"` // files, directories and all else; further names do not count
	Bytes   int64    `json:"bytes"`   // of data; holes do not count
}

// PutWhere says what PutTarget.Path means.
type PutWhere string

// Values of PutWhere.
const (
	PutAt     PutWhere = "at"      // the tree gets this path, whatever is there now
	PutInto   PutWhere = "into"    // a directory: the tree goes into it, with its own name
	PutEither PutWhere = "into-or" // PutInto if a directory is there, else PutAt: as cp(1)
)

// PutResult answers a put.
type PutResult struct {
	// Done says that everything is in place. If not, Reason says why, and every
	// target is as it was.
	Done   bool   `json:"done"`
	Reason string `json:"reason,omitempty"`

	Targets []PutOutcome `json:"targets"`

	Files    int64 `json:"files"`
	Dirs     int64 `json:"dirs"`
	Links    int64 `json:"links"`  // symbolic links, and further names of a file
	Others   int64 `json:"others"` // device nodes, FIFOs, sockets
	Bytes    int64 `json:"bytes"`  // of data written
	Verified int64 `json:"verified"`
	// Failures are what could not be kept, such as an attribute that the guest's
	// filesystem does not have; Lost of them are whole files.
	Failures     []PutFailure `json:"failures,omitempty"`
	MoreFailures int64        `json:"more_failures,omitempty"`
	Lost         int64        `json:"lost,omitempty"`
}

// PutOutcome is what became of one target, or will.
type PutOutcome struct {
	Path     []byte `json:"path"`               // where the tree is now
	Replaced string `json:"replaced,omitempty"` // type of what was there and is gone: "file", "directory", "symlink", "other"; "": nothing
	// Left is where what was there is still, in pieces, because it could not be
	// removed.
	Left []byte `json:"left,omitempty"`
}

// PutFailure is one thing that could not be kept.
type PutFailure struct {
	Path   string `json:"path"` // for people: not always the raw bytes
	Reason string `json:"reason"`
}

// Failed adds a failure to those of a result.
func (r *PutResult) Failed(path string, reason error) {
	if len(r.Failures) >= MaxPutFailures {
		r.MoreFailures++
		return
	}
	r.Failures = append(r.Failures, PutFailure{shorten(path), shorten(reason.Error())})
}

func shorten(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) > maxPutText {
		s = strings.ToValidUTF8(s[:maxPutText-3], "") + "…"
	}
	return s
}

// Check refuses arguments that make no sense.
func (p *Put) Check() error {
	if n := len(p.Targets); n < 1 || n > MaxPutTargets {
		return fmt.Errorf("put: %d targets: want 1 to %d", n, MaxPutTargets)
	}
	if s := p.KeepBoth; s != "" && (len(s) > 64 || s[0] != '.' || archive.CheckName(s) != nil) {
		return fmt.Errorf("put: %.80q cannot be put behind a name", s)
	}
	for _, t := range p.Targets {
		if len(t.Path) < 1 || len(t.Path) > MaxPutPath || t.Path[0] != '/' || strings.ContainsRune(string(t.Path), 0) {
			return fmt.Errorf("put: %.80q is not an absolute path", t.Path)
		}
		if t.Where != PutAt {
			if err := archive.CheckName(string(t.Name)); err != nil {
				return fmt.Errorf("put into %.80q: %w", t.Path, err)
			}
		}
		if t.Where != PutAt && t.Where != PutInto && t.Where != PutEither {
			return fmt.Errorf("put: %.40q is no way to put a tree", t.Where)
		}
		if t.Entries < 1 || t.Entries > maxPutEntries || t.Bytes < 0 || t.Bytes > maxPutBytes {
			return fmt.Errorf("put %.80q: %d entries of %d bytes", t.Path, t.Entries, t.Bytes)
		}
	}
	return nil
}

// check refuses a result that cannot be: it comes from a guest, and that may lie.
func (r *PutResult) check(p *Put) error {
	if len(r.Targets) > len(p.Targets) || r.Done && len(r.Targets) != len(p.Targets) || len(r.Failures) > MaxPutFailures {
		return fmt.Errorf("%w: a put of %d targets has %d results and %d failures", ErrBadAnswer, len(p.Targets), len(r.Targets), len(r.Failures))
	}
	for _, n := range []int64{r.Files, r.Dirs, r.Links, r.Others, r.Bytes, r.Verified, r.MoreFailures, r.Lost} {
		if n < 0 {
			return fmt.Errorf("%w: a put has counted to %d", ErrBadAnswer, n)
		}
	}
	texts := []string{r.Reason}
	for _, f := range r.Failures {
		texts = append(texts, f.Path, f.Reason)
	}
	for _, t := range r.Targets {
		if len(t.Path) > MaxPutPath || len(t.Left) > MaxPutPath+MaxPutPath {
			return fmt.Errorf("%w: a path of %d bytes", ErrBadAnswer, max(len(t.Path), len(t.Left)))
		}
		texts = append(texts, t.Replaced)
	}
	for _, s := range texts {
		if len(s) > object.MaxText || !utf8.ValidString(s) {
			return fmt.Errorf("%w: a text of %d bytes: %.40q", ErrBadAnswer, len(s), s)
		}
	}
	return nil
}

// Caller asks the inside agent. *Inside is one.
type Caller interface {
	Call(ctx context.Context, name string, args, out any) error
	CallStream(ctx context.Context, name string, args, out any, write func(w io.Writer) error) error
}

// PutFiles puts what write writes, a stream of package archive, at p's targets
// in the guest; with p.DryRun write is not called. The error is of the channel,
// of write, or a *CallError; a result with Done false is none. ctx should leave
// time for the guest to write it all to its disk.
func PutFiles(ctx context.Context, c Caller, p Put, write func(w io.Writer) error) (*PutResult, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	r := new(PutResult)
	var err error
	if p.DryRun {
		err = c.Call(ctx, CallPut, p, r)
	} else {
		err = c.CallStream(ctx, CallPut, p, r, write)
	}
	if err != nil {
		return nil, err
	}
	return r, r.check(&p)
}
