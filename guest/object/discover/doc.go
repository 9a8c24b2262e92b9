// Package discover finds system objects by a guest's files alone: its
// configuration, its package database, its data directories. The inside agent
// uses it on the running guest, and adds what only a running one can tell; on a
// restore point without an agent's metadata it is all there is, and what it
// gives is then called derived.
//
// It promises that a hostile tree costs bounded time and memory, and that what
// it gives can be put into a document (object.Encode).
package discover
