// Package catalogue is what files each restore point holds: a tree of
// directory nodes for each volume of a point, with the attributes of all that
// lies in it, so that questions over many points need no guest data.
//
// Nodes are records of map packs, immutable and shared between points: a
// directory in which nothing changed, with all below it, costs a new point
// nothing. A node's hash covers all below it: where two points have equal
// hashes, nothing differs.
//
// Questions are asked of a Past, many points looked at together (Find, Log,
// Union), or of two of them (Diff). Points come from an Opener.
//
// It promises:
//
//   - What a catalogue says is what a walk of the point's volumes says; what
//     could not be read is marked, never left out.
//   - A catalogue can always be made again from its point: it is a help, not
//     a part of the backup. Nothing depends on it for correctness, and a
//     point without one is walked.
//   - Nodes are read as hostile input: damaged ones give an error.
//   - A question reads what points share once, and one large directory's few
//     forms at a time. What could not be read is told, and hides nothing else;
//     it is never taken for removed.
//   - Two versions of a file are told apart by size, times and inode. Where only
//     times or the inode differ, the caller may have contents compared.
//
// FORMAT.md in this folder names every stored byte.
//
// It imports the vocabulary of guest/filesystem, chunkstore's chunk and
// index/restorepoint.
package catalogue
