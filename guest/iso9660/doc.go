// Package iso9660 reads ISO 9660 filesystems (CD and DVD images) inside a disk
// image, with the Rock Ridge and Joliet extensions.
//
// It implements filesystem.Reader and keeps its promises. It shows what Linux
// shows:
//
//   - With Rock Ridge: names, modes, owners, links, devices, symbolic links,
//     times, and directories that were moved up because they lay too deep, in
//     their real place.
//   - Else with Joliet: its names as UTF-8 (WTF-8 for lone surrogates).
//   - Else plain names in lower case and without their version ";1". Modes
//     are 0555 and everything is root's.
//
// An inode number is the byte of the image where the directory record lies; a
// directory's is that of its own first record. Files of several extents are
// one file. No disk of this kind has free space or holes.
//
// Not read, and said so by ErrUnsupported: files that are interleaved, sparse
// by Rock Ridge, or compressed (zisofs). Of a disk with several sessions the
// first is shown. A name of 254 bytes or more, which Linux cuts, is whole. UDF on the same disk is not looked at.
//
// The formats are those of ECMA-119, of the System Use Sharing Protocol 1.12
// (IEEE P1281), of the Rock Ridge Interchange Protocol 1.12 (IEEE P1282) and of
// Microsoft's Joliet specification. Numbers stand there in both byte orders;
// the little-endian one is read.
//
// Memory does not grow with the filesystem: pages of directories live in a
// clock cache of 4 MiB, whose shards have one mutex each.
package iso9660
