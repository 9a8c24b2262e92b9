// Package disktrouble has the tests of disks that are full where cairn writes (the
// target of a restore, this host's cache, the other repository of a copy, the place
// of a repair), and of file systems that are not mounted, or go away, where it has its
// repository. (Of a backup's and gc's full repository see packages integration and
// chunkstore.) Nothing of it is a library; no guest is booted.
//
// What must hold of a full disk: an exit code that is not 0; an error that names the
// place and says what to do next; no half file under a final name, or words that one
// was left there; a repository without damage; and the same command works once there
// is room. Of a file system that is away: it is said, and taken neither for a
// repository without points nor for damage; nothing is written where it was mounted;
// and when it is back, so is all else.
package disktrouble
