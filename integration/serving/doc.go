// Package serving holds the campaign of cairn serve: real QEMU processes with
// small disks, a daemon whose clock runs faster, killed at random instants. Nothing
// of it is a library.
//
// What must hold, whatever was killed: every VM has, for every hour, exactly one
// point, or the run that made up for it says so; no point is double; the book of
// runs and the repository tell the same; and the daemon stays small.
//
//	CAIRN_SERVE_VMS=200    how many (make test: 6)
//	CAIRN_SERVE_HOURS=24   of the fast clock (3)
//	CAIRN_SERVE_KILLS=20   of the daemon (3)
//	CAIRN_SERVE_HOUR=75s   what an hour takes (4s)
//	CAIRN_SERVE_SEED=7     when it is killed, and what the guests write
//
// The VMs have no guest: QEMU does not start its processors, and what a guest would
// write is written by QEMU's monitor.
package serving
