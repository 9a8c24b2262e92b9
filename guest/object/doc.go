// Package object is the vocabulary of system objects: an application, a
// container, a user profile or a set of files inside a guest, and the document
// in which an agent, or a look into the image, describes them.
//
// It promises:
//
//   - A Document that Decode gave is bounded: sizes, counts, names and depths
//     are within the limits of this package, whoever wrote it. Names can be
//     directory names; paths are absolute and clean.
//   - A document has one spelling: Encode of what Decode gave is the same
//     bytes, so that its digest can be checked wherever it is kept.
//
// The package imports nothing of Cairn.
package object
