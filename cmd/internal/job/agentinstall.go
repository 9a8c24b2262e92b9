package job

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cairn/guest"
	"cairn/qmp"
)

// AgentInstall puts cairn-agent into a running Linux guest through the stock
// qemu-guest-agent, where that may run programs.
type AgentInstall struct {
	VM       VM
	Binary   string // cairn-agent on this host
	Version  string // of cairn
	Step     func(format string, args ...any)
	Progress Progress
}

// Installed says what came of it.
type Installed struct {
	Agent    string // version that answered from the guest
	Hostname string
	// Channel is what has to be added to the VM's own configuration, because the
	// port was only plugged into the running VM; "": nothing.
	Channel string
}

// ErrNoInstall says what else can be done.
var ErrNoInstall = errors.New("cairn-agent cannot be installed from here: install its .deb in the guest, or copy the binary and run: cairn-agent unit")

const (
	installTimeout = 5 * time.Minute
	agentPath      = "/usr/sbin/cairn-agent"
	unitPath       = "/etc/systemd/system/cairn-agent.service"
	maxAgentBinary = 64 << 20
)

// Run installs the agent, or replaces the one that is there, starts it, and
// waits for its answer.
func (i *AgentInstall) Run(ctx context.Context) (*Installed, error) {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	binary, err := readBinary(i.Binary)
	if err != nil {
		return nil, err
	}
	b := Backup{VM: i.VM, State: os.TempDir(), Step: i.Step, pace: newPace(time.Now), Now: time.Now}
	if b.host, err = b.reach(ctx); err != nil {
		return nil, err
	}
	defer b.host.Close()
	if b.machine, err = b.host.Inspect(ctx); err != nil {
		return nil, err
	}
	if !b.machine.Running {
		return nil, fmt.Errorf("the VM does not run (%s)", b.machine.Status)
	}
	b.entry.Agent = b.agentSocket()
	if b.entry.Agent == "" {
		return nil, fmt.Errorf("%w: the VM has no channel to qemu-guest-agent", ErrNoInstall)
	}
	stock, err := b.dialAgent(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoInstall, err)
	}
	defer stock.Close()
	in := &inGuest{Agent: stock}
	if err := in.suits(ctx, binary); err != nil {
		return nil, err
	}
	done := new(Installed)
	if err := i.channel(ctx, &b, done); err != nil {
		return nil, err
	}
	i.Step("copying %s (%d KiB) into the guest through qemu-guest-agent", filepath.Base(i.Binary), len(binary)>>10)
	if err := in.put(ctx, binary, i.Progress); err != nil {
		return nil, err
	}
	i.Step("starting it as a service of the guest's systemd")
	if err := in.start(ctx); err != nil {
		return nil, err
	}
	return done, i.await(ctx, b.host, done)
}

func readBinary(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("cairn-agent for the guest: %w; name it with --binary", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAgentBinary+1))
	if err == nil && len(b) > maxAgentBinary {
		err = fmt.Errorf("%s has more than %d bytes", name, maxAgentBinary)
	}
	return b, err
}

// channel sees to it that the VM has a port for the agent.
func (i *AgentInstall) channel(ctx context.Context, b *Backup, done *Installed) error {
	if i.VM.Inside != "" {
		return nil
	}
	if _, ok := b.machine.Channel(qmp.PortCairnAgent); ok {
		return nil
	}
	m, ok := b.host.(monitor)
	if !ok {
		return fmt.Errorf("the domain has no channel for cairn-agent: virsh edit %s, add <channel type='unix'><target type='virtio' name='%s'/></channel>, or virsh attach-device --live --config with it, and run this again", b.VM.Domain, qmp.PortCairnAgent)
	}
	socket := filepath.Join(filepath.Dir(b.entry.Agent), b.VM.Name+".cairn-agent.sock")
	if !filepath.IsAbs(socket) {
		return fmt.Errorf("QEMU's sockets have relative names (%s): add a virtio-serial port named %s to the VM's configuration", b.entry.Agent, qmp.PortCairnAgent)
	}
	if err := qmp.AddChannel(ctx, m.conn, qmp.PortCairnAgent, socket); err != nil {
		return err
	}
	i.Step("plugged a virtio-serial port %s into the running VM", qmp.PortCairnAgent)
	done.Channel = fmt.Sprintf("-chardev socket,id=cairn-agent,path=%s,server=on,wait=off -device virtserialport,chardev=cairn-agent,name=%s", socket, qmp.PortCairnAgent)
	return nil
}

// await waits for the agent's answer.
func (i *AgentInstall) await(ctx context.Context, host hypervisor, done *Installed) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return retry(ctx, nil, func() error {
		s, err := dialInside(ctx, host, i.VM, i.Version)
		if err != nil {
			return fmt.Errorf("cairn-agent is installed and does not answer yet; in the guest: journalctl -u cairn-agent: %w", err)
		}
		defer s.Close()
		done.Agent, done.Hostname = s.Welcome().Agent, s.Welcome().Hostname
		return nil
	})
}

// inGuest does things in a guest through its stock agent.
type inGuest struct{ *guest.Agent }

// suits says why this agent cannot be installed in this guest, if so.
func (g *inGuest) suits(ctx context.Context, binary []byte) error {
	info, err := g.Info(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoInstall, err)
	}
	for _, command := range []string{"guest-exec", "guest-exec-status", "guest-file-open", "guest-file-write", "guest-file-close"} {
		if !info.Enabled(command) {
			return fmt.Errorf("%w: the guest's qemu-guest-agent does not allow %s (RHEL forbids it in /etc/sysconfig/qemu-ga)", ErrNoInstall, command)
		}
	}
	is, err := g.OS(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoInstall, err)
	}
	if is.ID == "mswindows" {
		return fmt.Errorf("%w: the guest runs Windows", ErrNoInstall)
	}
	f, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return fmt.Errorf("the binary is no Linux program: %w", err)
	}
	machines := map[string]elf.Machine{"x86_64": elf.EM_X86_64, "amd64": elf.EM_X86_64, "aarch64": elf.EM_AARCH64, "riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390}
	if want, ok := machines[is.Machine]; ok && want != f.Machine {
		return fmt.Errorf("the guest is %s and the binary is for %s: build one with GOARCH, and name it with --binary", is.Machine, f.Machine)
	}
	got, err := g.shell(ctx, "test -d /run/systemd/system && echo systemd")
	if err != nil {
		return err
	}
	if got != "systemd" {
		return fmt.Errorf("%w: the guest's init is not systemd", ErrNoInstall)
	}
	return nil
}

// shell runs a command in the guest and gives what it said; one that fails is
// an error.
func (g *inGuest) shell(ctx context.Context, command string) (string, error) {
	got, err := g.Exec(ctx, "/bin/sh", "-c", command)
	if err != nil {
		return "", err
	}
	said := strings.TrimSpace(got.Stdout)
	if got.Code != 0 && got.Stderr != "" {
		return said, fmt.Errorf("in the guest: %s: exit code %d: %.400q", command, got.Code, got.Stderr)
	}
	return said, nil
}

// put writes the binary beside its place, checks it there, and renames it.
func (g *inGuest) put(ctx context.Context, binary []byte, progress Progress) error {
	add, end := progress("cairn-agent", int64(len(binary)))
	defer end()
	temporary := agentPath + ".new"
	if err := g.WriteFile(ctx, temporary, bytes.NewReader(binary), add); err != nil {
		return fmt.Errorf("write %s in the guest: %w", temporary, err)
	}
	sum := sha256.Sum256(binary)
	got, err := g.shell(ctx, "sha256sum <"+temporary)
	if err == nil && !strings.HasPrefix(got, hex.EncodeToString(sum[:])) {
		err = fmt.Errorf("%s in the guest is not what was written (%.100q)", temporary, got)
	}
	if err == nil {
		_, err = g.shell(ctx, "chown 0:0 "+temporary+" && chmod 755 "+temporary+" && mv -f "+temporary+" "+agentPath)
	}
	return err
}

// start makes the service and starts it anew.
func (g *inGuest) start(ctx context.Context) error {
	for _, command := range []string{
		// A unit that a package brought is better than ours.
		"test -e /lib/systemd/system/cairn-agent.service || { " + agentPath + " unit >" + unitPath + ".new && mv -f " + unitPath + ".new " + unitPath + "; }",
		"systemctl daemon-reload",
		"systemctl enable cairn-agent.service 2>&1 && systemctl restart cairn-agent.service",
	} {
		if _, err := g.shell(ctx, command); err != nil {
			return err
		}
	}
	return nil
}
