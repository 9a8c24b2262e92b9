package web

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/cmd/internal/wire"
)

// maxReaders is how many requests at once read one repository.
const maxReaders = 16

// How long a page may take to be answered, and how long it waits for its turn.
const (
	defaultAnswerTime = 30 * time.Second
	defaultQueueTime  = 5 * time.Second
)

// desks bound the work on each repository: one that does not answer takes the
// places at its own desk.
type desks struct {
	mu sync.Mutex
	by map[string]chan struct{}
}

func newDesks() *desks { return &desks{by: map[string]chan struct{}{}} }

func (d *desks) at(repository string) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.by[repository]
	if c == nil {
		c = make(chan struct{}, maxReaders)
		d.by[repository] = c
	}
	return c
}

var errBusy = errors.New("too many requests read this repository at the moment, or it does not answer: try again later")

// errLate says that an answer took too long.
var errLate = errors.New("the repository did not answer in time")

// ask lets f read a repository, and waits no longer than the context. An f that is
// stuck in a place that does not answer is left to itself: it keeps its seat at the
// desk until it is back, and what it found is nobody's any more.
func ask[T any](ctx context.Context, s *site, repository string, f func(context.Context, *wire.Catalogue) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.answerTime, errLate)
	defer cancel()
	var none T
	desk := s.work.at(repository)
	queue := time.NewTimer(s.queueTime)
	defer queue.Stop()
	select {
	case desk <- struct{}{}:
	case <-queue.C:
		return none, errBusy
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() { <-desk }()
		defer func() {
			if p := recover(); p != nil { // of one request; the daemon goes on
				s.Log.Error("internal error in a page", "panic", fmt.Sprint(p))
				done <- answer{none, fmt.Errorf("internal error: %v", p)}
			}
		}()
		cat, release, err := s.Library.Catalogue(ctx, repository)
		if err != nil {
			done <- answer{none, err}
			return
		}
		defer release()
		value, err := f(ctx, cat)
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		if a.err != nil && ctx.Err() != nil {
			return none, context.Cause(ctx)
		}
		return a.value, a.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}
