package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/cmd/internal/config"
	"cairn/guest"
	"cairn/qmp"
)

// States of what doctor examined.
const (
	stateGood = "ok"
	stateNote = "note"
	stateBad  = "BAD"
)

// examined is one line of doctor.
type examined struct {
	What   string `json:"what"`
	State  string `json:"state"`
	Text   string `json:"text"`
	Advice string `json:"advice,omitempty"`
}

// doctor collects what was examined.
type doctor struct{ lines []examined }

func (d *doctor) add(state, what, advice, format string, args ...any) {
	d.lines = append(d.lines, examined{what, state, fmt.Sprintf(format, args...), advice})
}

func (a *app) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "doctor [VM]",
		Short:             "Say what works here, what does not, why, and what to do",
		Args:              args(0, 1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, argv []string) error {
			vms, err := a.dirs().VMs()
			if len(argv) == 1 {
				var v config.VM
				v, err = a.dirs().VM(argv[0])
				vms = []config.VM{v}
			}
			if err != nil {
				return err
			}
			var d doctor
			a.examineHost(c.Context(), &d)
			if len(vms) == 0 {
				d.add(stateNote, "VMs", "cairn vm add NAME --qmp SOCKET", "none is registered on this host")
			}
			for _, v := range vms {
				examineVM(c.Context(), &d, v)
			}
			return a.printDoctor(&d)
		},
	}
}

func (a *app) printDoctor(d *doctor) error {
	failed := false
	for _, l := range d.lines {
		failed = failed || l.State == stateBad
	}
	if a.json {
		if err := a.printJSON(map[string]any{"examined": d.lines, "ok": !failed}); err != nil {
			return err
		}
	} else {
		for _, l := range d.lines {
			fmt.Fprintf(a.stdout, "%-5s %s: %s\n", l.State, l.What, l.Text)
			if l.Advice != "" {
				fmt.Fprintf(a.stdout, "      → %s\n", l.Advice)
			}
		}
	}
	if failed {
		return errWarnings
	}
	return nil
}

func (a *app) examineHost(ctx context.Context, d *doctor) {
	if a.repo == "" {
		d.add(stateNote, "repository", "use -r FOLDER or CAIRN_REPOSITORY", "none named")
	} else if repo, err := a.open(ctx); err != nil {
		d.add(stateBad, "repository", "", "%v", err)
	} else {
		d.add(stateGood, "repository", "", "%s opens (%s)", a.repo, repo.Store.Config.ID[:8])
		examineSpace(d, "repository's space", a.repo)
		_ = repo.Close() // only looked at
	}
	examineSpace(d, "scratch space", a.dirs().State)
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		d.add(stateBad, "FUSE", "modprobe fuse, and run as root", "/dev/fuse: %v: cairn mount will not work", err)
	} else {
		d.add(stateGood, "FUSE", "", "/dev/fuse can be used")
	}
}

// lowSpace is when doctor warns, in bytes.
const lowSpace = 5 << 30

func examineSpace(d *doctor, what, dir string) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		d.add(stateNote, what, "it is made when first needed", "%s: %v", dir, err)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	state, advice := stateGood, ""
	if free < lowSpace {
		state, advice = stateNote, "make space there"
	}
	d.add(state, what, advice, "%s has %s free", dir, bytesOf(free))
}

// examineTimeout bounds the examination of one VM.
const examineTimeout = 30 * time.Second

func examineVM(ctx context.Context, d *doctor, v config.VM) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	if v.Libvirt != "" {
		examineDomain(ctx, d, v)
		return
	}
	conn, err := qmp.Dial(ctx, v.QMP)
	if err != nil {
		d.add(stateBad, v.Name, "is the VM running, and is the socket Cairn's alone? cairn vm add "+v.Name+" --replace --qmp SOCKET", "monitor %s: %v", v.QMP, err)
		return
	}
	defer conn.Close()
	m, err := qmp.Inspect(ctx, conn)
	if err != nil {
		d.add(stateBad, v.Name, "", "%v", err)
		return
	}
	d.add(stateGood, v.Name, "", "QEMU %s, %s", m.Version, m.Status)
	for _, s := range m.Features.Missing() {
		d.add(stateBad, v.Name+" features", "use a newer QEMU", "%s", s)
	}
	left, err := qmp.Leftovers(ctx, conn)
	if err != nil {
		d.add(stateBad, v.Name+" leftovers", "", "%v", err)
	}
	for _, l := range left {
		d.add(stateNote, v.Name+" leftovers", "a running backup owns it, or the next one removes it", "%s", l)
	}
	for _, disk := range m.Disks {
		examineDisk(d, v, disk)
	}
	examineAgent(ctx, d, v, m)
}

func examineDisk(d *doctor, v config.VM, disk qmp.Disk) {
	what := v.Name + " disk " + disk.Name
	switch {
	case disk.Skip != "":
		d.add(stateNote, what, "", "is left out: %s", disk.Skip)
		return
	case disk.Persistent:
		d.add(stateGood, what, "", "%s, %s, keeps bitmaps over a clean restart", bytesOf(disk.Size), disk.Format)
	default:
		d.add(stateNote, what, "convert it to qcow2 (compat=1.1) to keep increments over restarts",
			"%s, %s: bitmaps last until QEMU ends; the next backup after that reads it whole", bytesOf(disk.Size), disk.Format)
	}
	for _, b := range disk.Bitmaps {
		if b.Inconsistent {
			d.add(stateNote, what, "Cairn removes its own at the next backup", "bitmap %s is inconsistent: QEMU was killed", b.Name)
		}
	}
	if disk.IOThread != "" {
		d.add(stateNote, what, "use QEMU 10, or do not kill cairn while it reads this disk",
			"runs on iothread %s: on QEMU 7.2 a killed backup can take the VM with it", disk.IOThread)
	}
}

func examineAgent(ctx context.Context, d *doctor, v config.VM, m *qmp.Machine) {
	what, install := v.Name+" guest agent", "in the guest: apt install qemu-guest-agent"
	c, has := m.Channel(qmp.PortStockAgent)
	socket := v.Agent
	switch {
	case socket == "" && !has:
		d.add(stateNote, what, "add a virtio-serial port named "+qmp.PortStockAgent+"; "+install, "the VM has no channel for one: points are crash-consistent")
		return
	case socket == "" && !c.Open:
		d.add(stateNote, what, install, "nobody in the guest has opened the channel: points are crash-consistent")
		return
	case socket == "":
		socket = c.Socket
	}
	agent, err := guest.Dial(ctx, socket)
	if err != nil {
		d.add(stateBad, what, "restart qemu-guest-agent in the guest; no other program may use "+socket, "%v", err)
		return
	}
	defer agent.Close()
	examineAgentState(ctx, d, what, agent)
}

// examineAgentState asks an agent that answers whether it can freeze.
func examineAgentState(ctx context.Context, d *doctor, what string, agent *guest.Agent) {
	info, err := agent.Info(ctx)
	state := guest.Thawed
	if err == nil {
		state, err = agent.Status(ctx)
	}
	switch {
	case errors.Is(err, guest.ErrUnsupported), err == nil && !info.Enabled("guest-fsfreeze-freeze"):
		d.add(stateNote, what, "allow guest-fsfreeze-* in its configuration", "it answers but may not freeze: points are crash-consistent")
	case err != nil:
		d.add(stateBad, what, "restart qemu-guest-agent in the guest", "%v", err)
	case state == guest.Frozen:
		d.add(stateBad, what, "the next backup thaws it; at once: guest-fsfreeze-thaw", "the guest's filesystems are frozen")
	default:
		d.add(stateGood, what, "", "version %s answers and can freeze: points are filesystem-consistent", safe(info.Version))
	}
}
