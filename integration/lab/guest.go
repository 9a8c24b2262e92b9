package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Options say how a guest is started. Dir is required.
type Options struct {
	Dir      string  // sockets and logs; made if missing, never removed
	Assets   *Assets // of Build; may be nil only for a Bare guest
	Disks    []Disk  // vda first: the guest's root is the partition labelled root on any of them
	Name     string  // QEMU's -name; "lab" if empty
	UUID     string  // QEMU's -uuid; none if empty
	MemoryMB int     // MiB; 256 if 0, 32 if Bare
	CPUs     int     // 1 if 0: more make an emulated guest slower
	Root     string  // root= of the kernel: "UUID=…", "LABEL=…" or a device; the lab's root UUID if empty
	Append   string  // more kernel arguments
	// Inject maps a name below /run/inject in the guest to a file of the host.
	Inject map[string]string
	// Bare starts QEMU stopped (-S), without a kernel: enough for tests of
	// monitors, bitmaps and exports, and there in a tenth of a second.
	Bare bool
	// Running lets a Bare guest run: its processor halts at the first
	// instruction, so it can be paused, writes nothing, and takes no time.
	Running   bool
	NoWait    bool     // return before the guest has booted; call WaitBooted
	ExtraArgs []string // for QEMU
	QEMU      string   // the program; qemu-system-x86_64 if empty
}

// Guest is a virtual machine of the lab. Its methods may be called from
// several goroutines; Shell and Command take turns.
type Guest struct {
	QMPSocket     string // monitor for the product
	ControlSocket string // monitor that Command uses
	QGASocket     string // port org.qemu.guest_agent.0
	AgentSocket   string // port org.cairn.agent.0
	ConsoleSocket string // serial console, one client at a time: Shell
	ConsoleLog    string // all that the guest wrote to the console

	opts    Options
	args    []string
	sockets string // directory of the sockets, if it is not Dir
	console turn
	control turn

	mu   sync.Mutex
	proc *process // nil before the first start

	// Of whoever holds control. Connected on demand, anew for every process.
	monitor   *monitor
	monitorOf *process
}

// Start starts a guest and waits until it has booted. It runs until one of
// Kill, Quit, Poweroff or Close, until ctx ends, or until this process does.
func Start(ctx context.Context, opts Options) (*Guest, error) {
	g, err := newGuest(opts)
	if err != nil {
		return nil, err
	}
	if err := g.launch(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func newGuest(opts Options) (*Guest, error) {
	if opts.Dir == "" || (opts.Assets == nil && !opts.Bare) {
		return nil, errors.New("lab: Options need Dir, and Assets unless Bare")
	}
	opts.Name = orDefault(opts.Name, "lab")
	opts.QEMU = orDefault(opts.QEMU, "qemu-system-x86_64")
	opts.Root = orDefault(opts.Root, "UUID="+RootUUID)
	if opts.MemoryMB == 0 && opts.Bare {
		opts.MemoryMB = 32
	}
	if opts.MemoryMB == 0 {
		opts.MemoryMB = 256
	}
	if opts.CPUs == 0 {
		opts.CPUs = 1
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}
	opts.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	g := &Guest{opts: opts, console: newTurn(), control: newTurn(), ConsoleLog: filepath.Join(dir, "console.log")}
	sockets := dir
	// A socket's path must fit into sockaddr_un, 108 bytes.
	if len(dir)+len("/console.sock") > 100 {
		if g.sockets, err = os.MkdirTemp("", "lab-"); err != nil {
			return nil, err
		}
		sockets = g.sockets
	}
	g.QMPSocket = filepath.Join(sockets, "qmp.sock")
	g.ControlSocket = filepath.Join(sockets, "control.sock")
	g.QGASocket = filepath.Join(sockets, "qga.sock")
	g.AgentSocket = filepath.Join(sockets, "agent.sock")
	g.ConsoleSocket = filepath.Join(sockets, "console.sock")
	if g.args, err = g.commandLine(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// commandLine is QEMU's, without the program's name.
func (g *Guest) commandLine() ([]string, error) {
	o := g.opts
	args := []string{"-name", o.Name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-m", strconv.Itoa(o.MemoryMB), "-smp", strconv.Itoa(o.CPUs)}
	if o.UUID != "" {
		args = append(args, "-uuid", o.UUID)
	}
	args = append(args, accelerator()...)
	args = append(args,
		"-qmp", "unix:"+g.QMPSocket+",server=on,wait=off",
		"-qmp", "unix:"+g.ControlSocket+",server=on,wait=off",
		"-chardev", "socket,id=console,path="+g.ConsoleSocket+",server=on,wait=off,logfile="+g.ConsoleLog+",logappend=off",
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci,id=serial0",
		"-chardev", "socket,id=qga,path="+g.QGASocket+",server=on,wait=off",
		"-device", "virtserialport,id=qga-port,chardev=qga,name=org.qemu.guest_agent.0",
		"-chardev", "socket,id=agent,path="+g.AgentSocket+",server=on,wait=off",
		"-device", "virtserialport,id=agent-port,chardev=agent,name=org.cairn.agent.0")
	switch {
	case o.Bare && o.Running:
		rom := filepath.Join(o.Dir, "halt.rom")
		if err := os.WriteFile(rom, haltROM(), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "-bios", rom)
	case o.Bare:
		args = append(args, "-S")
	default:
		bootrd, err := g.bootrd()
		if err != nil {
			return nil, err
		}
		args = append(args, "-kernel", o.Assets.Kernel, "-initrd", bootrd,
			// no_timer_check: on a busy host the emulated timer's interrupt
			// can come too late for the kernel's test of it ("MP-BIOS bug:
			// 8254 timer not connected to IO-APIC"), and the boot hangs.
			"-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check root="+o.Root+" "+o.Append)
	}
	for _, d := range o.Disks {
		args = append(args, d.args()...)
	}
	return append(args, o.ExtraArgs...), nil
}

// haltROM is a firmware of one instruction: x86 begins 16 bytes before the end
// of the ROM, with interrupts off.
func haltROM() []byte {
	rom := make([]byte, 64<<10)
	copy(rom[len(rom)-16:], []byte{0xf4, 0xeb, 0xfd}) // hlt; jmp to the hlt
	return rom
}

// accelerator is emulation unless CAIRN_LAB_ACCEL names another one: the tests
// shall do the same everywhere, and a /dev/kvm that is there need not work
// (nested in some cloud machines it hangs at the first instruction).
func accelerator() []string {
	return []string{"-cpu", "max", "-accel", orDefault(os.Getenv("CAIRN_LAB_ACCEL"), "tcg,thread=multi,tb-size=256")}
}

// bootrd returns the first root, with the injected files behind it.
func (g *Guest) bootrd() (string, error) {
	if len(g.opts.Inject) == 0 {
		return g.opts.Assets.Bootrd, nil
	}
	base, err := os.ReadFile(g.opts.Assets.Bootrd)
	if err != nil {
		return "", err
	}
	all := bytes.NewBuffer(base)
	if err := writeInject(all, g.opts.Inject); err != nil {
		return "", err
	}
	file := filepath.Join(g.opts.Dir, "bootrd.cpio")
	return file, os.WriteFile(file, all.Bytes(), 0o600)
}

func (g *Guest) launch(ctx context.Context) error {
	// Old sockets would let a client connect to nobody.
	for _, s := range []string{g.QMPSocket, g.ControlSocket, g.QGASocket, g.AgentSocket, g.ConsoleSocket, g.ConsoleLog} {
		if err := os.Remove(s); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	p, err := startProcess(ctx, g.opts.QEMU, g.args, filepath.Join(g.opts.Dir, "qemu.log"))
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.proc = p
	g.mu.Unlock()
	if g.opts.Bare {
		return g.Command(ctx, "query-status", nil, nil)
	}
	if g.opts.NoWait {
		return nil
	}
	return g.WaitBooted(ctx)
}

// bootTimeout is many times what a boot takes on a busy machine.
const bootTimeout = 3 * time.Minute

// WaitBooted waits until the guest's console said BOOTED.
func (g *Guest) WaitBooted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	p := g.process()
	for {
		out, err := os.ReadFile(g.ConsoleLog)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if bytes.Contains(out, []byte("BOOTED ")) {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("guest %s ended while booting: %w; console: %s", g.opts.Name, p.failure(), tail(out, 800))
		case <-ctx.Done():
			return fmt.Errorf("guest %s did not boot: %w; console: %s", g.opts.Name, ctx.Err(), tail(out, 800))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (g *Guest) process() *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.proc
}

// PID is QEMU's process number, 0 if it never ran.
func (g *Guest) PID() int {
	if p := g.process(); p != nil {
		return p.pid
	}
	return 0
}

// Running says whether the QEMU process lives.
func (g *Guest) Running() bool {
	p := g.process()
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends QEMU as a crash of the host would: SIGKILL. It waits for the end.
func (g *Guest) Kill() {
	if p := g.process(); p != nil {
		p.kill()
	}
}

// Quit ends QEMU cleanly by its monitor, so that it stores bitmaps; for the
// guest it is like pulling the plug.
func (g *Guest) Quit(ctx context.Context) error {
	err := g.Command(ctx, "quit", nil, nil)
	if err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	return g.Wait(ctx)
}

// Poweroff shuts the guest down from inside and waits until QEMU has ended.
func (g *Guest) Poweroff(ctx context.Context) error {
	if _, err := g.Shell(ctx, "(sleep 0.2; poweroff) >/dev/null 2>&1 &"); err != nil {
		return err
	}
	return g.Wait(ctx)
}

// Wait waits until QEMU has ended by itself; it fails if that was a crash.
func (g *Guest) Wait(ctx context.Context) error {
	p := g.process()
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return p.failure()
	case <-ctx.Done():
		return fmt.Errorf("guest %s still runs: %w", g.opts.Name, ctx.Err())
	}
}

// Restart starts a guest again that has ended, with the same disks and
// sockets, and waits until it has booted. It kills one that still runs.
func (g *Guest) Restart(ctx context.Context) error {
	g.Kill()
	return g.launch(ctx)
}

// Close kills the guest if it runs and removes what lies outside of its Dir.
func (g *Guest) Close() {
	g.Kill()
	if g.sockets != "" {
		os.RemoveAll(g.sockets)
	}
}
