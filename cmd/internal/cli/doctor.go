package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/chunkstore"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/guest"
	"cairn/index/restorepoint"
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
		ValidArgsFunction: a.completeFirst(a.completeVMs),
		RunE: func(c *cobra.Command, argv []string) error {
			vms, err := a.dirs().VMs()
			if len(argv) == 1 {
				vms, err = a.vms(c.Context(), argv[0])
			}
			if err != nil {
				return err
			}
			var d doctor
			repo, cat := a.examineHost(c.Context(), &d)
			if repo != nil {
				defer repo.Close()
				defer cat.Close()
			}
			if len(vms) == 0 {
				d.add(stateNote, "VMs", "cairn vm add NAME --qmp SOCKET", "none is registered on this host")
			}
			for _, v := range vms {
				a.examineVM(c.Context(), &d, v, repo, cat)
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

// examineHost gives the opened repository and its catalogue, nil if there is
// none to look at.
func (a *app) examineHost(ctx context.Context, d *doctor) (repo *wire.Repo, cat *wire.Catalogue) {
	if a.repo == "" {
		d.add(stateNote, "repository", "use -r FOLDER or CAIRN_REPOSITORY", "none named")
	} else if r, err := a.open(ctx); err != nil {
		d.add(stateBad, "repository", "", "%v", err)
	} else {
		repo, cat = r, r.NewCatalogue(ctx, commandCache)
		d.add(stateGood, "repository", "", "%s opens (%s)", a.repo, repo.Store.Config.ID[:8])
		examineKey(d, repo)
		if len(repo.Engines()) > 0 {
			a.examineEngine(ctx, d, repo)
		}
		if repo.Store.Config.Layout() != nil {
			examinePlaces(ctx, d, repo)
		} else if !wire.IsBucket(a.repo) {
			examineSpace(d, "repository's space", a.repo)
		}
	}
	examineSpace(d, "scratch space", a.dirs().State)
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		d.add(stateBad, "FUSE", "modprobe fuse, and run as root", "/dev/fuse: %v: cairn mount will not work", err)
	} else {
		d.add(stateGood, "FUSE", "", "/dev/fuse can be used")
	}
	return repo, cat
}

// examinePlaces says of each place how it is, and what room it has.
func examinePlaces(ctx context.Context, d *doctor, repo *wire.Repo) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	states, shards, err := repo.PlaceStates(ctx)
	if err != nil {
		d.add(stateBad, "places", "cairn place ls", "%v", err)
		return
	}
	var there []string
	for _, s := range states {
		what := "place " + s.Spec
		switch s.State {
		case "ok":
			there = append(there, s.Spec)
			if wire.IsBucket(s.Spec) {
				d.add(stateGood, what, "", "is there, and has all that it should")
			} else {
				examineSpace(d, what, s.Spec)
			}
		case "behind":
			d.add(stateBad, what, "cairn repair places", "is behind: it misses %d objects", s.Missing)
		case "read-only":
			d.add(stateBad, what, "make it writable, then: cairn repair places", "takes no writes: %s", s.Why)
		default:
			d.add(stateBad, what, "bring it back, then: cairn repair places; if it is lost: cairn place replace "+s.Spec+" NEW",
				"is away (no more than %d may be): %s", shards.M, s.Why)
		}
	}
	for _, g := range wire.Together(there) {
		d.add(stateNote, "places", "cairn place replace moves one to another disk", "%s", wire.Risk(g, shards))
	}
}

// examineKey says what the key in use is for.
func examineKey(d *doctor, repo *wire.Repo) {
	kind := repo.Store.KeyKind()
	switch {
	case repo.Store.Config.Protection == chunkstore.ProtectionNone:
		d.add(stateNote, "key", "cairn init makes a repository that is encrypted", "none is needed: whoever can read the repository can read every guest's files")
	case repo.Store.MayBackUp() != nil:
		d.add(stateNote, "key", "cairn key --help", "of kind %s: no backups can be made with it", kind)
	case repo.Store.MayRead() == nil:
		d.add(stateGood, "key", "", "of kind %s: this host can also read all that is stored; a key of kind write is enough for backups (cairn key --help)", kind)
	default:
		d.add(stateGood, "key", "", "of kind %s: what is stored cannot be read back with it", kind)
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

// examineVM says what a backup of a VM would find and do. cat is nil when no
// repository was opened.
func (a *app) examineVM(ctx context.Context, d *doctor, v config.VM, repo *wire.Repo, cat *wire.Catalogue) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	a.examineJournal(d, v)
	if v.Libvirt != "" {
		a.examineDomain(ctx, d, v)
		return
	}
	conn, err := qmp.Dial(ctx, v.QMP)
	if job.IsOff(v.QMP, err) {
		a.examineOff(ctx, d, v, repo, cat)
		return
	}
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
	examineMachine(d, v, m)
	left, err := qmp.Leftovers(ctx, conn)
	if err != nil {
		d.add(stateBad, v.Name+" leftovers", "", "%v", err)
	}
	for _, l := range left {
		d.add(stateNote, v.Name+" leftovers", "a running backup owns it, or the next one removes it", "%s", l)
	}
	a.examineScratch(d, v, m, conn)
	examineDisks(ctx, d, v, m, repo, cat)
	examineForOff(d, v, m)
	examineAgent(ctx, d, v, m)
	a.examineInside(ctx, d, v, m)
}

// examineJournal says whether a run is at work, or died.
func (a *app) examineJournal(d *doctor, v config.VM) {
	busy, dead, err := job.ReadJournal(a.dirs().State, v.Name)
	switch {
	case err != nil:
		d.add(stateBad, v.Name+" journal", "cairn needs to write there: run it as root, or set CAIRN_STATE_DIR", "%v", err)
	case busy:
		d.add(stateNote, v.Name+" journal", "", "a backup of it is running now")
	case dead != nil:
		d.add(stateNote, v.Name+" journal", "the next backup cleans up after it", "a run of %s died at step %q", dead.Time.Local().Format(time.DateTime), dead.Step)
	}
}

// examineMachine says what QEMU can do and who else works on it.
func examineMachine(d *doctor, v config.VM, m *qmp.Machine) {
	if m.Running {
		d.add(stateGood, v.Name, "", "QEMU %s, %s", m.Version, m.Status)
	} else {
		d.add(stateNote, v.Name, "cont by its own manager, if that is not meant", "QEMU %s, %s: it can be backed up as it stands", m.Version, m.Status)
	}
	missing := m.Features.Missing()
	for _, s := range missing {
		d.add(stateBad, v.Name+" features", "use a newer QEMU", "%s", s)
	}
	if len(missing) == 0 {
		d.add(stateGood, v.Name+" features", "", "QEMU has all that an incremental backup needs")
	}
	for _, j := range m.Jobs {
		if !strings.HasPrefix(j, "cairn-") {
			d.add(stateNote, v.Name+" jobs", "a disk with such a job on it is not backed up until it ends", "another program's block job %q runs", j)
		}
	}
	for _, e := range m.Exports {
		if !strings.HasPrefix(e, "cairn-") {
			d.add(stateNote, v.Name+" exports", "QEMU has one NBD server: no backup can be made while another program uses it", "another program exports %q", e)
		}
	}
}

// examineScratch says whether QEMU can reach the scratch space and whether
// it is large enough.
func (a *app) examineScratch(d *doctor, v config.VM, m *qmp.Machine, conn *qmp.Conn) {
	what := v.Name + " scratch"
	uid, gid, known := conn.Peer()
	if known && os.Geteuid() != 0 && uid != os.Geteuid() {
		d.add(stateBad, what, "run cairn as root, or as that user", "QEMU runs as user %d and cairn as %d: it could not give QEMU its scratch files", uid, os.Geteuid())
		return
	}
	var disks int64
	for _, disk := range m.Disks {
		if disk.Skip == "" {
			disks += disk.Size
		}
	}
	var st unix.Statfs_t
	dir := a.dirs().State
	if err := unix.Statfs(dir, &st); err != nil {
		d.add(stateNote, what, "it is made when first needed", "%s: %v", dir, err)
		return
	}
	if blocked := impassable(dir, uid, gid); known && blocked != "" {
		d.add(stateBad, what, "chmod o+x "+blocked+", or another CAIRN_STATE_DIR", "QEMU runs as user %d and may not pass %s on its way to %s", uid, blocked, dir)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	switch {
	case free < disks/20:
		d.add(stateNote, what, "give it more room (--scratch FOLDER), or back up when the guest writes little",
			"%s has %s free, a twentieth of the disks' %s is recommended: what the guest overwrites while it is read goes there", dir, bytesOf(free), bytesOf(disks))
	default:
		d.add(stateGood, what, "", "%s has %s free for what the guest overwrites while it is read", dir, bytesOf(free))
	}
}

// impassable gives the first folder on the way to dir that a user may not pass.
func impassable(dir string, uid, gid int) string {
	if uid == 0 {
		return ""
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	blocked := ""
	for at := filepath.Dir(dir); ; at = filepath.Dir(at) { // dir itself is Cairn's to open
		var st unix.Stat_t
		if unix.Stat(at, &st) == nil {
			mode := st.Mode & 0o001
			if int(st.Uid) == uid {
				mode = st.Mode & 0o100
			} else if int(st.Gid) == gid {
				mode = st.Mode & 0o010
			}
			if mode == 0 {
				blocked = at
			}
		}
		if at == filepath.Dir(at) {
			return blocked
		}
	}
}

// examineDisks says of each disk how the next backup reads it, and why.
func examineDisks(ctx context.Context, d *doctor, v config.VM, m *qmp.Machine, repo *wire.Repo, cat *wire.Catalogue) {
	records, last := lastPoint(ctx, d, v, cat)
	for _, disk := range m.Disks {
		examineDisk(d, v, disk)
		if repo == nil || disk.Skip != "" {
			continue
		}
		tag := repo.Store.Config.ID[:8]
		decision := qmp.Plan(disk, tag, records[disk.Name])
		state, advice := stateGood, ""
		if !decision.Incremental && last != nil && disk.NoBitmaps == "" {
			state, advice = stateNote, "that backup heals it: the one after it is incremental again"
		}
		d.add(state, v.Name+" disk "+disk.Name, advice, "the next backup: %s", decision.Reason)
		for _, b := range disk.Bitmaps {
			if s, ours := qmp.ParseBitmapName(b.Name); ours && s.Repo == tag && b.Recording {
				d.add(stateGood, v.Name+" disk "+disk.Name, "", "%s changed since bitmap %s records", bytesOf(b.Count), b.Name)
			}
		}
	}
}

// lastPoint gives what the VM's last point says of each disk.
func lastPoint(ctx context.Context, d *doctor, v config.VM, cat *wire.Catalogue) (map[string]*qmp.BitmapRecord, *restorepoint.Manifest) {
	if cat == nil {
		return nil, nil
	}
	last, err := cat.Select(ctx, v.Name+"@latest")
	if errors.Is(err, restorepoint.ErrNoPoint) {
		d.add(stateNote, v.Name+" points", "cairn backup "+v.Name, "there is no restore point of it in this repository")
		return nil, nil
	}
	if err != nil {
		d.add(stateBad, v.Name+" points", "cairn check", "%v", err)
		return nil, nil
	}
	d.add(stateGood, v.Name+" points", "", "the last one is of %s (%s), %s-consistent", restorepoint.DirName(last.Time), last.Read, last.Consistency.Level)
	for _, w := range last.Warnings {
		d.add(stateNote, v.Name+" points", "", "its run warned: %s", safe(w))
	}
	return job.Records(last), last
}

func examineDisk(d *doctor, v config.VM, disk qmp.Disk) {
	what := v.Name + " disk " + disk.Name
	switch {
	case disk.Skip != "":
		d.add(stateNote, what, "", "is left out: %s", disk.Skip)
		return
	case slices.Contains(v.Exclude, disk.Name):
		d.add(stateNote, what, "", "is left out: excluded by this VM's configuration")
		return
	case disk.Busy != "":
		d.add(stateBad, what, "wait for that job's end", "no backup now: %s", disk.Busy)
	case disk.Persistent:
		d.add(stateGood, what, "", "%s, %s, keeps bitmaps over a clean restart", bytesOf(disk.Size), disk.Format)
	case disk.Driver == "qcow2":
		d.add(stateNote, what, "while the VM is off: qemu-img amend -o compat=1.1 "+disk.File,
			"%s, qcow2 version 2: bitmaps last until QEMU ends; the next backup after that reads it whole", bytesOf(disk.Size))
	default:
		d.add(stateNote, what, "convert it to qcow2 (compat=1.1) to keep increments over restarts",
			"%s, %s: bitmaps last until QEMU ends; the next backup after that reads it whole", bytesOf(disk.Size), disk.Format)
	}
	for _, b := range disk.Bitmaps {
		_, ours := qmp.ParseBitmapName(b.Name)
		switch {
		case b.Inconsistent && ours:
			d.add(stateNote, what, "the next backup removes it and reads the disk whole", "bitmap %s is inconsistent: QEMU or the host ended without closing the image", b.Name)
		case b.Inconsistent:
			d.add(stateNote, what, "it is another program's: that program must remove it", "bitmap %s is inconsistent", b.Name)
		}
	}
	if disk.Push {
		d.add(stateNote, what, "QEMU 9.0 or newer lets it be read, which is faster",
			"runs on iothread %s, and this QEMU ends, guest and all, if a reader of such a disk dies: QEMU pushes it instead", disk.IOThread)
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
