// Package catalogue is what files each restore point holds: a tree of
// directory nodes for each volume of a point, with the attributes of all that
// lies in it, so that questions over many points need no guest data.
//
// Nodes are records of map packs, immutable and shared between points: a
// directory in which nothing changed, with all below it, costs a new point
// nothing. A node's hash covers all below it: where two points have equal
// hashes, nothing differs.
//
// It promises:
//
//   - What a catalogue says is what a walk of the point's volumes says; what
//     could not be read is marked, never left out.
//   - A catalogue can always be made again from its point: it is a help, not
//     a part of the backup. Nothing depends on it for correctness, and a
//     point without one is walked.
//   - Nodes are read as hostile input: damaged ones give an error.
//
// FORMAT.md in this folder names every stored byte.
//
// It imports the vocabulary of guest/filesystem, chunkstore's chunk and
// index/restorepoint.
package catalogue
