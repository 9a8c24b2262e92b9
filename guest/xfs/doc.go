// Package xfs reads XFS filesystems, version 5 and 4, inside a disk image.
//
// It implements filesystem.Reader, FreeSpace and InodeRecords and keeps their
// promises. What it adds:
//
//   - A log that the guest left unfinished is replayed in memory, as the
//     kernel's recovery would replay it on the disk: later reads see the
//     metadata of its committed transactions. The sectors that changed are
//     held, up to a fixed amount; a log that changes more, or that cannot be
//     replayed, is told in Info().Notes and the tree is shown as it lies.
//   - Checksums (version 5) are verified on all metadata. What fails gives
//     ErrCorrupt for that inode or block; the rest stays readable. Blocks that
//     the log changed have no valid checksum before a mount; the log's own
//     checksums vouch for them.
//   - A damaged superblock is replaced by a copy in another allocation group.
//   - Memory does not grow with the filesystem: metadata blocks live in a
//     clock cache of fixed size, already verified, and extents are looked up
//     in place.
//   - Incompatible features that the code does not know are refused by name.
//
// Not shown: files on a realtime device, what an external log holds, and the
// end of an operation on file extents that the log has begun only (Notes
// names the inodes).
//
// The formats are those of "XFS Algorithms & Data Structures" (3rd edition,
// the chapters are named in the code) and, for what came later, of the
// kernel's fs/xfs/libxfs headers. All numbers on the disk are big-endian, but
// checksums and the insides of log items are little-endian.
//
// Locks: cache shards have one mutex each and notes have one; no code holds
// two, and none is held while the image is read.
package xfs
