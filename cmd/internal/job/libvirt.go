package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"cairn/index/restorepoint"
	"cairn/qmp"
	"cairn/qmp/libvirt"
)

// throughLibvirt stands where a path of an agent's socket would: the channel
// is libvirt's, which hands commands on.
const throughLibvirt = "libvirt:"

// maxNVRAM bounds the firmware's variables in a manifest, bytes.
const maxNVRAM = 16 << 20

// domain is the hypervisor behind libvirt.
type domain struct{ *libvirt.Domain }

// openDomain connects to a VM's libvirt.
func (b *Backup) openDomain(ctx context.Context) (hypervisor, error) {
	dir, err := b.scratchDir()
	if err != nil {
		return nil, err
	}
	own := []string{dir}
	if b.journal != nil && b.journal.Dead != nil {
		own = append(own, b.journal.Dead.Scratch)
	}
	d, err := libvirt.Open(ctx, b.VM.Libvirt, b.VM.Domain, own...)
	if err != nil {
		return nil, err
	}
	disks, active, err := d.ImageFiles(ctx)
	if active || err != nil { // what cannot be told now, Inspect will say
		return domain{d}, nil
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	return b.reachDomainImages(ctx, disks)
}

// reachDomainImages reaches a domain that is off, by the images that its XML
// names. libvirt does not learn of the bitmaps that such a run adds: its
// checkpoints are of no use after it, and the next run of the running domain reads
// all, and says so.
func (b *Backup) reachDomainImages(ctx context.Context, disks []qmp.Disk) (hypervisor, error) {
	for _, disk := range disks {
		if disk.Skip == "" && !slices.ContainsFunc(b.VM.Disks, func(d VMDisk) bool { return d.Name == disk.Name }) {
			b.VM.Disks = append(b.VM.Disks, VMDisk{Name: disk.Name, File: disk.File, Format: disk.Format, Serial: disk.Serial})
		}
	}
	return b.reachImages(ctx)
}

func (d domain) Prepare(ctx context.Context, o qmp.FleeceOptions) (fleece, error) {
	f, err := d.Domain.Prepare(ctx, o)
	if err != nil {
		return nil, err // a nil *libvirt.Fleece would be a fleece that is not nil
	}
	return f, nil
}

func (d domain) Advance(ctx context.Context, _ []qmp.Disk, repo string, committed uint64) error {
	return d.Domain.Advance(ctx, repo, committed)
}

// GoOn has nothing to do: a run never stops a domain.
func (d domain) GoOn(context.Context) error { return nil }

// describe adds to a manifest what defines the domain again.
func (d domain) describe(ctx context.Context, m *restorepoint.Machine) error {
	var err error
	if m.DomainXML, err = d.Definition(ctx); err != nil {
		return err
	}
	path, err := d.NVRAM(ctx)
	if err != nil || path == "" {
		return err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a domain that never ran
	}
	if err != nil {
		return fmt.Errorf("the firmware's variables: %w", err)
	}
	defer f.Close()
	if m.NVRAM, err = io.ReadAll(io.LimitReader(f, maxNVRAM+1)); err == nil && len(m.NVRAM) > maxNVRAM {
		m.NVRAM, err = nil, fmt.Errorf("%s has more than %d bytes", path, maxNVRAM)
	}
	if err != nil {
		return fmt.Errorf("the firmware's variables: %w", err)
	}
	return nil
}

// lateBegin is how long a guardian looks for a backup that its run had asked
// for: libvirt may begin it after the run was killed.
const lateBegin = 3 * time.Second

// endBackup ends the backup of a run that was killed. Its scratch space, when
// it is full, holds the guest up.
func (c Charge) endBackup(ctx context.Context) error {
	d, err := libvirt.Open(ctx, c.VM.Libvirt, c.VM.Domain, c.Scratch)
	if errors.Is(err, libvirt.ErrNoDomain) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	for begin := time.Now(); ; {
		removed, err := d.Clean(ctx)
		if err != nil || len(removed) > 0 || time.Since(begin) > lateBegin {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// domainAgent is the way to a domain's guest agent that opens libvirt itself.
func domainAgent(uri, name string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		d, err := libvirt.Open(ctx, uri, name)
		if errors.Is(err, libvirt.ErrNoDomain) {
			return nil, fmt.Errorf("%w: %w", syscall.ECONNREFUSED, err)
		}
		if err != nil {
			return nil, errors.New(err.Error()) // not wrapped: that the daemon is away says nothing of the guest
		}
		conn, err := d.DialAgent(ctx)
		if err != nil {
			_ = d.Close() // err is what counts
			return nil, err
		}
		return ownedConn{conn, d}, nil
	}
}

// ownedConn closes libvirt's connection with the agent's.
type ownedConn struct {
	net.Conn
	d *libvirt.Domain
}

func (c ownedConn) Close() error { return errors.Join(c.Conn.Close(), c.d.Close()) }
