package backend

import "context"

// Strict is what a place offers that is made of several places: an object that
// decides against what others may be writing (an abort, a list of what is to
// be deleted) needs more of them than others do.
type Strict interface {
	// PutStrict is Put, and never succeeds together with a Put or another
	// PutStrict of other bytes under the same name, wherever that runs.
	PutStrict(ctx context.Context, name string, data []byte) error
}

// PutStrict puts an object strictly where the place makes a difference, and
// puts it as any other where a name has one place and one winner anyway.
func PutStrict(ctx context.Context, b Backend, name string, data []byte) error {
	if s, ok := b.(Strict); ok {
		return s.PutStrict(ctx, name, data)
	}
	return b.Put(ctx, name, data)
}
