// Package filesystem is the vocabulary of the readers of guest filesystems.
//
// A reader shows one filesystem inside a disk image, read-only, by inode and
// never by path. It promises:
//
//   - Damaged or hostile input gives an error that wraps ErrCorrupt. It never
//     panics, never loops without a bound, and never allocates more than the
//     format allows for the image's own size.
//   - Names, symbolic-link targets and extended attributes are the guest's raw
//     bytes, held in Go strings.
//   - Every method may be called from many goroutines at once.
//   - A context that ends stops the work soon, with the context's error.
//
// ReadFull and Notes help them to it. Implementations are held to this by
// filesystemtest. The package imports nothing of Cairn.
package filesystem
