package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is the daemon's name; Debian 12 has it in qemu-system-common, later
// ones in qemu-utils.
const Program = "qemu-storage-daemon"

// ErrNoDaemon: the daemon is not installed.
var ErrNoDaemon = errors.New(Program + " is not installed (Debian: apt install qemu-utils qemu-system-common): it reads the images of a VM that is off")

// Waits for the daemon's end: it needs milliseconds, and more where it has
// bitmaps to store on a slow disk.
const (
	termPatience = 10 * time.Second
	killPatience = 10 * time.Second
)

// Daemon is a running qemu-storage-daemon.
type Daemon struct {
	Monitor net.Conn // its QMP monitor, the caller's to close

	cmd    *exec.Cmd
	pid    string // its pid file
	said   tail
	exited chan struct{}
	err    error // of the wait, when exited is closed
}

// Start starts a daemon; dir is a folder for its pid file. Its monitor is a
// socket pair: there is no name by which others could reach it.
func Start(dir string) (*Daemon, error) {
	path, err := exec.LookPath(Program)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoDaemon, err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", Program, err)
	}
	defer theirs.Close()
	d := &Daemon{Monitor: ours, pid: pidFile(dir), exited: make(chan struct{})}
	d.cmd = exec.Command(path, "--chardev", "socket,id=qmp,fd=3", "--monitor", "chardev=qmp", "--pidfile", d.pid)
	d.cmd.ExtraFiles = []*os.File{theirs}
	d.cmd.Stderr = &d.said
	// A process group of its own: a Ctrl-C is for us, who end it in order.
	// Pdeathsig is sent at the end of the thread that started it; Go ends
	// threads only with the process, unless a goroutine locked one.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := d.cmd.Start(); err != nil {
		_ = ours.Close() // nobody has the other end
		return nil, fmt.Errorf("start %s: %w", Program, err)
	}
	go func() { // ends with the process; Wait and Kill wait for it
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	return d, nil
}

func pidFile(dir string) string { return filepath.Join(dir, Program+".pid") }

func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(fds[1]), "monitor")
	f := os.NewFile(uintptr(fds[0]), "monitor")
	ours, err = net.FileConn(f)
	err = errors.Join(err, f.Close()) // FileConn has its own
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// Exited is closed when the daemon has ended.
func (d *Daemon) Exited() <-chan struct{} { return d.exited }

// Said gives the end of what the daemon wrote to stderr, in one line.
func (d *Daemon) Said() string { return d.said.line() }

// Wait waits for the end of a daemon that was told to quit. One that does not
// end in time is ended. The images are closed when it returns.
func (d *Daemon) Wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, termPatience)
	defer cancel()
	select {
	case <-d.exited:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s did not end when told to", Program), d.Terminate())
	}
	if d.err != nil {
		return fmt.Errorf("%s: %w: %s", Program, d.err, d.Said())
	}
	return nil
}

// Terminate ends the daemon as its parent's death does, and by force when it
// does not go.
func (d *Daemon) Terminate() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended
	select {
	case <-d.exited:
		return nil
	case <-time.After(termPatience):
		return d.Kill()
	}
}

// Kill ends the daemon at once. It is for one that has its images open for
// reading only: others lose their bitmaps.
func (d *Daemon) Kill() error {
	_ = d.cmd.Process.Kill() // fails when it has ended
	select {
	case <-d.exited:
		_ = os.Remove(d.pid) // a stale one does no harm
		return nil
	case <-time.After(killPatience):
		return fmt.Errorf("%s (process %d) does not end when killed: its disk hangs", Program, d.cmd.Process.Pid)
	}
}

// EndLeft ends daemons that were started with dir by a run that is dead, and
// says which. Call it only while no other run may use dir.
func EndLeft(ctx context.Context, dir string) (ended []string, err error) {
	for _, sig := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGKILL} {
		left, err := daemonsOf(dir)
		if err != nil || len(left) == 0 {
			return ended, err
		}
		for _, pid := range left {
			if sig == 0 {
				ended = append(ended, fmt.Sprintf("%s (process %d)", Program, pid))
			} else if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return ended, fmt.Errorf("end %s of a dead run: %w", Program, err)
			}
		}
		if err := awaitNone(ctx, dir, sig); err != nil {
			return ended, err
		}
	}
	left, err := daemonsOf(dir)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%s of a dead run does not end when killed (processes %v): its disk hangs", Program, left)
	}
	return ended, err
}

// awaitNone waits a while after a signal until no daemon of dir is left. After
// none it waits for one that the kernel told of its parent's death.
func awaitNone(ctx context.Context, dir string, sig syscall.Signal) error {
	patience := termPatience
	if sig == 0 {
		patience = time.Second
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		left, err := daemonsOf(dir)
		if err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// daemonsOf lists the processes that were started with dir: their command
// lines name its pid file. The file itself is no proof: it may be stale.
func daemonsOf(dir string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(b), "\x00")
		if filepath.Base(args[0]) != Program || !slices.Contains(args, pidFile(dir)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// maxSaid bounds what is kept of a daemon's stderr, bytes.
const maxSaid = 4 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - maxSaid; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) line() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ReplaceAll(bytes.TrimSpace(t.buf), []byte("\n"), []byte("; ")))
}
