package job

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"cairn/index/restorepoint"
	"cairn/qmp"
)

// images is the hypervisor of a VM that is off: its image files.
type images struct {
	*qmp.Offline
	vm string
}

// Inspect implements hypervisor.
func (i images) Inspect(ctx context.Context) (*qmp.Machine, error) {
	m, err := i.Offline.Inspect(ctx)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: if the image was moved, say where to: cairn vm add %s --replace … --disk NAME=FILE; if the VM has the disk no more: --exclude NAME", err, i.vm)
	}
	return m, err
}

func (i images) Prepare(ctx context.Context, o qmp.FleeceOptions) (fleece, error) {
	f, err := i.Offline.Prepare(ctx, o)
	if err != nil {
		return nil, err // a nil *qmp.OfflineFleece would be a fleece that is not nil
	}
	return f, nil
}

// isOff says whether the VM is read from its images.
func (b *Backup) isOff() bool {
	_, off := b.host.(images)
	return off
}

// GoOn does nothing: the VM that a dead run had stopped has ended.
func (images) GoOn(context.Context) error { return nil }

// unchanged asks a fleece that does not hold its disks still whether they
// stood still all the same.
func unchanged(ctx context.Context, f fleece) error {
	if watched, ok := f.(interface{ Unchanged(context.Context) error }); ok {
		return watched.Unchanged(ctx)
	}
	return nil
}

// IsOff says whether an error of a VM's monitor socket means that the VM does
// not run: nobody listens there. A VM without a socket is known only by its
// images.
func IsOff(socket string, err error) bool {
	return socket == "" || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// reachImages reaches a VM that does not run, by the images that its last
// point or its registration names.
func (b *Backup) reachImages(ctx context.Context) (hypervisor, error) {
	if b.Catalogue == nil { // it is the guest that is asked for, not its disks
		return nil, fmt.Errorf("%w: the VM is off", ErrNoInside)
	}
	if err := b.findParent(ctx); err != nil {
		return nil, err
	}
	off, err := OpenImages(b.VM, b.parent, b.State, b.Now)
	if err != nil {
		return nil, err
	}
	b.Step("the VM is off: it is backed up from its image files")
	return images{off, b.VM.Name}, nil
}

// OpenImages gives a VM that is off, by the images that its registration and
// its last point name; nil for none. state is the folder for what runs leave on this host.
func OpenImages(vm VM, last *restorepoint.Manifest, state string, now func() time.Time) (*qmp.Offline, error) {
	list, err := knownImages(vm, last)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Join(state, "off", vm.Name))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	o := qmp.OfflineOptions{
		Images: list, Dir: dir, Name: vm.Name, Now: now,
		Running: func(ctx context.Context) bool { return listens(ctx, vm.QMP) },
	}
	if last != nil {
		o.UUID, o.Type = last.VM.UUID, last.Machine.Type
	}
	return qmp.NewOffline(o), nil
}

// knownImages gives a VM's images: those of its last point, where its
// registration does not say otherwise, and those that only the latter names.
func knownImages(vm VM, parent *restorepoint.Manifest) ([]qmp.Image, error) {
	list, err := pointImages(vm, parent)
	if err != nil {
		return nil, err
	}
	for _, d := range vm.Disks {
		i := slices.IndexFunc(list, func(img qmp.Image) bool { return img.Name == d.Name })
		if i < 0 {
			i = len(list)
			list = append(list, qmp.Image{Name: d.Name})
		}
		list[i].File, list[i].Format, list[i].Skip = d.File, d.Format, ""
		if d.Serial != "" {
			list[i].Serial = d.Serial
		}
	}
	for i, img := range list {
		if slices.Contains(vm.Exclude, img.Name) {
			list[i].Skip = "excluded by this VM's configuration"
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("the VM is off (nobody listens at its monitor %q), and where its images are is not known: it has no restore point yet that says so. "+
			"Back it up once while it runs, or name them: cairn vm add %s --replace … --disk NAME=FILE,format=qcow2", vm.QMP, vm.Name)
	}
	return list, nil
}

// pointImages gives the images that the last point names. One from another
// host says nothing of this one: a stale copy may lie here under the same name.
func pointImages(vm VM, parent *restorepoint.Manifest) ([]qmp.Image, error) {
	if parent == nil {
		return nil, nil
	}
	if host, err := os.Hostname(); (err != nil || host != parent.Host) && len(vm.Disks) == 0 {
		return nil, fmt.Errorf("the VM is off, and its last point was made on host %s: if this host (%s) has its images now, name them: "+
			"cairn vm add %s --replace … --disk NAME=FILE,format=qcow2", parent.Host, host, vm.Name)
	}
	var list []qmp.Image
	for _, d := range parent.Disks {
		img := qmp.Image{Name: d.Name, Node: d.Node, Device: d.Device, Serial: d.Serial, Format: d.Format}
		if len(d.Chain) > 0 {
			img.File = d.Chain[0]
		}
		list = append(list, img)
	}
	for _, s := range parent.Skipped { // what a medium held, or what was excluded, need not be looked at
		list = append(list, qmp.Image{Name: s.Name, Skip: s.Reason})
	}
	return list, nil
}

// describeMachine says what is needed to start the VM again. Of one that is
// off it is what the last point knew.
func (b *Backup) describeMachine() restorepoint.Machine {
	if b.isOff() && b.parent != nil {
		return b.parent.Machine
	}
	m := restorepoint.Machine{QEMUVersion: b.machine.Version, Type: b.machine.Type}
	if !b.isOff() {
		m.CommandLine = commandLine(b.VM.QMP)
	}
	return m
}

// listenTimeout bounds the question whether a monitor listens.
const listenTimeout = time.Second

// listens says whether somebody listens at a monitor's socket: then the VM
// runs, whatever it answers. One that is busy does not take the connection.
func listens(ctx context.Context, socket string) bool {
	if socket == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err == nil {
		_ = c.Close() // it was only asked
	}
	return !IsOff(socket, err)
}
