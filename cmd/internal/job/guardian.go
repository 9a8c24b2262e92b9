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
	"sync"
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
	sayFreezing       = 'F'
	sayFreezingInside = 'I'
	sayThawed         = 'T'
	sayStopping       = 'S'
	sayRunning        = 'R'
	sayFleece         = 'P' // nodes of the fleece are about to be made
	sayReleased       = 'L'
)

// owed is what must be undone if the run dies now.
type owed struct {
	Frozen  bool // the guest may be frozen
	Inside  bool // … by the inside agent
	Stopped bool // the VM may be stopped
	Fleece  bool // something of the fleece may be in QEMU, and its scratch files grow
}

func (o *owed) note(b byte) {
	switch b {
	case sayFreezing:
		o.Frozen = true
	case sayFreezingInside:
		o.Inside = true
	case sayThawed:
		o.Frozen, o.Inside = false, false
	case sayStopping:
		o.Stopped = true
	case sayRunning:
		o.Stopped = false
	case sayFleece:
		o.Fleece = true
	case sayReleased:
		o.Fleece = false
	}
}

// Charge is what a Guardian must know, its argument in JSON.
type Charge struct {
	VM      VM
	Agent   string // the stock agent's socket; "": none
	Inside  string // the inside agent's socket; "": none
	State   string // the state folder
	Scratch string // folder of the VM's scratch files
}

// guardian is a small process that outlives the run if the run is killed: it
// thaws the guest, lets the VM go on, and takes the fleece down. Neither the
// stock agent nor QEMU has a time limit of its own, and a killed process cannot
// do it.
type guardian struct {
	cmd  *exec.Cmd
	to   io.WriteCloser
	owed owed // as it was told
}

// startGuardian starts one for the run's VM. Its last words
// go to a log in the state folder: the run's own stderr may be a pipe whose
// reader waits for its end.
func (b *Backup) startGuardian() (*guardian, error) {
	charge, err := json.Marshal(Charge{VM: b.VM, Agent: b.entry.Agent, Inside: b.entry.Inside, State: b.State, Scratch: b.entry.Scratch})
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(b.State, "guardian.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the guardian process: %w", err)
	}
	defer log.Close()
	g := &guardian{cmd: exec.Command(b.Exe, GuardianCommand, string(charge))}
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
	g.owed.note(b)
	return nil
}

// stop ends the guardian. One that has something to undo is not waited for: it
// needs the monitor and the agent's socket, which are this run's until it
// ends, and it outlives the run.
func (g *guardian) stop() error {
	err := g.to.Close()
	if g.owed != (owed{}) {
		return err
	}
	return errors.Join(err, g.cmd.Wait())
}

// stopGuardian stops the run's guardian, if there is one.
func (b *Backup) stopGuardian() {
	if b.guardian == nil {
		return
	}
	if err := b.guardian.stop(); err != nil {
		b.Step("the guardian process: %v", err)
	}
}

// RunGuardian is the guardian's life: it reads what the run says until the
// run ends, then undoes what the run left: first what hurts the guest.
func RunGuardian(ctx context.Context, from io.Reader, c Charge, log io.Writer) error {
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
	var mu sync.Mutex // of log and errs
	var errs []error
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(log, "%s cairn: %s: the backup died; %s\n", time.Now().UTC().Format(time.RFC3339), c.VM.Name, fmt.Sprintf(format, args...))
	}
	again := func(what string) func(error) { return func(err error) { say("%s, trying again: %v", what, err) } }
	// All at once: one that has to be tried for hours must not keep the others
	// waiting. A thaw is tried until the guest can answer, so it may begin
	// before the VM goes on, or before libvirt has let go of it.
	var all sync.WaitGroup
	do := func(owed bool, f func() error) {
		if owed {
			all.Go(func() {
				err := f()
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
	}
	do(o.Stopped && c.VM.Libvirt == "", func() error {
		return retry(ctx, again("the VM does not go on"), func() error { return resume(ctx, c.VM.QMP) })
	})
	way := thawWay{By: byStock, Agent: c.Agent, Inside: c.Inside, Libvirt: c.VM.Libvirt, Domain: c.VM.Domain}
	do(o.Frozen, func() error { return way.thaw(ctx) })
	do(o.Inside, func() error {
		inside := way
		inside.By = byInside
		return retry(ctx, again("the guest is not thawed"), func() error {
			err := inside.thaw(ctx)
			if errors.Is(err, guest.ErrVMGone) {
				return nil
			}
			return err
		})
	})
	do(o.Fleece, func() error { return c.clean(ctx, again("the fleece could not be taken down")) })
	all.Wait()
	err := errors.Join(errs...)
	if err != nil {
		say("the guest could not be released: %v", err)
	}
	return err
}

// dyingTime is how long a killed run may hold its lock.
const dyingTime = 3 * time.Second

// clean takes down the fleece of a run that died, unless another run has begun,
// which does that itself. The journal stays: it is for that run to read.
func (c Charge) clean(ctx context.Context, failed func(error)) error {
	var j *journal
	var err error
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		// A process that is being killed may lose its pipe before its lock.
		if j, err = openJournal(c.State, c.VM.Name); !errors.Is(err, ErrBusy) {
			break
		}
		if time.Since(begin) > dyingTime {
			return nil
		}
	}
	if err != nil {
		return err
	}
	defer j.close()
	if err := j.guard(); err != nil {
		return err
	}
	if c.VM.Libvirt != "" {
		return retry(ctx, failed, func() error { return c.endBackup(ctx) })
	}
	return retry(ctx, failed, func() error {
		conn, err := qmp.Dial(ctx, c.VM.QMP)
		if err == nil {
			_, err = qmp.Clean(ctx, conn)
			_ = conn.Close() // nothing more is wanted of it
		}
		if err != nil && !IsOff(c.VM.QMP, err) { // with QEMU all that was in it is gone
			return err
		}
		return removeScratch(c.Scratch)
	})
}

// resume lets a VM go on that the run had stopped.
func resume(ctx context.Context, socket string) error {
	conn, err := qmp.Dial(ctx, socket)
	if err != nil {
		if IsOff(socket, err) {
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

// retry calls f every half second until it succeeds or ctx ends, and failed
// with its first error.
func retry(ctx context.Context, failed func(error), f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		if failed != nil {
			failed(err)
			failed = nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(retryInterval):
		}
	}
}
