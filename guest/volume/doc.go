// Package volume finds the volumes on a guest's disks: partitions and whole
// disks, what lies on them, and the reader that opens it.
//
// It promises:
//
//   - Every partition of a table is listed, also one that cannot be opened;
//     Reason and Notes say why. Nothing is hidden.
//   - Partition tables are hostile input: their size is bounded before it is
//     read, chains of logical partitions are followed at most maxLogical
//     links and never twice over the same sector, and an entry that leaves
//     the disk is clipped or refused, never followed.
//   - A damaged GPT is read from its backup, with a note.
//
// Scan reads a few hundred KiB per disk and volume and keeps none of it. A
// Set may be used from many goroutines at once.
//
// A new reader is one row in the table of kinds in kind.go; a new format to
// recognise is one function in probe.go.
package volume
