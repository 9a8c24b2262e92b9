// Package lvm reads LVM2: the labels and metadata of physical volumes, and the
// bytes of logical volumes.
//
// It promises:
//
//   - Metadata is hostile input. Labels and texts count only with their right
//     checksum; their sizes are bounded; the text is parsed without recursion;
//     volumes that contain themselves are cut. What does not fit is an error
//     that wraps filesystem.ErrCorrupt.
//   - Of all metadata of a group the newest counts. Groups and volumes are told
//     apart by their UUIDs, never by their names.
//   - Linear and striped volumes, mirrors, RAID 0 and 1, classic snapshots and
//     their origins, and thin volumes are read as the kernel's device-mapper
//     would. All others are listed, with the reason.
//   - A missing physical volume costs only the logical volumes that need it.
//
// Formats: libvslvm's "Logical Volume Manager (LVM) format"; device-mapper's
// documentation in the Linux kernel; drivers/md/dm-exception-store.h,
// dm-thin-metadata.c and persistent-data/ for the structures that those leave
// out.
package lvm
