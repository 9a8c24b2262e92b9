// Package local is a directory as a place.
//
// Put follows STORE-RULES.md section 1.1: temporary file in the object's
// directory, write, fsync, link under the final name (which fails when the
// name is taken), fsync of the directory and of each new ancestor. A crash at
// any instant leaves either no object or a whole one, and at worst a
// temporary file ".tmp-…", which no listing shows and Open's Sweep removes.
// What another process wrote can be seen before it is durable, when that
// process was killed in between: Put syncs a name that is taken, too, and each
// folder's name once; for all else there is Sync.
// A large object goes past the page cache where the filesystem can do that; it
// is synced like any other.
// The first fsync error poisons the file: it is removed and the error
// returned; the caller may Put again from memory.
//
// A place that is known by an object (KnowBy) is backend.ErrAway while that is not
// there: an empty folder is what a disk leaves that is not mounted any more.
package local
