// Package image is the images that a restore writes and compares: regular
// files and block devices that hold the disk's bytes, qcow2 of our own writing,
// and qcow2 that are there already, which qemu-nbd writes for us.
//
// It promises: a new file has its name only when it is whole, and nothing else
// beside it is touched; holes stay holes, and where old data lies they are made
// to read as zeros; an image that QEMU has open is refused, and while we write
// no VM can start on it; what was written is read back past the page cache and
// compared by chunk ID, so that ErrVerify is told and not found out later; a
// restore with Delta that is interrupted is finished by the next.
//
// Data goes past the page cache where the filesystem can do that.
package image
