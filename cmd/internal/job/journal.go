package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy: another run of the same VM is at work.
var ErrBusy = errors.New("another backup of this VM is running")

// journal is what a run leaves on this host's disk at each step, so that the
// next start can clean up after a dead one. It also is the lock that keeps
// runs of one VM apart, across processes.
type journal struct {
	path string
	lock *os.File
	// Dead is the entry of a run that ended without saying so; nil for none.
	Dead *entry
}

// entry is the journal's content.
type entry struct {
	VM      string    `json:"vm"`
	QMP     string    `json:"qmp"`
	Libvirt string    `json:"libvirt,omitempty"`
	Domain  string    `json:"domain,omitempty"`
	Agent   string    `json:"agent,omitempty"`
	Inside  string    `json:"inside,omitempty"` // the inside agent's socket
	Session string    `json:"session,omitempty"`
	Scratch string    `json:"scratch,omitempty"` // folder of this VM's scratch files
	Frozen  bool      `json:"frozen,omitempty"`  // a freeze may have been sent, and no thaw was answered since
	By      string    `json:"by,omitempty"`      // who froze: byStock, byInside; "" is byStock
	Stopped bool      `json:"stopped,omitempty"` // the VM ran, and the run may have stopped it
	Step    string    `json:"step"`
	PID     int       `json:"pid"`
	Time    time.Time `json:"time"`
}

// guardianWait is how long a run waits for a guardian that cleans up after the
// last one: it takes a tenth of a second if QEMU is well.
const guardianWait = 10 * time.Second

// briefWait is for a doctor that looks at the journal, and for a guardian that
// has not marked the lock yet.
const briefWait = 300 * time.Millisecond

// guardianMark in a lock file says that a guardian holds the lock.
const guardianMark = "guardian"

// guard marks the lock as a guardian's, until it is taken the next time.
func (j *journal) guard() error {
	if _, err := j.lock.WriteAt([]byte(guardianMark), 0); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// takeLock locks a journal's lock file. A guardian is waited for, a run not.
func takeLock(lock *os.File) error {
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return lock.Truncate(0)
		}
		var mark [len(guardianMark)]byte
		n, _ := lock.ReadAt(mark[:], 0) // a mark that cannot be read is none
		patience := briefWait
		if string(mark[:n]) == guardianMark {
			patience = guardianWait
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(begin) > patience {
			return err
		}
	}
}

// openJournal takes the VM's lock, or gives ErrBusy.
func openJournal(stateDir, vm string) (*journal, error) {
	dir := filepath.Join(stateDir, "journal")
	err := os.MkdirAll(stateDir, passable)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, vm+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := takeLock(lock); err != nil {
		_ = lock.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w: wait for it, or stop it (its lock is %s)", vm, ErrBusy, lock.Name())
		}
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journal{path: filepath.Join(dir, vm+".json"), lock: lock}
	b, err := os.ReadFile(j.path)
	if err == nil {
		j.Dead = new(entry)
		if json.Unmarshal(b, j.Dead) != nil { // torn by a crash: something was under way
			j.Dead = &entry{VM: vm, Step: "unknown", Frozen: true}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		_ = lock.Close() // nothing was written
		return nil, fmt.Errorf("journal: %w", err)
	}
	return j, nil
}

// write makes e durable before the step that it names is taken.
func (j *journal) write(e entry) error {
	e.PID, e.Time = os.Getpid(), time.Now().UTC()
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(j.path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if c := f.Close(); err == nil {
		err = c
	}
	if err == nil {
		err = os.Rename(j.path+".tmp", j.path)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// clear says that nothing is left to clean up.
func (j *journal) clear() error {
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// passable is the mode of the folders above those that QEMU, under whatever
// user it runs, must reach. Others can pass but not list them.
const passable = 0o711

// makePassable makes a folder, and lets QEMU's user pass it and those between
// it and the state folder, also if they were made by a cairn that did not.
func makePassable(state, dir string) error {
	state, err := filepath.Abs(state)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, passable); err != nil {
		return err
	}
	for at := dir; ; at = filepath.Dir(at) {
		st, err := os.Stat(at)
		if err != nil {
			return err
		}
		if mode := st.Mode().Perm(); mode|passable != mode {
			if err := os.Chmod(at, mode|passable); err != nil {
				return err
			}
		}
		if rel, err := filepath.Rel(state, at); err != nil || rel == "." || strings.HasPrefix(rel, "..") {
			return nil
		}
	}
}

// close gives the lock back.
func (j *journal) close() { _ = j.lock.Close() }
