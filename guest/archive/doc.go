// Package archive is a tree of files as a stream: what the host sends when
// files are put back into a running guest.
//
// tar is not used because it has no records for holes between data, needs a
// file's name before every block of what belongs to it, and has a spelling of
// its own for every attribute. What the package promises:
//
//   - A Reader takes bounded memory, whatever it reads. What it gives is well
//     formed: names are names, directories are entered and left in pairs, data
//     lies within its file and in order. Writer and Reader ask the same check.
//   - It does not promise that two entries of a directory have different names,
//     or that a digest is right: that is for whoever makes files of it.
//   - The work for a byte is one copy and, on the host, one Digest.
//
// # Stream
//
// All numbers are little-endian. Magic "\xca\x17put\x01\r\n", then records:
//
//	0  1  kind
//	1  3  length of the payload, at most 1 MiB and 8 bytes
//	4     payload
//
// Payloads, by kind:
//
//	 1 enter    entry: a directory; what follows is in it
//	 2 leave    entry: the directory's attributes, without a name
//	 3 file     entry: a regular file; its data and its end follow
//	 4 symlink  entry
//	 5 special  entry: a device node, FIFO or socket
//	 6 link     entry: a further name of an entry that had a link number
//	 7 lost     nothing: something of this directory could not be sent
//	 8 data     8 bytes offset, then 1 byte to 1 MiB; what is between is a hole
//	 9 end      16 bytes: the file's Digest
//	10 broken   nothing: the file before could not be read to its end
//	11 finish   nothing: the stream is complete
//
// An entry:
//
//	1+n  name
//	 8   link number: 0, or one that is higher than all before; a link: which
//	 4   mode; 4 uid; 4 gid; 4 major; 4 minor
//	 8   size
//	12   atime, 12 mtime: 8 bytes of seconds, 4 of nanoseconds
//	2+n  target of a symbolic link
//	 2   number of extended attributes, each 1+n name, 4+n value
package archive
