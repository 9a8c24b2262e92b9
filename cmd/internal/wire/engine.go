package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/engine"
	"cairn/chunkstore/backend/s3"
)

// ErrAlone: gc was refused, because it would not be safe beside others.
var ErrAlone = errors.New("gc beside other hosts or backups is refused")

// ErrEngine: object storage that would lose data of several writers.
var ErrEngine = errors.New("this object storage cannot hold a shared repository")

// NewBucket says how InitBucket makes a repository.
type NewBucket struct {
	Make    bool                  // the bucket, if there is none
	Force   bool                  // take an engine that did not pass its check
	Checked func(*engine.Verdict) // hears of the check; nil: nobody
}

// InitBucket makes a repository in a bucket whose engine it checks before. The
// verdict is stored, too.
func InitBucket(ctx context.Context, spec string, o chunkstore.InitOptions, n NewBucket) (*chunkstore.Config, error) {
	place, err := openBucket(ctx, spec, n.Make)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	if _, err := chunkstore.ReadConfig(ctx, place); err == nil {
		return nil, fmt.Errorf("%w at %s", chunkstore.ErrRepositoryExists, spec)
	} else if !errors.Is(err, chunkstore.ErrNoRepository) {
		return nil, err
	}
	v, err := engine.Check(ctx, place, o.Now())
	if err != nil {
		return nil, fmt.Errorf("check the engine: %w", err)
	}
	if n.Checked != nil {
		n.Checked(v)
	}
	if !v.Good() && !n.Force {
		return nil, fmt.Errorf("%w: %s: use another engine or a newer version of it; --force takes it for one host alone, which must be the only one that ever writes to it", ErrEngine, v.Reasons())
	}
	c, err := chunkstore.Init(ctx, place, o)
	if err != nil {
		return nil, err
	}
	return c, engine.Store(ctx, place, v)
}

// CheckEngine checks the place of a repository, which needs no key, and stores
// the verdict there.
func CheckEngine(ctx context.Context, spec string, now time.Time) (*engine.Verdict, error) {
	place, _, err := openPlace(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	v, err := engine.Check(ctx, place, now)
	if err != nil {
		return nil, fmt.Errorf("check the engine: %w", err)
	}
	return v, engine.Store(ctx, place, v)
}

// LastVerdict gives what the last check of the repository's place found, or
// engine.ErrNoVerdict.
func (r *Repo) LastVerdict(ctx context.Context) (*engine.Verdict, error) {
	return engine.Last(ctx, r.place)
}

// MayCollect refuses gc in a bucket whose engine did not pass its last check:
// gc and the backups that run decide by create-only who of them wins, and gc
// takes for dead what is not listed. A bucket that was never checked, of an older
// Cairn, is told of elsewhere.
func (r *Repo) MayCollect(ctx context.Context) error {
	if !IsBucket(r.Path) {
		return nil
	}
	v, err := r.LastVerdict(ctx)
	switch {
	case errors.Is(err, engine.ErrNoVerdict):
		return nil
	case err != nil:
		return fmt.Errorf("%w: the last check of the engine cannot be read: %w: run cairn engine check", ErrAlone, err)
	case !v.Good():
		return fmt.Errorf("%w: the engine did not pass its last check (%s): a backup that commits while gc decides could lose data: use another engine or a bucket without versions (cairn copy --all moves the points), then cairn engine check; while no backup and no other cairn runs on any host, --alone collects",
			ErrAlone, v.Reasons())
	}
	return nil
}

// Uncover gives fn each object of a bucket that something newer than since hides
// or replaces; those for which it says so are uncovered.
func Uncover(ctx context.Context, spec string, since time.Time, fn func(s3.Covered) (bool, error)) error {
	if !IsBucket(spec) {
		return fmt.Errorf("%s is a folder: only object storage keeps versions of what was deleted", spec)
	}
	place, err := OpenPlace(ctx, spec)
	if err != nil {
		return err
	}
	defer place.Close()
	bucket, ok := place.(*s3.Bucket)
	if !ok {
		panic("internal error: a bucket is no *s3.Bucket")
	}
	return bucket.Covered(ctx, func(c s3.Covered) error {
		if c.Since.Before(since) {
			return nil
		}
		do, err := fn(c)
		if err != nil || !do {
			return err
		}
		return bucket.Uncover(ctx, c)
	})
}
