// Package chunk is the unit of deduplication: 4 KiB of a disk, named by what
// it holds.
//
// Guest filesystems place data on 4 KiB blocks, so 4 KiB is where equal data
// of two VMs meets. A chunk's ID is the first 16 bytes of keyed BLAKE3 over
// its 4,096 bytes; the key belongs to one repository, so that nobody outside
// it can test for known content. A chunk of zeros is a hole and has no ID.
//
// The package imports nothing of Cairn.
package chunk
