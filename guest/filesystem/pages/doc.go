// Package pages reads an image by pages of 4 KiB and keeps those that were read
// last: for readers of filesystems whose metadata has no checksums and lies
// anywhere.
//
// It promises: memory is bounded (4 MiB for each Image); what it gives is never
// changed by it, and must not be by others; it may be used from many goroutines.
// The cache's shards have one mutex each, which is not held while the image is
// read.
package pages
