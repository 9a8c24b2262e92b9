package library

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// FrameCache is how many bytes of decoded frames of a repository are kept.
const FrameCache = 16 << 20

// Waits.
const (
	every      = 5 * time.Minute        // between looks at a repository
	awayEvery  = 30 * time.Second       // between looks at one that is away
	settle     = 500 * time.Millisecond // after a change of the book: several end together
	sizesEvery = time.Hour
	// patience is how long a repository that is not open is waited for, and after
	// which a look that did not end is a problem.
	patience = 5 * time.Second
	// lookTime bounds one look. The first of many points reads many manifests.
	lookTime = 15 * time.Minute
	goodbye  = 5 * time.Second
	// openTime is how long a repository is open before it is opened anew, and
	// looked at with fresh eyes: whether points are gone, which key opens it.
	openTime = 6 * time.Hour
)

// ErrUnknown says that the configuration has no such repository.
var ErrUnknown = errors.New("no repository of that name is in the configuration")

// ErrAway says that a repository cannot be read at the moment.
var ErrAway = errors.New("the repository does not answer")

// Options say what to open.
type Options struct {
	Repositories []config.Repository
	Dirs         config.Dirs
	Book         *runs.Book // nil: nobody tells of changes
	Log          *slog.Logger
	Now          func() time.Time
	Every        time.Duration // 0: every 5 minutes
	Patience     time.Duration // 0: 5 seconds
}

// Library is the repositories, open for reading. It may be used by many
// goroutines.
type Library struct {
	o      Options
	names  []string
	shelf  map[string]*shelf
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Open begins to read the repositories, and waits for none. Close ends it.
func Open(ctx context.Context, o Options) *Library {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Every == 0 {
		o.Every = every
	}
	if o.Patience == 0 {
		o.Patience = patience
	}
	l := &Library{o: o, shelf: map[string]*shelf{}}
	ctx, l.cancel = context.WithCancel(ctx)
	for _, r := range o.Repositories {
		s := newShelf(l, r)
		l.names = append(l.names, r.Name)
		l.shelf[r.Name] = s
		l.wg.Go(func() { s.keep(ctx) })
	}
	if o.Book != nil {
		l.wg.Go(func() { l.follow(ctx) })
	}
	return l
}

// Close ends the looks and closes the repositories. One that does not answer is
// left as it is after a few seconds.
func (l *Library) Close() {
	l.cancel()
	done := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(goodbye):
		l.o.Log.Warn("a repository does not answer, and is left as it is")
	}
}

// follow looks anew at the repositories of runs that ended.
func (l *Library) follow(ctx context.Context) {
	// The newest run that ended, by repository.
	newest := func() map[string]string {
		out := map[string]string{}
		for _, r := range l.o.Book.Runs(1000, nil) {
			if out[r.Repository] == "" {
				out[r.Repository] = r.ID
			}
		}
		return out
	}
	seen := newest()
	for {
		changed := l.o.Book.Changed()
		now := newest()
		for name, id := range now {
			if s := l.shelf[name]; s != nil && seen[name] != id {
				s.Refresh()
			}
		}
		seen = now
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(settle):
		case <-ctx.Done():
			return
		}
	}
}

// Repositories gives their names, as the configuration has them.
func (l *Library) Repositories() []string { return l.names }

// Refresh has a repository looked at now, in the background.
func (l *Library) Refresh(repository string) {
	if s := l.shelf[repository]; s != nil {
		s.Refresh()
	}
}

// Snapshot gives what is known of a repository, at once; nil if there is none of
// that name.
func (l *Library) Snapshot(repository string) *Snapshot {
	s := l.shelf[repository]
	if s == nil {
		return nil
	}
	return s.snapshot()
}

// Points gives a repository's points, oldest first, and of which moment they are.
// They are there with an error, too: then they are old.
func (l *Library) Points(_ context.Context, repository string) ([]restorepoint.Summary, time.Time, error) {
	s := l.Snapshot(repository)
	switch {
	case s == nil:
		return nil, time.Time{}, fmt.Errorf("%s: %w", repository, ErrUnknown)
	case s.Problem != "":
		return s.Points, s.AsOf, fmt.Errorf("%w: %s", ErrAway, s.Problem)
	}
	return s.Points, s.AsOf, nil
}

// Catalogue gives a repository's catalogue, to be given back by the function. It
// waits a few seconds for a repository that is not open; then the error is
// ErrAway.
func (l *Library) Catalogue(ctx context.Context, repository string) (*wire.Catalogue, func(), error) {
	s := l.shelf[repository]
	if s == nil {
		return nil, nil, fmt.Errorf("%s: %w", repository, ErrUnknown)
	}
	return s.catalogue(ctx)
}
