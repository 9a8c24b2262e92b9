// Package btrfs reads btrfs filesystems on one or more devices.
//
// It implements filesystem.Reader and filesystem.FreeSpace and keeps their
// promises. What it adds:
//
//   - The top directory is always that of the top level (subvolume 5). Every
//     other subvolume and snapshot is a directory where the guest has it.
//     Info().Home is the path of the default subvolume. Where a tree names a
//     subvolume that lives elsewhere, as a snapshot of a tree with subvolumes
//     does, there is an empty directory (a stub), as Linux shows it.
//   - Checksums of metadata and of data are verified (CRC-32C, xxHash64,
//     SHA-256, BLAKE2b). Where one does not fit or a device cannot be read,
//     the other copies are tried: DUP, RAID1, RAID1C3, RAID1C4, RAID10.
//   - RAID5 and RAID6 are read while their devices are there; nothing is
//     rebuilt from parity.
//   - The newest valid of a device's superblocks is used, and of all devices
//     the newest decides. A device that missed commits is read last.
//   - Free space is told of a filesystem on one device, and of none that has a
//     log tree.
//   - What the log tree of an unclean filesystem holds is replayed in memory;
//     see replay.go for what that is.
//   - Memory does not grow with the filesystem, but for 64 bytes per
//     subvolume and about 100 per chunk: nodes live in a clock cache of fixed
//     size, already verified, and so do decompressed extents.
//   - Incompatible features that the code does not know are refused by name.
//
// # Inode numbers
//
// Each subvolume counts its inodes by itself, so a Reader's number has the
// subvolume too: bits 32 to 61 are its ordinal among all of this restore
// point, by id (0: the top level), bit 31 says that it is a stub, and bits 0 to
// 30 are the guest's inode number, or the stub's subvolume. Numbers from 2^31
// on have another form: bit 63 is set, bit 62 says that it is a stub, bits 48
// to 61 are the ordinal and bits 0 to 47 the number. The top level's inodes
// thus have the numbers that the guest shows. The same restore point always
// gives the same numbers; another point need not.
//
// The formats are those of btrfs.readthedocs.io, "On-disk format" and
// "Btrees". All offsets in the code are bytes inside the structure that is
// read, all numbers are little-endian.
//
// Locks: cache shards have one mutex each and notes have one; no code holds
// two, and none is held while a device is read.
package btrfs
