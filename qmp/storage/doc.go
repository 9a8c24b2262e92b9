// Package storage is what is known about a VM's image files without the VM:
// who uses them, whether they were written to, and qemu-storage-daemon, the
// program that reads them.
//
// # The VM may start at any time
//
// QEMU locks its images (block/file-posix.c): a byte at 100+P of the file is
// locked by who uses permission P, and one at 200+P by who does not let others
// use it. A VM whose image is locked against it does not start. So a reader of
// ours holds nothing but the right to read, and finds out afterwards whether
// it read while somebody wrote:
//
//   - Files.Writer asks for foreign locks of the permission to write;
//   - Files.Changed compares each file with a Mark taken at the point in time:
//     inode, size, times of change to the nanosecond, and for block devices,
//     which have no times, the kernel's counters of what was written.
//
// Files.Opened finds writers on this host that do not lock (QEMU's
// locking=off). It is asked before an image is opened for writing.
//
// Files.Hold keeps writers out. It is for the moment in which the marks are
// taken, as a VM that starts and ends just then would be seen by neither.
//
// Used and Lock are for who writes an image that no VM may have: a restore.
//
// # The daemon
//
// A Daemon ends with its parent: the kernel sends it SIGTERM then, on which it
// closes its images as at any other end. What is left all the same (it hung)
// is found by EndLeft, by the pid file that its command line names.
package storage
