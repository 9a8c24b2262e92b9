package backend

import "context"

// Syncer is a place in which an object can be seen before it is durable: its
// writer may have been killed between the two. Who relies on what another one
// wrote, and was not told by that one that it is durable, syncs it first.
type Syncer interface {
	// Syncs says whether that can happen here.
	Syncs() bool
	// Sync makes durable that the objects are there which were seen directly
	// under prefix, which ends with '/'.
	Sync(ctx context.Context, prefix string) error
}

// Syncs says whether an object can be seen in a place before it is durable.
func Syncs(b Backend) bool {
	s, ok := b.(Syncer)
	return ok && s.Syncs()
}

// Sync makes durable what was seen under prefix, where that can be otherwise.
func Sync(ctx context.Context, b Backend, prefix string) error {
	if !Syncs(b) {
		return nil
	}
	return b.(Syncer).Sync(ctx, prefix)
}
