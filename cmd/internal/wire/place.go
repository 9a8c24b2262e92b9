package wire

import (
	"context"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
)

// Place is an open place. It is closed by whoever opened it.
type Place interface {
	backend.Backend
	Close() error
}

// sweeper is a place in which killed writers leave something half-written.
type sweeper interface {
	Sweep(now time.Time, age time.Duration) (removed int, err error)
}

// OpenPlace opens the place that spec names, or, where that belongs to a
// repository of several places, all of them. backend.ErrNotExist when there is
// none.
func OpenPlace(ctx context.Context, spec string) (Place, error) {
	place, err := openOne(ctx, spec)
	if err != nil {
		return nil, err
	}
	return openSpread(ctx, spec, place)
}

// openOne opens the place that spec names by itself: a folder.
func openOne(_ context.Context, spec string) (Place, error) {
	place, err := local.Open(spec)
	if err != nil {
		return nil, err // not the nil *local.Dir in an interface
	}
	return place, nil
}

// createOne makes a place that spec names, if need be, and opens it.
func createOne(_ context.Context, spec string) (Place, error) {
	place, err := local.Create(spec)
	if err != nil {
		return nil, err
	}
	return place, nil
}
