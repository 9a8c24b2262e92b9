// Command bench measures cairn against restic and kopia on one corpus, in one sitting, and says for every target
// whether it was reached.
//
//	go run ./integration/bench [-work DIR] [-corpus DIR] [-only row,row] [-rounds N] [-peers restic,kopia] [-json FILE]
//
// The rows are
//
//	full    first backup of base.raw
//	day     the next day: the clusters of day1.dirty changed
//	lost    a backup without a bitmap: everything is read, almost nothing is stored
//	second  a second VM of the same distribution (clone.raw)
//	restore the disk to a sparse file
//	mount   cold: first listing, sequential read, random 4 KiB reads
//	copy    cp -a of 50,000 small files out of the guest's filesystem
//	idle    an incremental backup of an idle VM with a 1 TiB disk (cairn only)
//	disks   points of a VM with 26 disks: how long it stands still (cairn only)
//	nbd     reading one NBD export, beside nbdcopy
//	guest   what backups cost a guest that writes and flushes (cairn only)
//
// What it promises:
//
//   - Cairn reads from a real running QEMU (qcow2 disk, virtio-blk), never from the image file; its peers read the
//     raw file, which is what they can do. CPU time that QEMU spends for cairn is measured and shown beside it.
//   - The tools alternate inside every row of every round, and their order rotates by one from round to round. The
//     table shows medians, and ratios of medians; the JSON file holds every sample.
//   - Encryption and compression are on everywhere. Every round starts with fresh repositories.
//   - Nothing is taken from an earlier run or from a table: a target without a measurement is "not measured".
//   - What was backed up is compared with the corpus: a fast wrong answer fails the run (exit code 1). A target that
//     is missed does not: it is printed.
//
// It needs root (loop mounts, tmpfs, dropping the page cache), /dev/fuse, QEMU and about 20 GiB in -work.
// It imports no package of the product's: it sees the program as an operator does. The lab, whose guest writes in the
// row guest, is none.
package main
