// Package libvirt is what libvirt knows about a VM (a "domain") and does for
// a backup of it: its disks, its checkpoints, and a fleece made by libvirt's
// own backup API. It gives the same things as package qmp, so that qmp.Plan
// and the run above it need not know which of the two they use.
//
// Promises, in this order:
//
//   - The guest is never harmed. Scratch space that runs full pauses the guest
//     (libvirt's method has no other policy): a watcher, which does not depend
//     on the reader, ends the backup and lets the guest go on at once. A disk
//     on an iothread of a QEMU that dies with its NBD client is never read over
//     NBD from QEMU.
//   - Jobs and checkpoints of others are not touched. A job is ours if its
//     files lie in this VM's own folders; a checkpoint is ours by its name.
//   - Every call has a deadline. The library's calls take no context: when
//     the deadline passes, the connection is closed and the next call makes a
//     new one. That also carries a run over a restart of libvirtd.
//
// # Why not QEMU's monitor
//
// Raw QMP under libvirt taints the domain, collides on QEMU's one NBD server,
// and a filter of ours would hide below it what libvirt puts on top. So the
// backup API does all, and nothing here sends a monitor command, not even a
// query. That taints nothing but for the guest agent: commands to it are marked
// "custom-ga-command" in the domain's log.
//
// # Checkpoints
//
// A checkpoint named cairn-<repository>-<number> is one bitmap of that name on
// each disk, so checkpoints stand in for the bitmaps of package qmp. What was
// tried with libvirt 9.0:
//
//   - Every bitmap goes on recording when a newer checkpoint is made. A
//     checkpoint that is deleted takes nothing from the others, older or newer,
//     so two repositories can take turns.
//   - With VIR_DOMAIN_CHECKPOINT_XML_SIZE a disk whose bitmap is whole has a
//     size, the dirty bytes; one whose bitmap is missing or inconsistent has
//     none. That is all that qmp.Plan's rules need.
//   - BackupBegin answers error 109 for such a bitmap. If one breaks between
//     Inspect and Point, Point begins again and reads all.
//   - A checkpoint of which one disk's bitmap is missing cannot be deleted:
//     redefined for one disk at a time it can. Deleting the metadata alone
//     would leave bitmaps that record for ever and block their names.
//   - libvirt refuses to undefine a domain with checkpoints; virsh undefine
//     --checkpoints-metadata does it.
//
// # Pull and push
//
// Pull: QEMU exports the point in time over NBD, and what the guest
// overwrites goes to the scratch files. The end is DomainAbortJob, then our
// sockets. Push: QEMU writes the point in time to files, and we read those by
// qemu-nbd. Push is for disks on an iothread with QEMU before 9.0, which
// aborts, guest and all, when the NBD client of such a disk closes its
// connection, as a killed one does; a killed reader of files harms nobody. It needs
// room for all that is read, and unchanged clusters cannot be sampled.
//
// The version is all that tells such a QEMU: the fault was seen in 7.2 and not
// in 10.0; the list of clients moved to the main loop in 9.0. It is that of the
// domain's emulator as it is installed: one that was upgraded below a running
// VM is taken for the new one.
//
// # Locks
//
// Conn.mu guards the connection: it is held while that is made, and not during
// calls. The watcher of a fleece has a connection of its own.
//
// # Limits
//
// The daemon is trusted as root is: the library allocates what the daemon says
// a packet holds. What the guest or its images can shape, the agent's answers,
// is bounded by package guest.
package libvirt
