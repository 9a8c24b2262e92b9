package backend

import "context"

// Replacer is a place in which what is deleted may free no room (a snapshot holds it):
// there other bytes take a name when they are stored, at no instant is nothing there.
type Replacer interface {
	// Replaces says whether it does so here.
	Replaces() bool
	// Replace puts data in the place of an object, which is there. A crash leaves the
	// old one or the new one, and so does an error.
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
