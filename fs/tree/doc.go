// Package tree is the guest's own view of one restore point: its volumes,
// each by itself, and its mounts stitched together, without FUSE.
//
// Nothing is read before it is asked for: volumes are scanned at the first
// question about them, and a volume's filesystem is opened when a node in it
// is. What was opened is kept for the life of the Tree.
//
// It promises:
//
//   - Walking and containing never leave the view, whatever the image holds:
//     ".." stops at its root, absolute links start there, and no more than
//     MaxLinks of them are followed.
//   - A volume that cannot be shown, or a mount that could not be found, is
//     in Problems. A gap is never hidden.
//   - A Windows guest's view has its drive letters in its root, which is the one
//     directory of Drives and lies on no volume.
//   - Of several volumes with the same UUID or name, a snapshot comes last.
//   - A view is finite: no directory is found again inside itself, whatever is
//     mounted where.
//   - Errors wrap the sentinels of guest/filesystem. Those are remembered
//     with the volume; any other (a store that does not answer, a deadline)
//     is tried again at the next call.
//   - A Visit gives names that are names, and each directory once, in a tree that
//     may hold anything. CopyOut, which is one, writes below its destination only.
//
// Every method may be called from many goroutines at once. Locks: a lazy
// value is computed by one goroutine, holding its turn; stitching takes the
// turn of the scan and of volumes, never the other way round.
package tree
