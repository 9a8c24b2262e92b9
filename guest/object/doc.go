// Package object is the vocabulary of system objects: an application, a
// container, a user profile or a set of files inside a guest, and the document
// in which an agent, or a look into the image, describes them.
//
// It promises:
//
//   - A Document that Decode gave is bounded: sizes, counts, names and depths
//     are within the limits of this package, whoever wrote it, and so is the
//     memory that decoding it took. Names can be directory names; paths are
//     absolute and clean.
//   - Decode takes what Encode gave, and Encode of that is the same bytes.
//   - Bytes that Decode takes stay the same when they are put into another JSON
//     document and taken out again (json.RawMessage), so that their digest can
//     be checked there.
//
// The package imports nothing of Cairn.
package object
