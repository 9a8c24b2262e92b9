// Package chunkstore keeps bytes durably: chunks in packs in a place, found
// again by content, and small records with one name each. It has never heard
// of a VM.
//
// It promises:
//
//   - What a Session committed is durable, whole and readable; what it did
//     not commit leaves garbage at worst. The order (STORE-RULES.md section
//     1.2) is: data packs, map packs, the commit record, read back; only then
//     does Commit return.
//   - What Drop forgot is in no listing from then on, whoever lists; what is
//     pinned cannot be dropped. A drop that does not open forgets nothing.
//   - Every byte read was authenticated, or the error says ErrCorrupt.
//   - What is wrong with a stored object is a Fault: which object, what is
//     wrong, and which chunks cannot be had. Only what is missing or proven bad
//     is ever replaced, and only by bytes that its name or its seal proves.
//   - Memory is bounded whatever the amount of data: a Session holds some
//     70 MiB with a local place, 110 MiB with object storage, a Reader what its cache was given.
//   - No goroutine outlives the call or the Session that started it.
//
// Lock order: Session.mu before Reader's; no lock is held over a place's I/O
// except by single-flight callers waiting for the one that reads.
//
// FORMAT.md in this folder names every stored byte.
package chunkstore
