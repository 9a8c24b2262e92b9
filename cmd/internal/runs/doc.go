// Package runs is what `cairn serve` knows of its work: the book of runs, which
// survives a kill, and the state of the moment. The scheduler writes both; the
// web page and the metrics read them.
//
// A run is one piece of scheduled work: the backup of one VM, or one forget, gc
// or check of one repository. Begin writes it to the book before it does
// anything, End when it is over; a run that has begun and not ended when the book
// is opened was killed with the daemon (Unfinished).
//
// # The book on disk
//
// One folder, in it a file for each day (UTC) on which runs began or ended:
//
//	2026-11-29.jsonl   one line for each Begin and each End: a Run in JSON
//
// A line is appended in one write and made durable before the call returns. A
// last line without its end is what a kill left, and is not counted; any other
// damaged line is skipped and told of (Book.Damaged). Days are removed when
// they are older than 400 days or when all of them take more than 1 GiB, oldest
// first; what each VM's last run and last good run were is kept.
//
// In memory is a run without its log, and of at most 20,000 runs; a log, and
// older runs, are read from their file.
package runs
