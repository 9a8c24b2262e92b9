// Package receive writes what the host puts back into the running guest: the
// answer to the call "put". On other systems than Linux it says that it cannot.
//
// It promises:
//
//   - Until everything is written, on the disk, read back and found right, every
//     target is as it was; then each one is exchanged in one step (renameat2).
//     What was there is removed only after that. If anything fails, or somebody
//     hangs up, pulls the plug or kills the agent, the targets are as they were,
//     and what was written beside is removed, at the agent's next start at the
//     latest.
//   - Nothing is written anywhere else, whatever the stream holds and whatever
//     users of the guest do meanwhile. The way to a target is walked name by
//     name; of symbolic links on it only those that belong to root are followed.
//     All else happens relative to open directories, in a directory beside the
//     target that nobody but root can enter.
//   - What could not be kept is in the result. A file of which the contents are
//     not complete and right is lost, and then nothing is replaced.
//   - Memory does not grow with what is put.
//
// # Order, and what a crash leaves
//
//	journal "staging"     fsynced        a crash: the folders beside are removed
//	folders beside        .X.cairn-put in each target's folder, mode 0700:
//	                      new (the tree), links/N (further names to come)
//	write, sync, verify
//	journal "exchanging"  with the inodes of what is new; a crash: what was
//	                      exchanged is exchanged back, then as above; when
//	                      all was, the put is done
//	exchange              new <-> target
//	journal "done"        fsynced after the targets' folders; a crash: the
//	                      folders beside are removed
//	remove the folders beside, which hold what was there; remove the journal
//
// openat2 is not used to walk: kernels before 5.6 lack it, and opening one name
// at a time with O_NOFOLLOW gives the same.
//
// Goroutines: one reads the stream and writes; a second one syncs, reads back
// and compares what the first has finished.
package receive
