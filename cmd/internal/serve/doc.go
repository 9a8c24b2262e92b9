// Package serve is `cairn serve`: it makes what the configuration's jobs ask for
// happen when it is due, on a host that nobody looks at.
//
// # Parts
//
//	plan     pure: configuration, book, VMs, clock → what begins, what waits and why
//	daemon   the loop: it plans, begins, hears of ends, and writes the book
//	worker   processes that do the runs; one each for backups and for upkeep of a
//	         repository, while there is work for it
//	look     what a VM is like now: off, how much has changed, where its images are
//	seen     the small file of when a job and a VM were first seen together
//
// # What it promises
//
// A slot is a moment at which a job was due for a VM. Of each VM and job the
// newest slot that has come is run, once: whatever was missed before it is made
// up for by that one run. Slots of several jobs for one VM, in one repository,
// that wait together are one run. A run that fails is tried again, later each
// time, until the next slot comes. A slot is over when the book of runs (package
// runs) has a run of it that was good, or skipped.
//
// All that must survive is in the book, which is durable before a run begins and
// when it ends. After a kill the book names the runs that were going on; each
// point says in its manifest which run made it, so that a run whose point was
// committed before the kill counts as made, and none is made twice.
//
// Nothing is decided by how long ago something was by the clock alone: a clock
// that jumps ahead makes one run due per VM, and one that jumps back none twice.
//
// The host's limits of reading and writing are divided among the workers that do
// something, evenly, whenever that changes; a repository's and a job's are its own.
//
// A guest's data is only read in workers: whatever it makes them do, the daemon
// goes on. A worker dies with the daemon; the guardian of each run (package job)
// then cleans up in the VM.
package serve
