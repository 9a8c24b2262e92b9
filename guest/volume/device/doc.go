// Package device is how block devices are made of block devices: pieces one
// behind the other, stripes, mirrors.
//
// A Device is read-only and may be read from many goroutines at once. It never
// contains itself: each is made of those that are there before it, so reading
// one ends. What lies below is asked for whole pieces; a part that is missing is
// an error and never zeros.
//
// Locate says on which disks the bytes of a Device lie, where that can be said
// in a few words.
package device
