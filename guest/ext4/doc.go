// Package ext4 reads ext2, ext3 and ext4 filesystems inside a disk image.
//
// It implements filesystem.Reader and keeps its promises. What it adds:
//
//   - A journal that the guest left unfinished is replayed in memory: later
//     reads see the blocks of its committed transactions. Only the place of
//     each replayed block is held (32 bytes), never its contents.
//   - Checksums (metadata_csum, uninit_bg) are verified where they exist.
//     What fails gives ErrCorrupt for that inode, directory block or extent
//     block; the rest of the filesystem stays readable.
//   - A damaged superblock or group descriptor is replaced by a backup copy,
//     and Info().Notes says so.
//   - Memory does not grow with the filesystem: metadata blocks live in a
//     clock cache of fixed size, already verified, and everything is parsed
//     in place. Nothing is loaded per group or per inode.
//   - Incompatible features that the code does not know are refused by name.
//
// Not shown: what fast commits hold behind the last full commit, what an
// external journal holds, and the contents, link targets and plain names of
// encrypted files (their names appear in the coded form that Linux shows
// without the key). Info().Notes tells when that applies.
//
// The formats are those of the kernel's Documentation/filesystems/ext4.
// All offsets in the code are bytes inside the structure that is read, all
// numbers are little-endian except in the journal, which is big-endian.
//
// Locks: cache shards have one mutex each and notes have one; no code holds
// two, and none is held while the image is read.
package ext4
