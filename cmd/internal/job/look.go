package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/qmp"
)

// ErrVMOff: nobody runs the VM.
var ErrVMOff = errors.New("the VM is off")

// Look asks a VM's QEMU or libvirt what there is, and changes nothing. ErrVMOff
// for one that does not run.
func Look(ctx context.Context, vm VM, state string) (*qmp.Machine, error) {
	b := &Backup{VM: vm, State: state, Step: func(string, ...any) {}, Now: time.Now}
	host, err := b.reach(ctx)
	if errors.Is(err, ErrNoInside) {
		return nil, ErrVMOff
	}
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", vm.Name, err)
	}
	defer host.Close()
	return host.Inspect(ctx)
}
