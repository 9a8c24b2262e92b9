package library

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"cairn/chunkstore"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/wire"
)

// shelf is one repository. One goroutine (keep) opens it, looks at it and closes
// it; it alone may wait for a place, and nobody waits for it longer than his own
// patience.
type shelf struct {
	l    *Library
	repo config.Repository
	kick chan struct{} // asks for a look, 1 deep

	mu      sync.Mutex
	now     *Snapshot
	looking time.Time     // when the look under way began; zero: none is
	open    *opened       // nil: it is not open
	changed chan struct{} // closed when open or a problem came
	measure time.Time     // when the size was taken last
}

// opened is an open repository. It is closed when it was put away and nobody uses
// it.
type opened struct {
	repo  *wire.Repo
	cat   *wire.Catalogue
	since time.Time
	users int
	away  bool
}

func newShelf(l *Library, r config.Repository) *shelf {
	first := NewSnapshot(r.Name, nil, time.Time{})
	first.Problem, first.Tried = "it was not read yet", false
	return &shelf{l: l, repo: r, kick: make(chan struct{}, 1), now: first, changed: make(chan struct{})}
}

// Refresh asks for a look.
func (s *shelf) Refresh() {
	select {
	case s.kick <- struct{}{}:
	default: // one is asked for already
	}
}

// snapshot gives what is known, with the problem that a look does not end.
func (s *shelf) snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if took := s.l.o.Now().Sub(s.looking); !s.looking.IsZero() && took > s.l.o.Patience && (s.now.Problem == "" || !s.now.Tried) {
		late := *s.now
		late.Tried = true
		late.Problem = fmt.Sprintf("it does not answer since %s", s.looking.UTC().Format(time.RFC3339))
		return &late
	}
	return s.now
}

// keep looks at the repository again and again.
func (s *shelf) keep(ctx context.Context) {
	defer s.putAway()
	for {
		s.mu.Lock()
		s.looking = s.l.o.Now()
		s.mu.Unlock()
		err := s.look(ctx)
		s.mu.Lock()
		s.looking = time.Time{}
		s.mu.Unlock()
		wait := s.l.o.Every
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.fail(err)
			wait = min(wait, awayEvery)
		}
		select {
		case <-s.kick:
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// fail keeps the old points, and says why they are not newer. The repository is
// opened anew: its place may be another one when it is back.
func (s *shelf) fail(err error) {
	s.putAway()
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.now
	old.Tried = true
	old.Problem = strings.ReplaceAll(err.Error(), "\n", " ")
	if s.now.Problem == "" || !s.now.Tried {
		s.l.o.Log.Warn("a repository cannot be read", "repository", s.repo.Name, "error", err)
	}
	s.now = &old
	s.tell()
}

// tell wakes those who wait. It needs s.mu.
func (s *shelf) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// look makes a new Snapshot.
func (s *shelf) look(ctx context.Context) error {
	life := ctx
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	o, err := s.opened(ctx, life)
	if err != nil {
		return err
	}
	defer s.release(o)
	points, err := o.cat.Points(ctx)
	if err != nil {
		return err
	}
	pins, err := o.repo.Store.Pins(ctx)
	if err != nil {
		return err
	}
	if err := o.repo.Present(ctx); err != nil { // after the listing: it may have been one of nothing
		return err
	}
	next := NewSnapshot(s.repo.Name, points, s.l.o.Now())
	next.ID = o.repo.Store.Config.ID
	next.Pins = make(map[string]chunkstore.Pin, len(pins))
	for id, p := range pins {
		next.Pins[id.String()] = p
	}
	next.Damaged = map[string]string{}
	for id, err := range o.cat.Damaged() {
		next.Damaged[id] = err.Error()
	}
	next.Warnings = o.repo.Warnings()
	if err := o.cat.MayRead(); err != nil {
		next.Unreadable = err.Error()
	}
	next.Sizes = s.sizes(ctx, o.repo, next)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = next
	s.tell()
	return nil
}

// sizes gives the days' sizes, with today's once an hour. That it cannot be taken
// or kept spoils a plot, and nothing else.
func (s *shelf) sizes(ctx context.Context, repo *wire.Repo, next *Snapshot) []Size {
	s.mu.Lock()
	list, last, known := s.now.Sizes, s.measure, s.now.ID == next.ID
	s.mu.Unlock()
	now := s.l.o.Now()
	if !known {
		var err error
		if list, err = readSizes(s.l.o.Dirs.State, next.ID); err != nil {
			s.l.o.Log.Warn("the sizes of earlier days cannot be read", "repository", s.repo.Name, "error", err)
		}
	} else if now.Sub(last) < sizesEvery {
		return list
	}
	size, err := measure(ctx, repo, next.Points, now)
	if err == nil {
		list = withDay(list, size)
		err = writeSizes(s.l.o.Dirs.State, next.ID, list)
	}
	if err != nil {
		s.l.o.Log.Warn("the size of a repository could not be taken or kept", "repository", s.repo.Name, "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.measure = now
	return list
}

// opened gives the open repository, and opens it if it is not: by its address,
// or by one of its other places. What it reads ahead ends with life.
func (s *shelf) opened(ctx, life context.Context) (*opened, error) {
	s.mu.Lock()
	if o := s.open; o != nil && s.l.o.Now().Sub(o.since) < openTime {
		o.users++
		s.mu.Unlock()
		return o, nil
	}
	s.mu.Unlock()
	s.putAway()
	ctx = wire.WithCAFile(ctx, s.repo.CAFile)
	var first error
	for _, address := range append([]string{s.repo.Address}, s.repo.Places...) {
		repo, err := wire.OpenRepo(ctx, address, wire.Secret{File: s.repo.KeyFile}, s.l.o.Dirs)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		o := &opened{repo: repo, cat: repo.NewCatalogue(wire.WithCAFile(life, s.repo.CAFile), FrameCache), since: s.l.o.Now(), users: 1}
		s.mu.Lock()
		if s.now.ID == repo.Store.Config.ID { // opened anew: its points are known, and nobody's index is asked
			o.cat.Seed(s.now.Points)
		}
		s.open = o
		s.tell()
		s.mu.Unlock()
		return o, nil
	}
	return nil, first
}

// catalogue gives the open catalogue, or waits for it a while.
func (s *shelf) catalogue(ctx context.Context) (*wire.Catalogue, func(), error) {
	patience := time.NewTimer(s.l.o.Patience)
	defer patience.Stop()
	asked := false
	for {
		s.mu.Lock()
		if o := s.open; o != nil {
			o.users++
			s.mu.Unlock()
			return o.cat, sync.OnceFunc(func() { s.release(o) }), nil
		}
		changed, problem, looking := s.changed, s.now.Problem, !s.looking.IsZero()
		s.mu.Unlock()
		if asked && !looking {
			return nil, nil, fmt.Errorf("%w: %s", ErrAway, problem)
		}
		if !looking && !asked {
			s.Refresh()
		}
		asked = true
		select {
		case <-changed:
		case <-patience.C:
			return nil, nil, fmt.Errorf("%w: %s", ErrAway, problem)
		case <-ctx.Done():
			return nil, nil, errors.Join(ErrAway, ctx.Err())
		}
	}
}

// release gives back what opened or catalogue gave.
func (s *shelf) release(o *opened) {
	s.mu.Lock()
	o.users--
	last := o.away && o.users == 0
	s.mu.Unlock()
	if last {
		s.close(o)
	}
}

// putAway closes the repository, at once or when its last user gives it back.
func (s *shelf) putAway() {
	s.mu.Lock()
	o := s.open
	s.open = nil
	last := false
	if o != nil {
		o.away = true
		last = o.users == 0
	}
	s.mu.Unlock()
	if last {
		s.close(o)
	}
}

func (s *shelf) close(o *opened) {
	o.cat.Close()
	if err := o.repo.Leave(); err != nil {
		s.l.o.Log.Warn("a repository could not be closed", "repository", s.repo.Name, "error", err)
	}
}
