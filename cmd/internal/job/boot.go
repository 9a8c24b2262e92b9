package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/cmd/internal/job/image"
	"cairn/cmd/internal/job/machine"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// A VM that boots from a restore point lives in a folder:
//
//	boot.json     what it is and how it is started (BootState)
//	<disk>.qcow2  what it has written, over the point's disk in the mount
//	mnt           the mount, a process of its own
//	qemu.log      QEMU's last words
//	cairn-qmp.sock, cairn-control.sock
//	              monitors: for cairn backup and others, and for cairn boot alone
//
// QEMU and the mount are processes of their own sessions: that of cairn boot
// may die, and nothing happens to the VM. A later cairn boot takes it up again.
const (
	bootFile      = "boot.json"
	bootLock      = "boot.lock"
	bootMount     = "mnt"
	bootLog       = "qemu.log"
	controlSocket = "cairn-control.sock"
	userSocket    = "cairn-qmp.sock"
)

// Timeouts of a boot's waits.
const (
	bootTimeout   = 30 * time.Second // QEMU's monitor answers
	quitTimeout   = 30 * time.Second
	streamTimeout = 24 * time.Hour
	bootPoll      = 500 * time.Millisecond
)

// BootState is what a folder says about its VM. It is written anew as a whole.
type BootState struct {
	Version  int               `json:"version"`
	Point    string            `json:"point"`
	VM       string            `json:"vm"`
	Time     time.Time         `json:"time"` // of the point
	Name     string            `json:"name"` // of the booted VM
	Repo     string            `json:"repo"`
	Disks    map[string]string `json:"disks"`  // disk's name to its overlay
	Images   string            `json:"images"` // folder in the mount with the point's disks
	Finished bool              `json:"finished"`
	Machine  *machine.Result   `json:"machine"`
	PID      int               `json:"pid"`
	Started  uint64            `json:"started"` // QEMU's start time in the kernel's ticks, so that a PID is known again
}

// Boot is a VM in its folder. One process at a time has it.
type Boot struct {
	Dir   string
	State BootState
	Step  func(format string, args ...any)
	lock  *os.File
}

// ErrBootElsewhere: another cairn boot is at work in the folder.
var ErrBootElsewhere = errors.New("another cairn boot is at work there")

// OpenBoot takes a folder; fresh says that no VM is in it yet.
func OpenBoot(dir string, step func(string, ...any)) (b *Boot, fresh bool, err error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, false, err
	}
	// Sockets' names must fit into sockaddr_un.
	if len(abs)+len("/"+controlSocket) > 100 {
		return nil, false, fmt.Errorf("%s: the folder's name is too long for the sockets in it: use a shorter one", abs)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, false, err
	}
	b = &Boot{Dir: abs, Step: step}
	text, err := os.ReadFile(b.path(bootFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fresh = true
	case err != nil:
		return nil, false, err
	default:
		if err := json.Unmarshal(text, &b.State); err != nil || b.State.Version != 1 || b.State.Machine == nil {
			return nil, false, fmt.Errorf("%s cannot be read (%w): the VM's writes are the *.qcow2 beside it", b.path(bootFile), errors.Join(err, restorepoint.ErrCorrupt))
		}
	}
	return b, fresh, nil
}

func (b *Boot) path(name string) string { return filepath.Join(b.Dir, name) }

// MountDir is where the point's disks must be mounted for the VM to start.
func (b *Boot) MountDir() string { return b.path(bootMount) }

// Socket is the monitor for others.
func (b *Boot) Socket() string { return b.path(userSocket) }

// Lock keeps other calls out of the folder. Unlock ends it.
func (b *Boot) Lock() error {
	f, err := os.OpenFile(b.path(bootLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return fmt.Errorf("%s: %w", b.Dir, ErrBootElsewhere)
	}
	b.lock = f
	return nil
}

// Unlock lets others in.
func (b *Boot) Unlock() {
	if b.lock != nil {
		_ = b.lock.Close() // nothing was written
		b.lock = nil
	}
}

// save writes the state. A crash leaves the old one or the new one.
func (b *Boot) save() error {
	text, err := json.MarshalIndent(b.State, "", "  ")
	if err != nil {
		return err
	}
	tmp := b.path(bootFile + ".tmp")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, b.path(bootFile))
}

// Prepare plans the VM of a point whose disks are mounted at images (a folder
// with NAME.raw). The plan is kept before anything else is made.
func (b *Boot) Prepare(m *restorepoint.Manifest, repo, name, images string) error {
	o, err := machineOptions(m, b.Dir, name, func(disk string) (string, string) { return b.path(disk + ".qcow2"), image.FormatQCOW2 })
	if err != nil {
		return err
	}
	o.Sockets, o.StopOnError, o.Foreground = []string{controlSocket, userSocket}, true, true
	o.Taken = []string{bootFile, bootFile + ".tmp", bootLock, bootMount, bootLog}
	b.State = BootState{Version: 1, Point: m.ID, VM: m.VM.Name, Time: m.Time.UTC(), Name: name, Repo: repo, Images: images, Disks: map[string]string{}}
	if b.State.Machine, err = machine.Rewrite(m.Machine.CommandLine, o); err != nil {
		return fmt.Errorf("how the VM of point %s is started: %w", m.ID[:8], err)
	}
	missingFiles(b.State.Machine)
	for _, d := range o.Disks {
		if _, err := os.Lstat(d.Path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already, and may hold what a VM wrote: name another folder with --dir, or remove it", d.Path)
		}
		b.State.Disks[d.Name] = d.Path
	}
	if o.NVRAM != "" {
		if err := os.WriteFile(o.NVRAM, m.Machine.NVRAM, 0o600); err != nil {
			return err
		}
	}
	return b.save()
}

// overlays makes the images that are not there, over the point's. Once the VM
// was started none is made any more: an empty one would lose what it wrote.
func (b *Boot) overlays(ctx context.Context) error {
	for name, path := range b.State.Disks {
		base := filepath.Join(b.State.Images, name+".raw")
		if _, err := os.Stat(base); err != nil && !b.State.Finished {
			return fmt.Errorf("disk %s of the point is not in the mount (was the point forgotten?): %w", name, err)
		}
		_, err := os.Lstat(path)
		switch {
		case err == nil:
			continue
		case !errors.Is(err, fs.ErrNotExist) || b.State.PID != 0:
			return fmt.Errorf("what the VM wrote to disk %s is gone: %w", name, err)
		}
		// A name of its own first: qemu-img may be killed half way.
		tmp := path + ".new"
		if _, err := image.QEMUImg(ctx, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, "--", tmp); err != nil {
			return err
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	}
	return nil
}

// Running says whether the VM's QEMU lives.
func (b *Boot) Running() bool {
	started, ok := processStart(b.State.PID)
	return ok && started == b.State.Started
}

// processStart gives when a process was started, in ticks since the boot of
// the host; false if there is none.
func processStart(pid int) (uint64, bool) {
	if pid <= 0 {
		return 0, false
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false
	}
	// The name in parentheses may hold anything; field 22 is the start time.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return 0, false
	}
	n, err := strconv.ParseUint(fields[19], 10, 64)
	return n, err == nil
}

// Start starts QEMU and returns when its monitor answers.
func (b *Boot) Start(ctx context.Context) error {
	if err := b.overlays(ctx); err != nil {
		return err
	}
	r := b.State.Machine
	if r.CopyNVRAM != "" {
		if err := copyOnce(r.NVRAMCopy, r.CopyNVRAM); err != nil {
			return fmt.Errorf("the firmware's variables: %w", err)
		}
	}
	log, err := os.OpenFile(b.path(bootLog), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(r.Args[0], r.Args[1:]...) // outlives us, and so no context
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with QEMU, or this process
	b.State.PID = cmd.Process.Pid
	b.State.Started, _ = processStart(b.State.PID)
	if err := b.save(); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	for deadline := time.Now().Add(bootTimeout); ; time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-ended:
			return fmt.Errorf("QEMU ended at once (%v): %s", err, tailOf(log, before))
		default:
		}
		conn, err := b.monitor(ctx)
		if err == nil {
			return conn.Close()
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("QEMU does not answer on its monitor (its words are in %s): %w", log.Name(), err), cmd.Process.Kill())
		}
	}
}

// copyOnce copies a file that is not there yet.
func copyOnce(to, from string) error {
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	const most = 64 << 20 // firmware variables have 64 KiB to 4 MiB
	text, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}

// tailOf gives what QEMU said since before.
func tailOf(f *os.File, before int64) string {
	text, err := io.ReadAll(io.LimitReader(io.NewSectionReader(f, before, 1<<62), 4096))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(text), "?"))
}

func (b *Boot) monitor(ctx context.Context) (*qmp.Conn, error) {
	return qmp.Dial(ctx, b.path(controlSocket))
}

// Status is QEMU's word for what the VM does: "running", "io-error".
func (b *Boot) Status(ctx context.Context) (string, error) {
	conn, err := b.monitor(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	var is struct {
		Status string `json:"status"`
	}
	return is.Status, conn.Execute(ctx, "query-status", nil, &is)
}

// Wait returns when QEMU has ended, or ctx.
func (b *Boot) Wait(ctx context.Context) error {
	for b.Running() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(bootPoll):
		}
	}
	return nil
}

// Stop ends the VM: the guest is asked to shut down, and QEMU is ended cleanly
// when it does not within grace. What was written is in the overlays.
func (b *Boot) Stop(ctx context.Context, grace time.Duration) error {
	if !b.Running() {
		return nil
	}
	conn, err := b.monitor(ctx)
	if err != nil {
		return fmt.Errorf("%w: QEMU is process %d; kill it if it hangs, the guest's synced writes are in %s", err, b.State.PID, b.Dir)
	}
	defer conn.Close()
	if grace > 0 {
		b.Step("asking the guest to shut down, for up to %s", grace)
		if err := conn.Execute(ctx, "system_powerdown", nil, nil); err != nil {
			return err
		}
		gctx, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if b.Wait(gctx) == nil {
			return nil
		}
		b.Step("it did not: ending QEMU")
	}
	if err := conn.Execute(ctx, "quit", nil, nil); err != nil && conn.Dead() == nil {
		return err
	}
	qctx, cancel := context.WithTimeout(ctx, quitTimeout)
	defer cancel()
	if err := b.Wait(qctx); err != nil {
		return fmt.Errorf("QEMU (process %d) does not end: %w", b.State.PID, err)
	}
	return nil
}
