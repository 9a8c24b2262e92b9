package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"cairn/guest/object"
)

// Inspection is what can be seen of an agent from outside of it.
type Inspection struct {
	PID    int      `json:"pid,omitempty"` // 0: none is running
	Point  string   `json:"point,omitempty"`
	Frozen []string `json:"frozen,omitempty"` // devices of filesystems that may be frozen, as mountinfo has them
	Owed   []Owed   `json:"owed,omitempty"`
}

// Owed is a step that is still to be done.
type Owed struct {
	Phase   string `json:"phase"` // "post", or "start" of a service that was stopped for a restore
	Object  string `json:"object"`
	Point   string `json:"point,omitempty"`
	Command string `json:"command"`
}

// Inspect looks at the notes that the agent with these folders keeps.
func Inspect(runDir, stateDir string) (Inspection, error) {
	l := &ledger{runDir: runDir, stateDir: stateDir}
	var i Inspection
	note := new(frozenNote)
	err := ifThere(l.read(l.frozenFile(), note))
	i.Point, i.Frozen = note.Point, note.Devices
	var owed []owedStep
	err = errors.Join(err, ifThere(l.read(l.owedFile(), &owed)))
	for _, s := range owed {
		i.Owed = append(i.Owed, Owed{Phase: cmp.Or(s.Phase, phasePost), Object: s.Object, Point: s.Point, Command: s.Command.String()})
	}
	b, lerr := os.ReadFile(filepath.Join(runDir, lockName))
	if err = errors.Join(err, ifThere(lerr)); err != nil {
		return i, err
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && sameProgram(pid) {
		i.PID = pid
	}
	return i, nil
}

func ifThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sameProgram says whether a process runs, and has this one's name: a number is
// used again.
func sameProgram(pid int) bool {
	ours, oerr := os.ReadFile("/proc/self/comm")
	theirs, terr := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return oerr == nil && terr == nil && string(ours) == string(theirs)
}

// Look tells what a freeze would freeze, now: the mounts, and Frozen or Reason
// of each.
func (a *Agent) Look(ctx context.Context) ([]object.Mount, error) {
	z, err := a.filesystems.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer z.close()
	var all []object.Mount
	for _, s := range z.all {
		for _, m := range s.mounts {
			d := m.describe()
			d.Frozen, d.Reason = s.reason == "", object.Text(s.reason)
			all = append(all, d)
		}
	}
	return all, nil
}
