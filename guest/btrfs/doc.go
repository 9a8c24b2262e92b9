// Package btrfs reads btrfs on one or more devices.
//
// It promises, beside what guest/filesystem does:
//
//   - The top directory is that of the whole filesystem (subvolume 5); every
//     subvolume and snapshot is a directory where it lies in it. Info.Home is
//     the path of the default subvolume.
//   - Inode numbers are unique in all subvolumes: the place of the subvolume
//     among all, in the order of their numbers, times 2^32, plus the number that
//     the guest's stat(2) shows. Where that does not fit, the number has bit 63.
//   - Metadata is verified by its checksum, and another copy is read where there
//     is one. Contents are not verified; another copy is read on an I/O error.
//   - single, DUP, RAID 0, 1, 1C3, 1C4, 10 are read as long as a copy of what is
//     asked for is there; RAID 5 and 6 while all devices that hold data are.
//   - The log tree, which holds what programs have synced since the last commit
//     (30 seconds at most), is not replayed; a note says so.
//
// Sources: btrfs.readthedocs.io, "On-disk format" and "Btrees"; the structures
// of include/uapi/linux/btrfs_tree.h.
package btrfs
