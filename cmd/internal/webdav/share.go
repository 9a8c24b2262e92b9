package webdav

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/cmd/internal/wire"
	"cairn/fs"
	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// share is the tree of one repository, kept while it is looked at: it holds the
// points that were opened.
type share struct {
	catalogue *wire.Catalogue
	browser   *fs.Browser
	used      time.Time
}

// keepFor is how long a tree is kept that nobody looks at.
const keepFor = 10 * time.Minute

// errNotWalked is what is said of a point whose files are not listed: to look at all
// of them would take longer than whoever looks waits.
var errNotWalked = errors.New("it has no catalogue of files, or a damaged one; cairn catalogue --all makes those that are missing")

// open gives the tree of a repository, until release.
func (h *handler) open(ctx context.Context, repository string) (b *fs.Browser, release func(), err error) {
	if !slices.Contains(h.repositories(), repository) {
		return nil, nil, fmt.Errorf("repository %q: %w", repository, filesystem.ErrNotExist)
	}
	c, release, err := h.source.Catalogue(ctx, repository)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errAway, err)
	}
	if err := c.MayRead(); err != nil {
		release()
		return nil, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.shares[repository]
	if s == nil || s.catalogue != c {
		files := c.NewOpener()
		files.Walk = func(restorepoint.Summary, error) error { return errNotWalked }
		s = &share{catalogue: c, browser: fs.NewBrowser(&points{Catalogue: c, turn: make(chan struct{}, 1)}, fs.Options{Deadline: h.o.Deadline, Derive: h.o.Derive, Files: files, Report: h.o.Report})}
		h.shares[repository] = s
		time.AfterFunc(keepFor, func() { h.forget(repository, s) })
	}
	s.used = time.Now()
	return s.browser, release, nil
}

// forget gives up a tree that nobody has looked at for a while.
func (h *handler) forget(repository string, s *share) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shares[repository] != s {
		return
	}
	if idle := time.Since(s.used); idle < keepFor {
		time.AfterFunc(keepFor-idle, func() { h.forget(repository, s) })
		return
	}
	delete(h.shares, repository)
}

// points is a catalogue whose list is asked for again after a while only: each
// request begins with it.
type points struct {
	*wire.Catalogue
	turn chan struct{} // holds a token while somebody asks

	mu   sync.Mutex
	list []restorepoint.Summary
	read time.Time
}

// relist is how old the list of points may be.
const relist = 10 * time.Second

func (p *points) known() ([]restorepoint.Summary, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list, !p.read.IsZero() && time.Since(p.read) < relist
}

// Points implements fs.Source.
func (p *points) Points(ctx context.Context) ([]restorepoint.Summary, error) {
	if list, ok := p.known(); ok {
		return list, nil
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.turn }()
	if list, ok := p.known(); ok {
		return list, nil
	}
	list, err := p.Catalogue.Points(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list, p.read = list, time.Now()
	return list, nil
}
