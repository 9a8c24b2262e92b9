// Package fulldisk has the tests of disks that are full where cairn writes: the
// target of a restore, this host's cache, the other repository of a copy, the
// place of a repair. (Of a backup's and gc's repository see packages integration
// and chunkstore.) Nothing of it is a library; no guest is booted.
//
// What must hold: an exit code that is not 0; an error that names the place and
// says what to do next; no half file under a final name, or words that one was left
// there; a repository without damage; and the same command works once there is room.
package fulldisk
