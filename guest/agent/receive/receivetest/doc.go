// Package receivetest makes trees of awkward files on real filesystems and
// compares what became of them, for tests of putting files back.
package receivetest
