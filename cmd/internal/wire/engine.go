package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
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
	v, err := n.check(ctx, spec, place, o.Now())
	if err != nil {
		return nil, err
	}
	c, err := chunkstore.Init(ctx, place, o)
	if err != nil {
		return nil, err
	}
	return c, engine.Store(ctx, place, "", v)
}

// check measures the engine of a bucket that shall hold a repository, and
// refuses a bad one.
func (n NewBucket) check(ctx context.Context, spec string, place backend.Backend, now time.Time) (*engine.Verdict, error) {
	v, err := engine.Check(ctx, place, now)
	if err != nil {
		return nil, fmt.Errorf("check the engine of %s: %w", spec, err)
	}
	if n.Checked != nil {
		n.Checked(v)
	}
	if !v.Good() && !n.Force {
		return nil, fmt.Errorf("%w: %s: use another engine or a newer version of it; --force takes it for one host alone, which must be the only one that ever writes to it", ErrEngine, v.Reasons())
	}
	return v, nil
}

// Engine is object storage that holds a repository or one of its places.
type Engine struct {
	Spec string

	id    string          // the place's; "" if it is all of the repository
	place backend.Backend // nil: it is away
}

// engines gives the object storage that a place is or consists of.
func engines(spec string, p Place) (list []Engine) {
	all, ok := p.(*spreadPlace)
	if !ok {
		if IsBucket(spec) {
			list = append(list, Engine{spec, "", p})
		}
		return list
	}
	for _, at := range all.layout.Places {
		if !IsBucket(at.Spec) {
			continue
		}
		e := Engine{Spec: at.Spec, id: at.ID}
		if m, ok := all.Member(cmp.Or(at.Slot, at.ID)); ok {
			e.place = m.Place
		}
		list = append(list, e)
	}
	return list
}

// CheckEngines checks the object storage of a repository, which needs no key,
// and stores the verdicts there; a repository of folders is checked itself. tell
// hears of each.
func CheckEngines(ctx context.Context, spec string, now time.Time, tell func(Engine, *engine.Verdict) error) error {
	place, _, err := openPlace(ctx, spec)
	if err != nil {
		return err
	}
	defer place.Close()
	list := engines(spec, place)
	if len(list) == 0 {
		list = []Engine{{spec, "", place}}
	}
	var errs []error
	for _, e := range list {
		if e.place == nil {
			errs = append(errs, fmt.Errorf("%s is away: it was not checked", e.Spec))
			continue
		}
		v, err := engine.Check(ctx, e.place, now)
		if err != nil {
			errs = append(errs, fmt.Errorf("check the engine of %s: %w", e.Spec, err))
			continue
		}
		errs = append(errs, tell(e, v), engine.Store(ctx, place, e.id, v))
	}
	return errors.Join(errs...)
}

// Engines gives the object storage of the repository.
func (r *Repo) Engines() []Engine { return engines(r.Path, r.place) }

// LastVerdict gives what the last check of an engine found, or
// engine.ErrNoVerdict.
func (r *Repo) LastVerdict(ctx context.Context, e Engine) (*engine.Verdict, error) {
	return engine.Last(ctx, r.place, e.id)
}

// MayCollect refuses gc in a bucket whose engine did not pass its last check:
// gc and the backups that run decide by create-only who of them wins, and gc
// takes for dead what is not listed. A bucket that was never checked, of an older
// Cairn, is told of elsewhere.
func (r *Repo) MayCollect(ctx context.Context) error {
	for _, e := range r.Engines() {
		v, err := r.LastVerdict(ctx, e)
		switch {
		case errors.Is(err, engine.ErrNoVerdict):
		case err != nil:
			return fmt.Errorf("%w: the last check of the engine of %s cannot be read: %w: run cairn engine check", ErrAlone, e.Spec, err)
		case !v.Good():
			return fmt.Errorf("%w: the engine of %s did not pass its last check (%s): a backup that commits while gc decides could lose data: use another engine or a bucket without versions (cairn copy --all moves the points), then cairn engine check; while no backup and no other cairn runs on any host, --alone collects",
				ErrAlone, e.Spec, v.Reasons())
		}
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
