// Package backend is what a place can do: hold immutable objects by name.
//
// An implementation promises: an object under its final name is whole, and is
// durable (but for one whose writer was killed right then: see Syncer); it was
// created once and never changes; of several creators of one name exactly one
// wins and the others get ErrExist. Names are slash-separated with lower-case
// letters, digits, '-' and '.'. backendtest holds every implementation to this.
// The package imports nothing of Cairn.
package backend
