// Package library has the repositories of the configuration open for reading, for
// what `cairn serve` shows: the web page, and the shares of files.
//
// It promises:
//
//   - A Snapshot is in memory: it is given at once, whatever the repository does.
//     It says of which moment it is (AsOf), and why it is not newer (Problem).
//   - It is renewed in the background, after each change of the book of runs and
//     every few minutes.
//   - A repository that does not answer keeps nobody: who asks for its catalogue is
//     told after a few seconds, the others are not touched.
//   - The index of this host is never locked exclusively: it is read once, shared,
//     when a repository is opened for the first time, or not at all if it is in use.
//
// Memory: a Snapshot of 10,000 points is some 4 MiB (TestTenThousandPoints says what
// it is), with what the catalogue keeps of them some 6 MiB, and each repository has caches of FrameCache and the catalogue's nodes
// (16 MiB).
//
// Beside the points it keeps how large each repository was on each day, in a file of
// its own in the state folder: nothing else knows that afterwards.
package library
