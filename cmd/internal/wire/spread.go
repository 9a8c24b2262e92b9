package wire

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/engine"
	"cairn/chunkstore/backend/spread"
)

// spreadPlace is the places of a repository as one, and the door by which it
// was named.
type spreadPlace struct {
	*spread.Spread
	layout *spread.Layout
	door   Place
}

// Close implements Place.
func (p *spreadPlace) Close() error { return errors.Join(p.Spread.Close(), p.door.Close()) }

// openSpread opens all places of the repository that a door belongs to; a
// repository of one place without parity is its own door, and so is what holds
// none.
func openSpread(ctx context.Context, spec string, door Place) (Place, error) {
	c, err := chunkstore.ReadConfig(ctx, door)
	if err != nil || c.Layout() == nil {
		return door, nil //nolint:nilerr // whoever reads the config says what is wrong with it
	}
	p, err := openPlaces(ctx, spec, door, *c.Layout())
	if err != nil {
		return nil, errors.Join(err, door.Close())
	}
	return p, nil
}

func openPlaces(ctx context.Context, spec string, door Place, zero spread.Layout) (*spreadPlace, error) {
	known, err := spread.Known(ctx, door, zero)
	if err != nil {
		return nil, err
	}
	o := spreadOptions
	if _, id, err := spread.PlaceID(ctx, door); err == nil {
		o.Moved = map[string]string{id: spec} // whatever it was called when it was made
	}
	s, layout, err := spread.Open(ctx, known, func(ctx context.Context, at string) (backend.Backend, error) {
		return openNear(ctx, spec, at)
	}, o)
	if err != nil {
		return nil, err
	}
	return &spreadPlace{s, layout, door}, nil
}

// spreadOptions are those of every repository of several places: what is a
// decision against a session, and what of an object can be told without a key.
var spreadOptions = spread.Options{Strict: chunkstore.IsAbort, Verify: chunkstore.VerifyControl}

// trust lets the places tell which of their copies are whole with the keys that
// are open now.
func trust(place Place, s *chunkstore.Store) {
	if p, ok := place.(*spreadPlace); ok {
		p.VerifyWith(s.VerifyControl)
	}
}

// openNear opens a place where its spec says, or beside the door: places that
// were moved together are found by any of them. The error is never
// backend.ErrNotExist: a place that is not there says nothing of what is in it.
func openNear(ctx context.Context, door, spec string) (backend.Backend, error) {
	b, err := openOne(ctx, spec)
	if errors.Is(err, backend.ErrNotExist) && !isURL(spec) {
		if !isURL(door) {
			if near, nerr := openOne(ctx, filepath.Join(filepath.Dir(door), filepath.Base(spec))); nerr == nil {
				return near, nil
			}
		}
		return nil, errors.New("there is no such folder: is its disk mounted")
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

func isURL(spec string) bool { return IsBucket(spec) || strings.Contains(spec, "://") }

// absolute gives a spec that means the same from everywhere.
func absolute(spec string) (string, error) {
	if isURL(spec) {
		return spec, nil
	}
	return filepath.Abs(spec)
}

// ErrNoPlaces: the repository is one folder without parity.
var ErrNoPlaces = errors.New("the repository is one folder or bucket without parity: it has no places to look at")

// Warnings says what a person should know of the repository: which of its places
// are away, and what went wrong since it was opened; points that are gone, and
// points that were read and that no host vouches for. More may come while it
// is used.
func (r *Repo) Warnings() []string {
	all := r.witness.warnings(r.Store)
	if p, ok := r.place.(*spreadPlace); ok {
		all = append(all, p.Warnings()...)
	}
	return all
}

// Away gives the places that do not answer, of how many. It asks nobody.
func (r *Repo) Away() (away []string, of int) {
	if p, ok := r.place.(*spreadPlace); ok {
		return p.Away(), len(r.Store.Config.Layout().Places)
	}
	return nil, 1
}

// ParityReads gives how many reads were served from parity, since a place was
// away or what lies there is wrong.
func (r *Repo) ParityReads() int {
	if p, ok := r.place.(*spreadPlace); ok {
		return p.ParityReads()
	}
	return 0
}

// Degraded says whether something was stored on fewer places than it should
// be, or is gone.
func (r *Repo) Degraded() bool {
	p, ok := r.place.(*spreadPlace)
	return ok && p.Degraded() || r.RolledBack() != nil
}

// places gives the repository's places; ErrNoPlaces when it has none.
func (r *Repo) places() (*spreadPlace, error) {
	if p, ok := r.place.(*spreadPlace); ok {
		return p, nil
	}
	return nil, ErrNoPlaces
}

// Audit looks at each place by itself (job.Check asks for it): what it misses
// and, with readAll, what of it is damaged, also where parity hides that.
// Nothing for a repository without places.
func (r *Repo) Audit(ctx context.Context, readAll bool, part spread.Part, prog spread.Progress) ([]spread.Finding, error) {
	p, err := r.places()
	if err != nil {
		return nil, nil //nolint:nilerr // nothing to look at
	}
	return p.Audit(ctx, readAll, part, prog)
}

// AuditKeyless is Audit of a place that OpenKeyless opened.
func AuditKeyless(ctx context.Context, place Place, part spread.Part, prog spread.Progress) ([]spread.Finding, error) {
	if p, ok := place.(*spreadPlace); ok {
		return p.Audit(ctx, true, part, prog)
	}
	return nil, nil
}

// RepairPlaces brings all places up to date.
func (r *Repo) RepairPlaces(ctx context.Context, readAll bool, part spread.Part, prog spread.Progress) (*spread.RepairReport, error) {
	p, err := r.places()
	if err != nil {
		return nil, err
	}
	return p.Repair(ctx, spread.RepairOptions{ReadAll: readAll, Part: part, Progress: prog, Condemned: r.Store.Removed})
}

// PlaceStates gives the state of each place and the repository's parity.
func (r *Repo) PlaceStates(ctx context.Context) ([]spread.PlaceState, spread.Shards, error) {
	p, err := r.places()
	if err != nil {
		return nil, spread.Shards{}, err
	}
	states, err := p.States(ctx, p.layout)
	return states, p.layout.Shards, err
}

// ReplacePlace puts a new place where an old one was, which may be lost, and
// makes its shards; a bucket's engine is checked before. With othersLost all other places that are away are, too.
func (r *Repo) ReplacePlace(ctx context.Context, old, spec string, othersLost bool, now time.Time, prog spread.Progress) (*spread.RepairReport, error) {
	p, err := r.places()
	if err != nil {
		return nil, err
	}
	if spec, err = absolute(spec); err != nil {
		return nil, err
	}
	if old, err = named(p.layout, old); err != nil {
		return nil, err
	}
	fresh, err := createOne(ctx, spec)
	if err != nil {
		return nil, err
	}
	var v *engine.Verdict
	if IsBucket(spec) {
		v, err = NewBucket{}.check(ctx, spec, fresh, now)
	}
	var next *spread.Layout
	if err == nil {
		next, err = p.layout.Replace(ctx, p.Spread, old, spec, fresh, othersLost)
	}
	if cerr := fresh.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return r.fill(ctx, p, next, v, prog)
}

// ErrNoSuchPlace: the repository has no place of that name.
var ErrNoSuchPlace = errors.New("no such place")

// named gives the name that a list has for a place, which may be gone: its
// own, what it is from the working folder, or the beginning of its ID.
func named(l *spread.Layout, name string) (string, error) {
	abs, err := absolute(name)
	if err != nil {
		return "", err
	}
	var specs []string
	for _, p := range l.Places {
		if p.Spec == name || p.Spec == abs || len(name) >= 8 && strings.HasPrefix(p.ID, name) {
			return p.Spec, nil
		}
		specs = append(specs, p.Spec)
	}
	return "", fmt.Errorf("%w: %s is none of this repository; its places are: %s", ErrNoSuchPlace, name, strings.Join(specs, ", "))
}

// fill makes the shards of the place that a new list brought.
func (r *Repo) fill(ctx context.Context, was *spreadPlace, next *spread.Layout, verdict *engine.Verdict, prog spread.Progress) (*spread.RepairReport, error) {
	if _, _, err := spread.PlaceID(ctx, was.door); errors.Is(err, backend.ErrNotExist) {
		if err := next.Save(ctx, was.door); err != nil {
			return nil, fmt.Errorf("note the new list in %s: %w", r.Path, err)
		}
	}
	now, layout, err := spread.Open(ctx, []spread.Layout{*next}, func(ctx context.Context, at string) (backend.Backend, error) {
		return openNear(ctx, r.Path, at)
	}, spreadOptions)
	if err != nil {
		return nil, err
	}
	now.VerifyWith(r.Store.VerifyControl)
	o := spread.RepairOptions{Progress: prog, Condemned: chunkstore.NewStore(now, r.Store.Config, r.Store.Keys()).Removed}
	for i, p := range layout.Places {
		if before := was.layout.Places[i]; before.ID != p.ID {
			if m, ok := was.Member(p.Slot); ok {
				o.Old = &m
			}
			if verdict != nil {
				err = engine.Store(ctx, now, p.ID, verdict)
			}
		}
	}
	report, rerr := now.Repair(ctx, o)
	return report, errors.Join(err, rerr, now.Close())
}

// InitSpread makes a repository in new or empty folders. Without places path
// itself is the one, and holds all shards; with places it is the door: a small
// folder with a copy of the config.
// A bucket's engine is checked before.
func InitSpread(ctx context.Context, path string, specs []string, shards spread.Shards, o chunkstore.InitOptions, n NewBucket) (*chunkstore.Config, error) {
	own := len(specs) == 0
	if own {
		specs = []string{path}
	}
	l := &spread.Layout{Repository: chunkstore.NewID(), Shards: shards}
	for _, s := range specs {
		abs, err := absolute(s)
		if err != nil {
			return nil, err
		}
		l.Places = append(l.Places, spread.NewPlace(abs))
	}
	if err := l.Check(); err != nil {
		return nil, err
	}
	folders := specs
	if !own {
		folders = append([]string{path}, specs...)
	}
	for _, f := range folders {
		if !isURL(f) {
			if err := mustBeEmpty(f); err != nil {
				return nil, err
			}
		}
	}
	o.Layout = l
	verdicts, err := n.checkAll(ctx, l, o.Now())
	if err != nil {
		return nil, err
	}
	c, err := initPlaces(ctx, l, o, verdicts)
	if err != nil || own {
		return c, err
	}
	door, err := absolute(path)
	if err != nil || slices.ContainsFunc(l.Places, func(p spread.Place) bool { return p.Spec == door }) {
		return c, err // each place is a door, too
	}
	return c, copyConfig(ctx, path, l)
}

// initPlaces makes all the places, and the repository in them.
func initPlaces(ctx context.Context, l *spread.Layout, o chunkstore.InitOptions, verdicts map[string]*engine.Verdict) (c *chunkstore.Config, err error) {
	for _, p := range l.Places {
		b, err := createOne(ctx, p.Spec)
		if err != nil {
			return nil, err
		}
		err = l.Identify(ctx, b, p)
		if err = errors.Join(err, b.Close()); err != nil {
			return nil, fmt.Errorf("make the place %s: %w", p.Spec, err)
		}
	}
	s, _, err := spread.Open(ctx, []spread.Layout{*l}, func(ctx context.Context, at string) (backend.Backend, error) { return openOne(ctx, at) }, spreadOptions)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	c, err = chunkstore.Init(ctx, s, o)
	if w := s.Warnings(); err == nil && len(w) > 0 {
		return nil, fmt.Errorf("a new repository needs all its places: %s", strings.Join(w, "\n"))
	}
	for _, id := range slices.Sorted(maps.Keys(verdicts)) {
		if err == nil {
			err = engine.Store(ctx, s, id, verdicts[id])
		}
	}
	return c, err
}

// checkAll checks the engines of the places that are buckets, by the places'
// IDs. Nothing of a repository may be there yet.
func (n NewBucket) checkAll(ctx context.Context, l *spread.Layout, now time.Time) (map[string]*engine.Verdict, error) {
	verdicts := map[string]*engine.Verdict{}
	for _, p := range l.Places {
		if !IsBucket(p.Spec) {
			continue
		}
		place, err := openBucket(ctx, p.Spec, n.Make)
		if err != nil {
			return nil, err
		}
		if _, err = chunkstore.ReadConfig(ctx, place); err == nil {
			err = fmt.Errorf("%w at %s", chunkstore.ErrRepositoryExists, p.Spec)
		} else if errors.Is(err, chunkstore.ErrNoRepository) {
			verdicts[p.ID], err = n.check(ctx, p.Spec, place, now)
		}
		if err = errors.Join(err, place.Close()); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

// copyConfig makes the door of a repository that lies elsewhere.
func copyConfig(ctx context.Context, path string, l *spread.Layout) error {
	from, err := openOne(ctx, l.Places[0].Spec)
	if err != nil {
		return err
	}
	defer from.Close()
	body, err := backend.Get(ctx, from, "config", 64<<10)
	if err != nil {
		return err
	}
	door, err := createOne(ctx, path)
	if err != nil {
		return err
	}
	return errors.Join(door.Put(ctx, "config", body), door.Close())
}
