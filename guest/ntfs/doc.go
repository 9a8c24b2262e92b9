// Package ntfs reads NTFS 3.0 and 3.1, as Windows and ntfs-3g write them.
//
// It promises, beside what guest/filesystem does:
//
//   - Compressed, sparse and fragmented files, alternate data streams (as
//     attributes user.NAME, up to 64 KiB each), hard links, reparse points and
//     the special files of WSL and Interix are shown. What Windows encrypted,
//     deduplicated or compressed with CompactOS is listed, and reading it says
//     why it cannot be.
//   - Names are UTF-16 in NTFS; they are given in UTF-8, lone surrogates in
//     WTF-8, so that no two names become one. 8.3 names are left out.
//   - Directories have mode 0755, files 0644, or 0444 if they are read-only;
//     NTFS' security descriptors are not read. The owner is 0.
//
// The log, $LogFile, is not replayed: a volume that Windows did not unmount or
// freeze shows what had reached the disk, and a note says so.
//
// The reader is our own and not a library: the one that could be had reads
// without a bound on time and memory, gives wrong bytes of some compressed
// files, and cannot be told to stop.
//
// Sources: libyal's libfsntfs documentation; MS-XCA section 2.5 (LZNT1);
// MS-FSCC section 2.1.2 (reparse points); ntfs-3g's behaviour.
package ntfs
