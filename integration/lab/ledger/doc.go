// Package ledger is a truth that a guest writes all the time and that a test
// can check at any instant: numbered writes to raw disks, one after the other.
//
// Write n puts one block of 4 KiB at a place, with a content, on a disk, all of
// which follow from n alone. A write begins when the one before has ended. So
// what the disks hold together at one instant is exactly what the writes 1 to n
// leave, for one n; Check finds n and compares every block. A write that is
// missing, an old one that came back, a torn one, one of an instant later than
// the others, and disks that are not of the same instant: each of them shows.
//
// The places stay together for a while and then go elsewhere, so that most of
// QEMU's clusters of 64 KiB stay clean between two backups and a lost dirty bit
// is not soon covered up by the next write.
//
// Disks must be zeroed at the beginning, and have all their clusters
// allocated: then a QEMU that is killed loses no write that it has confirmed,
// because none waits for the image's metadata.
//
// The program in scribe writes; it runs in the guest.
package ledger
