package cli

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// defaultCatalogueTime is how long making one catalogue may take by default.
const defaultCatalogueTime = time.Hour

// cataloguer makes the catalogues of points that were just committed, one
// after the other, while the next VM is backed up.
type cataloguer struct {
	app   *app
	cat   *wire.Catalogue
	limit time.Duration // for each; 0: none

	queue  chan *restorepoint.Manifest
	done   chan struct{}
	alone  atomic.Bool // no backup runs any more: progress may be drawn
	made   []catalogueMessage
	failed int
}

// catalogueAfter starts one; nil when no catalogues are wanted. It ends with
// finish.
func (a *app) catalogueAfter(ctx context.Context, cat *wire.Catalogue, wanted bool, limit time.Duration, points int) *cataloguer {
	if !wanted {
		return nil
	}
	c := &cataloguer{app: a, cat: cat, limit: limit, queue: make(chan *restorepoint.Manifest, points), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for m := range c.queue {
			c.make(ctx, m)
		}
	}()
	return c
}

// canCatalogue says whether catalogues can be made with the key in use, and if
// not, who makes them.
func (a *app) canCatalogue(repo *wire.Repo) bool {
	if repo.Store.MayRead() == nil {
		return true
	}
	a.say("note: the catalogues of files are left out, as a write key cannot read back what it stores; who has a key of kind restore or all makes them with: cairn catalogue --all")
	return false
}

// add queues a point; it never waits.
func (c *cataloguer) add(m *restorepoint.Manifest) {
	if c != nil {
		c.queue <- m
	}
}

// errCatalogueTime ends the making of a catalogue that takes too long.
var errCatalogueTime = errors.New("it took too long (--catalogue-time)")

func (c *cataloguer) make(ctx context.Context, m *restorepoint.Manifest) {
	msg := message(m.VM.Name, m.ID, m.Time, stateNone, nil, nil)
	defer func() { c.made = append(c.made, msg) }()
	run, cancel := ctx, context.CancelFunc(func() {})
	if c.limit > 0 {
		run, cancel = context.WithTimeoutCause(ctx, c.limit, errCatalogueTime)
	}
	defer cancel()
	p, _, err := c.cat.Make(run, m, wire.MakeOptions{Progress: c.progress})
	if err != nil {
		if run.Err() != nil {
			err = context.Cause(run)
		}
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		c.failed++
		msg.Error = err.Error()
		c.app.say("%s: warning: the point is whole, but its catalogue of files was not made: %v; make it with: cairn catalogue %s", m.VM.Name, err, pointName(m))
		return
	}
	msg = message(m.VM.Name, m.ID, m.Time, stateMade, p.Root, nil)
	c.app.say("%s: catalogue of files: %s", m.VM.Name, howMade(p.Root))
}

// progress draws nothing while a backup does.
func (c *cataloguer) progress(name string, total int64) (add func(int64), end func()) {
	if !c.alone.Load() {
		return func(int64) {}, func() {}
	}
	return c.app.reporter().Items(name, total)
}

// finish waits for what is queued. The points are committed: whatever happened
// is a warning.
func (c *cataloguer) finish() error {
	if c == nil {
		return nil
	}
	c.alone.Store(true)
	close(c.queue)
	<-c.done
	if c.app.json {
		for _, msg := range c.made {
			if err := c.app.printJSON(msg); err != nil {
				return err
			}
		}
	}
	if c.failed > 0 {
		return errWarnings
	}
	return nil
}

var _ job.Progress = (*cataloguer)(nil).progress
