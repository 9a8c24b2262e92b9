package qmp

import (
	"errors"
	"fmt"
)

// What callers branch on.
var (
	// ErrMonitorBusy: the monitor took the connection and did not greet. QEMU
	// serves one client on each monitor socket.
	ErrMonitorBusy = errors.New("the monitor does not greet: another client is connected to it (libvirt, another backup, a shell?); close that client or give the VM a second -qmp socket")
	// ErrDiskBusy: another program works on a disk. A point without that disk
	// would be a gap that nobody asked for.
	ErrDiskBusy = errors.New("another program works on the disk: wait for its job's end, or leave the disk out (cairn vm add --exclude)")
	// ErrNBDServerBusy: QEMU has one NBD server, and it is not ours.
	ErrNBDServerBusy = errors.New("QEMU did not start its NBD server; it has only one, and another program's backup or mirror is probably using it: wait for its end or stop it there")
	// ErrFleeceBroken: the point in time can no longer be read.
	ErrFleeceBroken = errors.New("the fleece is broken: its scratch space filled up or was too slow to keep what the guest overwrote; the guest was not harmed, and nothing is lost: give more or faster scratch space and run the backup again")
	// ErrScratchSpace: there is too little free space to begin.
	ErrScratchSpace = errors.New("too little free space")
	// ErrScratchLimit: the guest overwrote more than the scratch space may hold.
	ErrScratchLimit = errors.New("the guest overwrote so much while it was read that the scratch files are over their limit; the guest was not harmed and nothing is lost: allow more with --scratch-limit, or back up when less is written")
	// ErrFeature: this QEMU cannot do what is needed.
	ErrFeature = errors.New("this QEMU lacks a feature")
	// ErrEventsLost: a subscriber was too slow and events were dropped.
	ErrEventsLost = errors.New("events were dropped because they were not fetched in time")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the monitor's connection is closed")
)

// Error is QEMU's refusal of one command. The connection lives on.
type Error struct {
	Command string // "block-export-add"
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound", …
	Desc    string // QEMU's words
}

func (e *Error) Error() string { return fmt.Sprintf("qmp: %s: %s (%s)", e.Command, e.Desc, e.Class) }

// isRefusal says whether QEMU answered with an error, so that it lives and did
// not do what was asked.
func isRefusal(err error) bool {
	var e *Error
	return errors.As(err, &e)
}
