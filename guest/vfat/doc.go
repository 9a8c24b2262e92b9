// Package vfat reads FAT12, FAT16, FAT32 and exFAT filesystems inside a disk
// image.
//
// It implements filesystem.Reader and filesystem.FreeSpace and keeps their
// promises. What a guest's Linux shows of them is what it shows:
//
//   - Modes are those of a mount with umask 022: 0755, and 0555 for what has
//     the read-only attribute (FAT: not for directories). Owner and group are
//     root's.
//   - A time without a zone, which is every time on FAT, is taken as UTC, as
//     by a Linux whose hardware clock is in UTC; nobody wrote down the guest's
//     zone. A time of exFAT with an offset from UTC is exact.
//   - Names are UTF-8. A lone half of a surrogate pair becomes the three bytes
//     that UTF-8 would have for it (WTF-8), so that no two names fall together.
//     Short names are of code page 437, in lower case where their flags say so.
//   - Lookup takes the exact name first, then one that differs in case only,
//     then the short alias of a long name.
//
// What is its own:
//
//   - An inode number is the place of the directory entry in the volume,
//     counted in entries of 32 bytes; it stays as long as the entry does. The
//     root is 1.
//   - A directory of FAT ends at its first entry that was never used, as the
//     specification has it and Windows does it; Linux reads on.
//   - A cluster that the FAT calls free is never read: a chain that runs into
//     one is damaged there. So Free can give every such cluster.
//   - A damaged boot sector is replaced by its backup (FAT32, exFAT), and
//     Info().Notes says so. The FAT that the boot sector calls active is read.
//   - An exFAT entry set whose checksum is wrong is listed when its name can
//     be read, and its inode gives ErrCorrupt.
//   - Memory does not grow with the filesystem: pages of the FAT and of
//     directories live in a clock cache of fixed size, and an open file holds
//     at most 16 KiB of places in its cluster chain. Only Free needs a bit per
//     cluster while it runs.
//
// The formats are those of Microsoft's "FAT32 File System Specification" 1.03
// (fatgen103) and "exFAT file system specification" 1.00. Numbers are
// little-endian; offsets in the code are bytes inside the structure.
//
// Locks: cache shards, chains and notes have one mutex each. A chain's is held
// while pages of the FAT are read, and then a shard's is taken for a moment.
package vfat
