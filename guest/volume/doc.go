// Package volume finds the volumes on a guest's disks: partitions and whole
// disks, the arrays and logical volumes that are made of them, what lies on
// those, and the reader that opens it.
//
// It promises:
//
//   - Every partition of a table, every array and every logical volume is
//     listed, also one that cannot be opened; Reason and Notes say why. Nothing
//     is hidden.
//   - Partition tables are hostile input: their size is bounded before it is
//     read, chains of logical partitions are followed at most maxLogical
//     links and never twice over the same sector, and an entry that leaves
//     the disk is clipped or refused, never followed. So are the metadata of
//     arrays and groups: see the packages md and lvm. What lies in what is
//     followed through maxLayers devices, and each array and each group is made
//     once.
//   - A damaged GPT is read from its backup, with a note.
//   - Arrays, groups and volumes are told apart by their UUIDs, so that equal
//     names do not clash.
//   - What a volume's Extents leaves out, nobody may take for free because the
//     volume's filesystem does not use it.
//
// Scan reads a few hundred KiB per disk and volume, and the metadata of groups.
// A Set may be used from many goroutines at once.
//
// A new reader is one row in the table of kinds in kind.go; a new format to
// recognise is one row in magic.go or one function in probe.go.
package volume
