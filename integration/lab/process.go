package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is one run of QEMU.
type process struct {
	pid  int
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended and err is set
	err  error
	stop func() bool // detaches it from the context
}

// startProcess starts a program that dies with ctx and with this process.
//
// The kernel sends the parent-death signal when the *thread* that started the
// child ends, so that thread must live as long as the child: one goroutine
// keeps it for starting and for waiting.
func startProcess(ctx context.Context, program string, args []string, log string) (*process, error) {
	path, err := lookTool(program)
	if err != nil {
		return nil, err
	}
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(path, args...) //nolint:noctx // it dies with ctx too, by the AfterFunc below, which kill can detach
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own: Ctrl-C at the terminal is for us to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	p.pid = cmd.Process.Pid
	p.stop = context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	return p, nil
}

// kill ends the process and waits for its end.
func (p *process) kill() {
	p.stop()
	// An error means that it has ended already.
	_ = p.cmd.Process.Kill()
	<-p.done
}

// failure describes how the process ended: nil for exit code 0. It may be
// called only after done is closed.
func (p *process) failure() error {
	if p.err == nil {
		return nil
	}
	out, err := os.ReadFile(p.log)
	if err != nil {
		out = []byte(err.Error())
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		return fmt.Errorf("QEMU ended: %w: %s", p.err, tail(bytes.ToValidUTF8(out, nil), 600))
	}
	return p.err
}
