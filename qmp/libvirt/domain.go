package libvirt

import (
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"cairn/qmp"
)

// Domain is one VM of a libvirt daemon.
type Domain struct {
	conn *Conn
	dom  golibvirt.Domain
	own  []string // folders of our runs: a job with files there is ours
	now  func() time.Time
	qemu version // 0: not asked yet
}

// Open connects to a daemon and finds a domain by its name or UUID. own are
// the folders of this VM's scratch files, of this run and of a dead one.
func Open(ctx context.Context, uri, name string, own ...string) (*Domain, error) {
	conn, err := Dial(ctx, uri)
	if err != nil {
		return nil, err
	}
	d := &Domain{conn: conn, own: own, now: time.Now}
	if err := d.lookup(ctx, name); err != nil {
		_ = conn.Close() // err is what counts
		return nil, err
	}
	return d, nil
}

func (d *Domain) lookup(ctx context.Context, name string) error {
	err := d.conn.ask(ctx, "look for domain "+name, func(l *golibvirt.Libvirt) (err error) {
		if id, perr := hex.DecodeString(strings.ReplaceAll(name, "-", "")); perr == nil && len(id) == golibvirt.UUIDBuflen {
			if d.dom, err = l.DomainLookupByUUID(golibvirt.UUID(id)); err == nil {
				return nil
			}
		}
		d.dom, err = l.DomainLookupByName(name)
		return err
	})
	if code(err) == golibvirt.ErrNoDomain {
		return fmt.Errorf("%w: %s at %s (virsh list --all)", ErrNoDomain, name, d.conn.uri)
	}
	return err
}

// Close closes the connection.
func (d *Domain) Close() error { return d.conn.Close() }

// Name gives the domain's name.
func (d *Domain) Name() string { return d.dom.Name }

// State is whether a domain runs.
type State struct {
	Status  string // "running", "paused", "io-error", "shutoff", …: QEMU's words where it has one
	Running bool   // its processors run
	Active  bool   // QEMU runs
}

// State asks for the domain's state.
func (d *Domain) State(ctx context.Context) (State, error) {
	var state, reason int32
	err := d.conn.ask(ctx, "ask for the domain's state", func(l *golibvirt.Libvirt) (err error) {
		state, reason, err = l.DomainGetState(d.dom, 0)
		return err
	})
	return newState(state, reason), err
}

func newState(state, reason int32) State {
	switch golibvirt.DomainState(state) {
	case golibvirt.DomainRunning, golibvirt.DomainBlocked:
		return State{"running", true, true}
	case golibvirt.DomainPaused:
		if golibvirt.DomainPausedReason(reason) == golibvirt.DomainPausedIoerror {
			return State{"io-error", false, true}
		}
		return State{"paused", false, true}
	case golibvirt.DomainShutdown:
		return State{"shutdown", false, true}
	case golibvirt.DomainPmsuspended:
		return State{"suspended", false, true}
	case golibvirt.DomainCrashed:
		return State{"crashed", false, false}
	}
	return State{"shutoff", false, false}
}

// Definition gives the XML that defines the domain again, with its secrets.
func (d *Domain) Definition(ctx context.Context) (string, error) {
	return d.xml(ctx, golibvirt.DomainXMLInactive|golibvirt.DomainXMLSecure)
}

func (d *Domain) xml(ctx context.Context, flags golibvirt.DomainXMLFlags) (string, error) {
	var text string
	err := d.conn.ask(ctx, "read the domain's XML", func(l *golibvirt.Libvirt) (err error) {
		text, err = l.DomainGetXMLDesc(d.dom, flags)
		return err
	})
	return text, err
}

// describe reads the domain as it is now.
func (d *Domain) describe(ctx context.Context) (*domainXML, error) {
	text, err := d.xml(ctx, 0)
	if err != nil {
		return nil, err
	}
	return parseDomain(text)
}

// NVRAM gives the path of the firmware's variables on this host, "" if the
// domain has none.
func (d *Domain) NVRAM(ctx context.Context) (string, error) {
	x, err := d.describe(ctx)
	if err != nil {
		return "", err
	}
	return x.nvram(), nil
}

// Inspect says what there is. It changes nothing and taints nothing.
func (d *Domain) Inspect(ctx context.Context) (*qmp.Machine, error) {
	state, err := d.State(ctx)
	if err != nil {
		return nil, err
	}
	x, err := d.describe(ctx)
	if err != nil {
		return nil, err
	}
	m := &qmp.Machine{
		Name: x.Name, UUID: x.UUID, Type: x.OS.Type.Machine, Status: state.Status, Running: state.Running,
		// What libvirt's backup needs of QEMU it looks after itself.
		Features: qmp.Features{Transaction: true, BitmapMerge: true, BlockExportAdd: true, CopyBeforeWrite: true,
			SnapshotAccess: true, OnCBWError: true, ExportBitmapNode: true, QOMSet: true, BlockGraph: true},
		Disks: x.disks(),
	}
	version, err := d.version(ctx, x)
	if err != nil {
		return nil, err
	}
	m.Version = version.String()
	if err := d.measure(ctx, m.Disks); err != nil {
		return nil, err
	}
	if err := d.readBitmaps(ctx, m.Disks, state.Active); err != nil {
		return nil, err
	}
	for _, c := range x.Devices.Channels {
		if c.Target.Type == "virtio" {
			m.Channels = append(m.Channels, qmp.Channel{Port: c.Target.Name, Chardev: c.Alias.Name, Socket: c.Source.Path, Open: c.Target.State == "connected"})
		}
	}
	if !state.Active {
		return m, nil
	}
	busy, err := d.busy(ctx)
	if busy {
		m.Jobs = append(m.Jobs, "libvirt's job for the domain")
	}
	return m, err
}

// disks gives the domain's disks without what the XML does not know: sizes and
// bitmaps. Their names are the targets': "vda".
func (x *domainXML) disks() []qmp.Disk {
	var out []qmp.Disk
	for i := range x.Devices.Disks {
		s := &x.Devices.Disks[i]
		d := qmp.Disk{
			Name: fileName(s.Target.Dev, i), Device: s.Alias.Name, Top: s.Target.Dev, Node: s.Target.Dev, Serial: s.Serial,
			Format: s.Driver.Type, Driver: s.Driver.Type, File: s.Source.String(), Chain: s.chain(),
			ReadOnly: s.ReadOnly != nil, Removable: s.Device == "cdrom" || s.Device == "floppy", Inserted: s.Source.String() != "",
			IOThread: x.iothread(s), Persistent: s.Driver.Type == "qcow2",
		}
		if d.Skip = s.skip(); d.Skip == "" && !d.Persistent {
			d.NoBitmaps = "the format is " + d.Format + ", and libvirt keeps checkpoints of qcow2 disks only"
		}
		out = append(out, d)
	}
	return out
}

// fileName is the target's name if it is fit for a file, as libvirt sees to.
func fileName(dev string, i int) string {
	if dev == "" || strings.ContainsAny(dev, "/\x00") || strings.HasPrefix(dev, ".") || len(dev) > 64 {
		return "disk-" + strconv.Itoa(i)
	}
	return dev
}

// skip says why a disk is not backed up, "" if it is.
func (d *diskXML) skip() string {
	switch {
	case d.Device == "cdrom":
		return "CD-ROM"
	case d.Device == "floppy":
		return "floppy disk"
	case d.Device == "lun":
		return "a SCSI device passed through to the guest"
	case d.Type == "nvme" || d.Type == "vhostuser" || d.Type == "vhostvdpa":
		return "its storage is of the type " + d.Type + ", which libvirt's backup cannot read"
	case d.Source.String() == "":
		return "no medium"
	case d.ReadOnly != nil:
		return "read-only"
	case d.Transient != nil:
		return "transient: what is written to it is thrown away"
	case d.Mirror != nil:
		return "in use: a block copy or commit of another program is on it"
	}
	return ""
}

// measure asks for the sizes of the disks that are to be read.
func (d *Domain) measure(ctx context.Context, disks []qmp.Disk) error {
	for i := range disks {
		if disks[i].Skip != "" {
			continue
		}
		var size uint64
		err := d.conn.ask(ctx, "ask for the size of disk "+disks[i].Name, func(l *golibvirt.Libvirt) (err error) {
			_, size, _, err = l.DomainGetBlockInfo(d.dom, disks[i].Top, 0)
			return err
		})
		switch {
		case code(err) != 0:
			disks[i].Skip = "libvirt does not tell its size: " + err.Error()
		case err != nil:
			return err
		case size == 0 || size > 1<<62:
			disks[i].Skip = "its size is 0"
		}
		disks[i].Size = int64(size)
	}
	return nil
}

// busy says whether any job runs for the domain.
func (d *Domain) busy(ctx context.Context) (bool, error) {
	var kind int32
	err := d.conn.ask(ctx, "ask for the domain's job", func(l *golibvirt.Libvirt) (err error) {
		kind, _, _, _, _, _, _, _, _, _, _, _, err = l.DomainGetJobInfo(d.dom)
		return err
	})
	if code(err) == golibvirt.ErrOperationInvalid { // it is off
		return false, nil
	}
	job := golibvirt.DomainJobType(kind)
	return job == golibvirt.DomainJobBounded || job == golibvirt.DomainJobUnbounded, err
}

// ourJob says whether the running backup is one of this VM's runs.
func (d *Domain) ourJob(ctx context.Context) (bool, error) {
	var text string
	err := d.conn.ask(ctx, "ask for the running backup", func(l *golibvirt.Libvirt) (err error) {
		text, err = l.DomainBackupGetXMLDesc(d.dom, 0)
		return err
	})
	if code(err) != 0 {
		return false, nil // none runs
	}
	if err != nil {
		return false, err
	}
	b, err := parseBackup(text)
	if err != nil {
		return false, err
	}
	for _, name := range b.files() {
		for _, dir := range d.own {
			if filepath.IsAbs(dir) && strings.HasPrefix(filepath.Clean(name), filepath.Clean(dir)+"/") {
				return true, nil
			}
		}
	}
	return false, nil
}

// abortOurs ends a backup of ours, and waits for its end. It says whether
// there was one.
func (d *Domain) abortOurs(ctx context.Context) (bool, error) {
	ours, err := d.ourJob(ctx)
	if err != nil || !ours {
		return false, err
	}
	// A daemon that restarts in the middle is asked again below.
	err = d.conn.do(ctx, "end the backup", func(l *golibvirt.Libvirt) error { return l.DomainAbortJob(d.dom) })
	if code(err) == golibvirt.ErrOperationInvalid { // it has ended by itself
		err = nil
	}
	if err != nil {
		return true, err
	}
	return true, d.awaitIdle(ctx)
}

// awaitIdle waits until our job is gone.
func (d *Domain) awaitIdle(ctx context.Context) error {
	for {
		ours, err := d.ourJob(ctx)
		if err != nil || !ours {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("libvirt: waiting for the end of the backup: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// letGoOn resumes the domain if it stands still by an I/O error, which scratch
// space that ran full gives it. Nothing of the guest's is lost: QEMU repeats
// the write.
func (d *Domain) letGoOn(ctx context.Context) (bool, error) {
	s, err := d.State(ctx)
	if err != nil || s.Status != "io-error" {
		return false, err
	}
	err = d.conn.do(ctx, "let the domain go on", func(l *golibvirt.Libvirt) error { return l.DomainResume(d.dom) })
	return err == nil, err
}

// Clean ends the backup of a dead run of ours, lets the domain go on if that
// had paused it, and says what it did.
func (d *Domain) Clean(ctx context.Context) (removed []string, err error) {
	s, err := d.State(ctx)
	if err != nil || !s.Active {
		return nil, err
	}
	ended, err := d.abortOurs(ctx)
	if err != nil || !ended {
		return nil, err
	}
	removed = append(removed, "libvirt's backup job")
	resumed, err := d.letGoOn(ctx)
	if resumed {
		removed = append(removed, "the pause by its full scratch space")
	}
	return removed, err
}

// Taints lists what libvirt holds against the domain: "custom-monitor", ….
func (d *Domain) Taints(ctx context.Context) ([]string, error) {
	var list []string
	err := d.conn.ask(ctx, "ask for the domain's messages", func(l *golibvirt.Libvirt) (err error) {
		list, err = l.DomainGetMessages(d.dom, uint32(golibvirt.DomainMessageTainting))
		return err
	})
	return list, err
}
