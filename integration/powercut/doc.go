// Package powercut is a disk whose power can be cut at any instant of its past.
//
// A Disk is an image file that a FUSE file system of our own shows, with a loop
// device and a real ext4, xfs or btrfs on it. What reaches the image is recorded in
// order: writes, flushes, and marks of whoever works there. From the
// recording an image is built as a cut of the power would have left it: all that
// was written before the last flush, and of the rest what a seed draws: nothing,
// all, the first part, or single sectors. A disk may do all of this; the kernel
// mounts the image and recovers what it can. Sectors are of 4 KiB and are written
// whole: xfs does not stand a block of which only some pieces of 512 bytes arrived
// (then it does not mount: EBADMSG), and no program can do anything about that.
//
// The process that serves FUSE is a child (Served): a Go program that uses a
// file system of its own comes to a standstill, as the runtime does not know
// which of its threads wait for it. All mounts are in a namespace of the tests'
// own (Private), so that they go with the process, however that ends.
//
// The tests drive the real store on such a disk (real_test.go), and hold what
// the program asks of the kernel against a golden (order_test.go).
//
//	CAIRN_CUT_SEED=7       another seed than 1, for one recording and its cuts
//	CAIRN_CUT_COUNT=3000   so many cuts, not 120
//	CAIRN_CUT_REPLAY=…     one cut of a recording that a failed test has kept
package powercut
