package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"cairn/qmp"
)

// GuardianCommand is the hidden command by which cairn starts itself as a
// Guardian.
const GuardianCommand = "internal-guardian"

// guardianPatience bounds how long a Guardian tries after its run died.
const guardianPatience = 15 * time.Minute

// What a run tells its Guardian, a byte each.
const (
	sayFreezing = 'F'
	sayThawed   = 'T'
	sayStopping = 'S'
	sayRunning  = 'R'
	// libvirt's backup: asked for, and ended.
	sayBeginning = 'B'
	sayReleased  = 'E'
)

// guardian is a small process that outlives the run if the run is killed: it
// thaws the guest and lets the VM go on. Neither the stock agent nor QEMU has
// a time limit of its own, and a killed process cannot do it.
type guardian struct {
	cmd *exec.Cmd
	to  io.WriteCloser
	owed
}

// owed is what a guardian was told to undo, and not yet that it is undone.
type owed struct {
	frozen  bool // the guest
	stopped bool // the VM
	backup  bool // a fleece that may be in the data path
}

// startGuardian starts one for a VM's sockets; agent may be "", and so is ward
// for a VM without libvirt. Its last words
// go to a log in the state folder: the run's own stderr may be a pipe whose
// reader waits for its end.
func startGuardian(exe, state, qmpSocket, agent, ward string) (*guardian, error) {
	log, err := os.OpenFile(filepath.Join(state, "guardian.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the guardian process: %w", err)
	}
	defer log.Close()
	g := &guardian{cmd: exec.Command(exe, GuardianCommand, qmpSocket, agent, ward)}
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
	g.note(b)
	return nil
}

// note keeps what a byte of a run's says.
func (o *owed) note(b byte) {
	switch b {
	case sayFreezing:
		o.frozen = true
	case sayThawed:
		o.frozen = false
	case sayStopping:
		o.stopped = true
	case sayRunning:
		o.stopped = false
	case sayBeginning:
		o.backup = true
	case sayReleased:
		o.backup = false
	}
}

// stop ends the guardian. One that has something to undo is not waited for: it
// needs the monitor and the agent's socket, which are this run's until it
// ends, and it outlives the run.
func (g *guardian) stop() error {
	err := g.to.Close()
	if g.frozen || g.stopped || g.backup {
		return err
	}
	return errors.Join(err, g.cmd.Wait())
}

// RunGuardian is the guardian's life: it reads what the run says until the
// run ends, then undoes what the run left.
//
// wardText, JSON, names the libvirt domain instead of qmpSocket. The backup there is
// ended first: a guest that its full scratch space holds up cannot be thawed.
func RunGuardian(ctx context.Context, from io.Reader, qmpSocket, agent, wardText string, log io.Writer) error {
	var w ward
	if wardText != "" {
		if err := json.Unmarshal([]byte(wardText), &w); err != nil {
			return fmt.Errorf("the guardian's arguments: %w", err)
		}
	}
	var o owed
	for {
		var b [1]byte
		if _, err := from.Read(b[:]); err != nil {
			break // the run ended, one way or the other
		}
		o.note(b[0])
	}
	ctx, cancel := context.WithTimeout(ctx, guardianPatience)
	defer cancel()
	var errs []error
	if o.backup && w.URI != "" {
		errs = append(errs, retry(ctx, func() error { return w.endBackup(ctx) }))
	}
	if o.stopped && w.URI == "" {
		errs = append(errs, retry(ctx, func() error { return resume(ctx, qmpSocket) }))
	}
	if o.frozen {
		errs = append(errs, thawAgent(ctx, agent, w.URI, w.Domain))
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
		case <-time.After(500 * time.Millisecond):
		}
	}
}
