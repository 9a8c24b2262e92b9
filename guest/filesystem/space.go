package filesystem

import "context"

// FreeSpace is a Reader that knows which bytes of its volume nothing uses. A
// full backup leaves those out.
type FreeSpace interface {
	// Free calls fn for ranges [start, end) in bytes of the volume, ascending
	// and apart from each other, whose contents nobody will ever read: neither
	// a file nor the filesystem itself, after a replay of its journal as
	// before it. It errs towards "used": what lies under a damaged or
	// unknown part of the allocation map, and the whole volume where a log
	// that is not replayed could still bring blocks back, is not given.
	// The error is of fn, of ctx, or says why nothing more can be told.
	Free(ctx context.Context, fn func(start, end int64) error) error
}

// InodeRecords is a Reader of a filesystem whose inodes lie in records with
// fixed places, so that the inodes that changed between two instants can be
// found by the blocks that changed.
type InodeRecords interface {
	// Record gives the range of the volume, in bytes, that holds an inode's
	// record. All that Attr, ReadDir, Readlink, Xattrs and the contents of
	// the inode give only changes together with a byte of this range (a
	// directory's times change with its entries, a file's with its contents).
	// Where that does not hold, as without a replay of what needs one, there is
	// an error for every inode.
	Record(ctx context.Context, ino Ino) (start, end int64, err error)
	// Replayed calls fn for the ranges of the volume, in bytes, which the
	// Reader sees otherwise than they lie there, because it replayed a
	// journal.
	Replayed(fn func(start, end int64))
}
