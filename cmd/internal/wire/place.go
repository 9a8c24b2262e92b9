package wire

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/backend/s3"
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

// caFileKey is that of WithCAFile.
type caFileKey struct{}

// WithCAFile gives a context in which object storage is opened with the
// certificates of a file, beside the system's. With "" it is ctx.
func WithCAFile(ctx context.Context, file string) context.Context {
	if file == "" {
		return ctx
	}
	return context.WithValue(ctx, caFileKey{}, file)
}

// IsBucket says whether a place's name means object storage, which has no path
// on this host.
func IsBucket(spec string) bool { return s3.Is(spec) }

// AbsolutePlace gives the name by which a place is found from any folder.
func AbsolutePlace(spec string) (string, error) {
	if IsBucket(spec) {
		return spec, nil
	}
	return filepath.Abs(spec)
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

// openOne opens the place that spec names by itself: a folder, or a bucket as
// s3:https://HOST/BUCKET/PREFIX. backend.ErrNotExist when there is no such
// folder, s3.ErrNoBucket when there is no such bucket.
func openOne(ctx context.Context, spec string) (Place, error) {
	if IsBucket(spec) {
		return openBucket(ctx, spec, false)
	}
	place, err := local.Open(spec)
	if err != nil {
		return nil, err // not the nil *local.Dir in an interface
	}
	return place, nil
}

// createOne makes a folder that spec names, if need be, and opens it; a bucket
// must be there.
func createOne(ctx context.Context, spec string) (Place, error) {
	if IsBucket(spec) {
		return openBucket(ctx, spec, false)
	}
	place, err := local.Create(spec)
	if err != nil {
		return nil, err
	}
	return place, nil
}

func openBucket(ctx context.Context, spec string, makeBucket bool) (Place, error) {
	where, err := s3.Parse(spec)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", spec, err)
	}
	file, _ := ctx.Value(caFileKey{}).(string)
	bucket, err := s3.Open(ctx, where, s3.Options{CAFile: file, MakeBucket: makeBucket})
	if errors.Is(err, s3.ErrNoBucket) {
		return nil, fmt.Errorf("%w: %w", chunkstore.ErrNoRepository, err)
	}
	if err != nil {
		return nil, err // not the nil *s3.Bucket in an interface
	}
	return bucket, nil
}
