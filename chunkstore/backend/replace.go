package backend

import "context"

// Replacer is a place in which what is deleted may free no room (a snapshot holds it):
// there other bytes are put under a name that is taken only when they are stored.
type Replacer interface {
	// Replaces says whether it does so here.
	Replaces() bool
	// Replace puts data in the place of an object, which is there. A crash leaves the
	// old one, none, or the new one; an error before data is stored, the old one.
	Replace(ctx context.Context, name string, data []byte) error
}

// Replace is the place's, if it has one; ok is false if it has not: nothing was done.
func Replace(ctx context.Context, b Backend, name string, data []byte) (ok bool, err error) {
	r, has := b.(Replacer)
	if !has || !r.Replaces() {
		return false, nil
	}
	return true, r.Replace(ctx, name, data)
}
