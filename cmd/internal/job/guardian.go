package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"cairn/guest"
	"cairn/qmp"
)

// GuardianCommand is the hidden command by which cairn starts itself as a
// Guardian.
const GuardianCommand = "internal-guardian"

// guardianPatience bounds how long a Guardian tries after its run died: as
// long as a guest that hangs may be of use to anybody. The journal stays, and
// the next run tries again.
const guardianPatience = 24 * time.Hour

// What a run tells its Guardian, a byte each.
const (
	sayFreezing = 'F'
	sayThawed   = 'T'
	sayStopping = 'S'
	sayRunning  = 'R'
)

// guardian is a small process that outlives the run if the run is killed: it
// thaws the guest and lets the VM go on. Neither the stock agent nor QEMU has
// a time limit of its own, and a killed process cannot do it.
type guardian struct {
	cmd     *exec.Cmd
	to      io.WriteCloser
	frozen  bool // it was told so, and not yet of the thaw
	stopped bool // it was told so, and not yet that the VM goes on
}

// startGuardian starts one for the run's VM. Its last words
// go to a log in the state folder: the run's own stderr may be a pipe whose
// reader waits for its end.
func (b *Backup) startGuardian() (*guardian, error) {
	log, err := os.OpenFile(filepath.Join(b.State, "guardian.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the guardian process: %w", err)
	}
	defer log.Close()
	g := &guardian{cmd: exec.Command(b.Exe, GuardianCommand, b.VM.QMP, b.entry.Agent)}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C or a killed group is not for it
	g.cmd.Stderr = log
	if g.to, err = g.cmd.StdinPipe(); err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the guardian process: %w", err)
	}
	return g, nil
}

// say tells the guardian of a step, before or after it as the step needs.
func (g *guardian) say(b byte) error {
	if _, err := g.to.Write([]byte{b}); err != nil {
		return fmt.Errorf("the guardian process is gone: %w", err)
	}
	note(b, &g.frozen, &g.stopped)
	return nil
}

// note keeps what a byte of a run's says.
func note(b byte, frozen, stopped *bool) {
	switch b {
	case sayFreezing:
		*frozen = true
	case sayThawed:
		*frozen = false
	case sayStopping:
		*stopped = true
	case sayRunning:
		*stopped = false
	}
}

// stop ends the guardian. One that has something to undo is not waited for: it
// needs the monitor and the agent's socket, which are this run's until it
// ends, and it outlives the run.
func (g *guardian) stop() error {
	err := g.to.Close()
	if g.frozen || g.stopped {
		return err
	}
	return errors.Join(err, g.cmd.Wait())
}

// RunGuardian is the guardian's life: it reads what the run says until the
// run ends, then undoes what the run left.
func RunGuardian(ctx context.Context, from io.Reader, qmpSocket, agent string, log io.Writer) error {
	frozen, stopped := false, false
	for {
		var b [1]byte
		if _, err := from.Read(b[:]); err != nil {
			break // the run ended, one way or the other
		}
		note(b[0], &frozen, &stopped)
	}
	ctx, cancel := context.WithTimeout(ctx, guardianPatience)
	defer cancel()
	var errs []error
	if stopped {
		errs = append(errs, retry(ctx, func() error { return resume(ctx, qmpSocket) }))
	}
	if frozen {
		_, err := guest.Thaw(ctx, agent)
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if err != nil {
		fmt.Fprintf(log, "cairn: the backup died and the guest could not be released: %v\n", err)
	}
	return err
}

// resume lets a VM go on that the run had stopped.
func resume(ctx context.Context, socket string) error {
	conn, err := qmp.Dial(ctx, socket)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil // the VM has ended
		}
		return err
	}
	defer conn.Close()
	return goOn(ctx, conn)
}

// goOn lets a VM go on that a run had stopped, if it is still so.
func goOn(ctx context.Context, conn *qmp.Conn) error {
	var is struct {
		Status string `json:"status"`
	}
	if err := conn.Execute(ctx, "query-status", nil, &is); err != nil || is.Status != "paused" {
		return err
	}
	return conn.Execute(ctx, "cont", nil, nil)
}

const retryInterval = 500 * time.Millisecond

// retry calls f every half second until it succeeds or ctx ends.
func retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(retryInterval):
		}
	}
}
