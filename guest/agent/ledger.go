package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
)

// maxLedger bounds the ledger's files, bytes.
const maxLedger = 1 << 20

// ledger is what the agent's next start must know if this one does not end by
// itself: which filesystems may be frozen, and which steps are owed. The
// first is forgotten with the boot, for so are frozen filesystems. The second
// is on a disk, and so also in the restore point: a restored machine pays it
// too.
type ledger struct {
	runDir   string // in memory: /run/cairn-agent
	stateDir string // on a disk: /var/lib/cairn-agent

	mu      sync.Mutex
	owed    []owedStep
	damaged bool // the notes of what is owed could not be read
	lock    io.Closer
}

// lockName is the file whose lock says that an agent runs, and that says which
// process that is.
const lockName = "lock"

// frozenNote says what may be frozen.
type frozenNote struct {
	BootID  string   `json:"boot_id"`
	Point   string   `json:"point"`
	Devices []string `json:"devices"` // of the filesystems, as mountinfo has them
}

// owedStep is a post step whose pre step was begun, or the start of a service
// that was stopped for a restore.
type owedStep struct {
	Phase   string  `json:"phase,omitempty"` // phaseStart; "": post
	Object  string  `json:"object"`
	Point   string  `json:"point,omitempty"` // "" of a start
	Command Command `json:"command"`
}

// owedPost is the phase of a post step in the notes.
const owedPost = ""

func (l *ledger) frozenFile() string { return filepath.Join(l.runDir, "frozen.json") }
func (l *ledger) owedFile() string   { return filepath.Join(l.stateDir, "owed.json") }

// errTwice says that another agent serves this machine.
var errTwice = errors.New("another cairn-agent is running")

// open makes the folders and locks the ledger for this process. The lock of one
// that was killed is free only when the kernel has ended its last call, also a
// freeze that hung.
func (l *ledger) open() error {
	for _, dir := range []string{l.runDir, l.stateDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := checkTrustedPath(dir); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	lock, err := lockFile(filepath.Join(l.runDir, lockName))
	if err != nil {
		return err
	}
	l.lock = lock
	return nil
}

func (l *ledger) close() {
	if l.lock != nil {
		_ = l.lock.Close() // which unlocks it
	}
}

// left reads what the agent before this one left. Damaged notes are an error;
// frozen is then one without devices, and what can be read still counts.
func (l *ledger) left() (frozen *frozenNote, owed []owedStep, err error) {
	note := new(frozenNote)
	ferr := l.read(l.frozenFile(), note)
	switch {
	case errors.Is(ferr, fs.ErrNotExist):
		note, ferr = nil, nil
	case ferr != nil:
		note = &frozenNote{BootID: bootID()}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	oerr := l.read(l.owedFile(), &l.owed)
	if errors.Is(oerr, fs.ErrNotExist) {
		oerr = nil
	}
	if l.damaged = oerr != nil; l.damaged {
		l.owed = nil
	}
	return note, slices.Clone(l.owed), errors.Join(ferr, oerr)
}

// putAway takes damaged notes out of the way: once is enough to complain. Not
// before all is thawed, for they may lie on what stands.
func (l *ledger) putAway() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.damaged {
		return nil
	}
	l.damaged = false
	return os.Rename(l.owedFile(), l.owedFile()+".damaged")
}

func (l *ledger) read(name string, into any) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	// What it holds is run as root.
	if err := CheckTrusted(f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxLedger+1))
	if err != nil {
		return err
	}
	if len(b) > maxLedger {
		return fmt.Errorf("%s: more than %d bytes", name, maxLedger)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// noteFrozen notes what may be frozen from now on.
func (l *ledger) noteFrozen(n frozenNote) error { return replaceFile(l.frozenFile(), n) }

// noteThawed notes that nothing is.
func (l *ledger) noteThawed() error {
	err := os.Remove(l.frozenFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// owe notes steps on the disk; they are there when it returns without an error.
func (l *ledger) owe(steps []owedStep) error {
	if len(steps) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(l.owed), func(s owedStep) bool {
		return s.Phase == phaseStart && slices.ContainsFunc(steps, s.same) // once is enough
	})
	all = append(all, steps...)
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if len(b) > maxLedger {
		return fmt.Errorf("the steps that are owed take %d bytes, and the next start reads %d", len(b), maxLedger)
	}
	if err := replaceFile(l.owedFile(), all); err != nil {
		return err
	}
	l.owed = all
	return nil
}

// owing gives how many steps are owed.
func (l *ledger) owing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.owed)
}

// same says whether a step does the same for the same object.
func (s owedStep) same(other owedStep) bool {
	return s.Phase == other.Phase && s.Object == other.Object
}

// paid strikes out an object's steps of a phase, which were done or at least
// tried.
func (l *ledger) paid(phase, object string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(l.owed), func(s owedStep) bool { return s.same(owedStep{Phase: phase, Object: object}) })
	if len(left) == len(l.owed) {
		return nil
	}
	l.owed = left
	if len(left) > 0 {
		return replaceFile(l.owedFile(), left)
	}
	if err := os.Remove(l.owedFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(l.stateDir)
}

// replaceFile puts a new file in the place of an old one, durably: after a crash
// there is one of them.
func replaceFile(name string, value any) (err error) {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the next one may succeed
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // there is no such call
	}
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
