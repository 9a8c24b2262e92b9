// Package md reads Linux' software RAID: the superblocks of members, and the
// bytes of the arrays that they make.
//
// It promises:
//
//   - Superblocks are hostile input: each is checked by its checksum, every
//     size is bounded by the device that it lies on, and what does not fit is
//     an error that wraps filesystem.ErrCorrupt.
//   - Only members that were up to date when the array was last written are
//     read. An array from which too many are missing, or that was being
//     reshaped, is refused with the reason.
//   - Of RAID 4 and 5, and of RAID 6 from its first parity, one missing
//     member's data is computed, unless the parity was being written.
//
// Formats: Linux' include/uapi/linux/raid/md_p.h, "RAID superblock formats" of
// the Linux RAID wiki; layouts: drivers/md of Linux.
package md
