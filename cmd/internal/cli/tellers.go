package cli

import (
	"context"
	"log/slog"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/notify"
)

// tellers are what tells others of the daemon: the page, with metrics and
// shares, and the messages to people. They begin anew with a configuration that
// changes them; the daemon does not wait for them, and lives without them.
type tellers struct {
	a    *app
	dav  bool // --webdav
	log  *slog.Logger
	news chan *config.Config // the newest, if nobody has taken it
}

// tellAgain is when what could not begin is tried again: an address that is
// taken, say.
const tellAgain = time.Minute

func newTellers(a *app, dav bool, log *slog.Logger) *tellers {
	return &tellers{a: a, dav: dav, log: log, news: make(chan *config.Config, 1)}
}

// changed takes a new configuration.
func (t *tellers) changed(c *config.Config) {
	select {
	case <-t.news: // older
	default:
	}
	t.news <- c
}

// begin begins, and gives what ends it.
func (t *tellers) begin(c *config.Config, d daemon) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background()) // a stop of the daemon is told, too
	var wg sync.WaitGroup
	wg.Go(func() {
		for c != nil {
			c = t.tell(ctx, c, d)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// tell tells by a configuration until it is another, which it gives; nil: ctx
// ended.
func (t *tellers) tell(ctx context.Context, c *config.Config, d daemon) (next *config.Config) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	shown := *c
	if t.dav && c.Web != nil {
		web := *c.Web
		web.WebDAV = true
		shown.Web = &web
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			err := t.a.serveWeb(ctx, &shown, d, t.log)
			if err == nil || ctx.Err() != nil {
				return
			}
			t.log.Error("the page is not served; it is tried again", "after", tellAgain.String(), "error", err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(tellAgain):
			}
		}
	})
	wg.Go(func() {
		if c.Notify == nil {
			return
		}
		err := notify.Run(ctx, notify.Options{Config: c.Notify, Dir: filepath.Join(t.a.dirs().State, "notify"), Book: d.Book(), Status: d.Status, Log: t.log.With("part", "notify"), Now: t.a.now})
		if err != nil && ctx.Err() == nil {
			t.log.Error("nobody is told of problems", "error", err.Error())
		}
	})
	for {
		select {
		case <-ctx.Done():
			return nil
		case next = <-t.news:
			if !reflect.DeepEqual(next.Web, c.Web) || !reflect.DeepEqual(next.Notify, c.Notify) || !reflect.DeepEqual(next.Repositories, c.Repositories) {
				return next
			}
		}
	}
}
