package libvirt

import (
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// What callers branch on.
var (
	// ErrBusy: libvirt runs a job of somebody else for the domain.
	ErrBusy = errors.New("libvirt runs another job for this domain (a backup, a migration, a dump): wait for its end, or end it with virsh domjobabort")
	// ErrNoDomain: libvirt has no such domain.
	ErrNoDomain = errors.New("libvirt has no such domain")
	// ErrHeldUp: an I/O error holds the domain up, before any backup of ours.
	ErrHeldUp = errors.New("the domain stands still by an I/O error of its disks: make room or mend the storage, then virsh resume it")
	// ErrOff: the domain is not running, and libvirt's backup needs that.
	ErrOff = errors.New("the domain is shut off, and libvirt backs up running domains only: start it, paused if need be")
)

// code gives libvirt's number of an error, 0 if it is not libvirt's.
func code(err error) golibvirt.ErrorNumber {
	var e golibvirt.Error
	if errors.As(err, &e) {
		return golibvirt.ErrorNumber(e.Code)
	}
	return 0
}
