// Package stagetest has real filesystems that tests may freeze.
//
// They are mounted in a mount namespace of their own, below a directory of their
// own. It promises that none stays frozen, however the test ends: a process of
// its own thaws what is left, also when the test is killed. A filesystem that
// stays frozen wedges the machine.
package stagetest
