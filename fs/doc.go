// Package fs shows restore points as a directory tree (FUSE, Linux).
//
//	MOUNT/<vm>/latest/                    the newest point, by a second name
//	MOUNT/<vm>/2026-10-12T02-00-00Z/      a point
//	    point.json                        what it is, and what cannot be shown
//	    fs/                               the guest's own view, mounts stitched
//	    volumes/<name>/                   each filesystem by itself
//	    disks/<name>.raw                  the disks, sparse
//	    apps/<name>/                      a system object: object.json, links into fs/
//	    apps/containers/<name>/           and so are apps/users/<name>/
//	    apps/document.json                all that the inside agent said, byte for byte
//	    machine/                          the VM's configuration
//	    changes                           what differs from the parent point
//	MOUNT/<vm>/history/PATH/              what PATH was, over all points
//
// It promises:
//
//   - Mounting, and listing the VMs, reads no manifest. A point is opened
//     when something in it is looked at.
//   - What the kernel may ask has a deadline (Options.Deadline), then EIO: no
//     program hangs on a store that does not answer.
//   - A guest's link never leads to the host's files (tree.View.Contain), its
//     devices and set-user-id bits are dead (mount flags), its privileged
//     xattrs are shown as user.cairn.*.
//   - A piece that cannot be read is listed and gives EIO, or EACCES when the
//     guest encrypted it; point.json has the reason.
//   - A system object's links lead into fs/, and to where the guest's path
//     ends. One whose path is not in the point is in object.json alone. What was
//     derived from files, for want of an agent's word, says so.
//   - history/ mirrors the guest's paths of all points, also of files that are
//     gone. A directory holds what any point has in it; a file is a directory
//     with one entry for each distinct contents, named as the first point that
//     has them, which is that point's file itself. Where a path was both, both
//     are in it; where a guest's name is in the way of ours, ours gets a "~".
//     A link leads to itself in its point's fs/. What is missing, and why, is in
//     history/not-shown.txt. Volumes that are mounted nowhere are not in it.
//   - st_ino is the same at every mount of the same point.
//
// # Node IDs
//
// The kernel names what it holds by a node ID that we choose. A guest's
// regular file needs no memory here: its ID is made of its volume's slot and
// its inode number. Directories and symbolic links are held in a table until
// the kernel forgets them, because what a link may lead to depends on the
// directory it was found in. A damaged image may list one directory or one
// link in two places: it gets one ID for each, else the kernel would carry a
// target contained for a deep place to a shallow one.
//
// # Requests saved
//
// Nothing here changes once it exists, so: OPEN, OPENDIR, FLUSH are answered
// ENOSYS once and never asked again (the kernel then keeps its page cache and
// directory cache, as with FOPEN_KEEP_CACHE and FOPEN_CACHE_DIR); directories
// are listed with attributes; attributes and names, also names that do not
// exist, stay valid for a day. Only the two upper levels and history/, where
// points appear and go, are asked for again after a second. Small files of a directory that
// somebody reads in order are put into the kernel's page cache ahead of him
// (prefetch).
//
// # Deadlocks
//
// A Go program must not use its own mount: the goroutine that waits may hold
// the thread that should answer. Tests mount from a child process. Locks are
// taken in the order Server.listing, opened.finding, point.turn, Server.mu,
// table.mu; none is held while a reader or the Source is called, except
// opened.finding, point.turn and Server.listing, which are waited for with the
// request's context. The locks of prefetch, fileCache, appCache, histories,
// history and device are taken with no other held.
package fs
