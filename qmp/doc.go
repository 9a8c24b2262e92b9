// Package qmp is what QEMU knows: a VM's disks, their dirty bitmaps, and the
// fleece, the frozen point-in-time view that a backup reads.
//
// Promises, in this order:
//
//   - The guest is never harmed. A full or slow scratch space breaks the
//     backup (ErrFleeceBroken), not the guest's write; a VM that we paused goes
//     on whatever fails; nothing but objects with our names is ever removed.
//   - No write is lost. Whatever fails or crashes, the next Plan either merges
//     every bitmap since the last committed point or says in plain words why
//     the disk is read whole.
//   - Every wait has a deadline, and everything QEMU sends is bounded.
//
// # One attempt
//
//	Inspect   what is there; Machine.Features.Missing says what QEMU lacks
//	Clean     removes what a dead run left
//	Plan      for each disk: incremental or full, and why (pure)
//	Prepare   scratch files, copy-before-write nodes, NBD server
//	Point     new bitmaps · [stop] filters in [cont] · old bitmaps off
//	Export    snapshot-access nodes, merged bitmap, export, connections; or
//	          our server, if QEMU is to push
//	Source    Extents says what to read, ReadAt reads it
//	Release   always
//	Advance   only when the point's manifest is durable
//
// # Bitmaps
//
// There is one persistent bitmap for each attempt, named by repository and
// number, and bitmaps are never rolled back: no step clears or re-uses one. A
// failed attempt leaves its bitmap, and the next one merges all from the
// committed one on. The tempting other way, copy the bitmap, clear it, read,
// is wrong: if the VM shuts down in between, the bitmap comes back from the
// image consistent and empty, and changes are lost silently.
//
// # The order of Release
//
// It is block-export-del mode=hard, then our sockets closed at once, then the
// wait for the exports' end, then the snapshot-access nodes, then each device
// back on the node below its filter, then the filters, the scratch nodes, the
// files, the temporary bitmaps, and last the NBD server. Each place has its
// reason:
//
//   - QEMU 7.2 aborts, guest and all, if the client of a live export closes its
//     connection and the disk is on an iothread (Disk.IOThread).
//   - An export whose client does not read its replies does not go away.
//   - nbd-server-stop never returns in QEMU 7.2 while a client is in its
//     handshake. If that may be so, the server is left running, and the next
//     run takes it over. So it is while another program has an export on it:
//     the server's end would be that export's.
//
// A backup that is killed (kill -9) cannot keep that order. So a disk on an
// iothread is not read from a QEMU before 9.0: QEMU pushes it to an NBD server
// of ours (push.go). Its job gets an I/O error when we die, and the guest goes
// on. Its filter and its fleece are made while the VM stands still: blockdev-add
// on such a disk with a request in flight aborts those QEMUs, too (point.go).
//
// # A VM that is off
//
// Offline and OfflineFleece do the same steps on image files, by a
// qemu-storage-daemon (package storage). The VM may be started at any time:
// Point keeps it from that for some 50 ms, in which this attempt's bitmaps are
// stored and the files are marked; what is read behind it counts only if
// Unchanged proves that nobody wrote.
//
// # Locks
//
// Conn.writeMu, then Conn.mu, then Subscription.mu.
package qmp
