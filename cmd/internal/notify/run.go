package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/runs"
)

// Options say whom to tell of what.
type Options struct {
	Config *config.Notify // nil: nobody
	Dir    string         // for the ledgers; it is made
	Book   *runs.Book
	Status func() runs.Status
	Log    *slog.Logger

	Now func() time.Time // nil: time.Now

	// For tests; 0 is the usual.
	gather, tick, firstRetry time.Duration
}

// How long a message waits for more to tell, how often what the book does not tell
// is looked at, and how long it takes until a way is tried again.
const (
	gatherFor  = time.Minute
	tickEvery  = 10 * time.Second
	firstRetry = 5 * time.Second
	lastRetry  = 15 * time.Minute
)

// way is how messages get out.
type way interface {
	name() string
	send(ctx context.Context, m Message) error
}

func ways(c *config.Notify) (list []way) {
	if c == nil {
		return nil
	}
	if c.Webhook != "" {
		list = append(list, webhook{c})
	}
	if len(c.Mail) > 0 {
		list = append(list, mailer{c})
	}
	return list
}

// Run tells of problems until ctx ends. What is then not told is told by the next
// Run. An error is one of the folder.
func Run(ctx context.Context, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	for _, d := range []struct {
		value *time.Duration
		usual time.Duration
	}{{&o.gather, gatherFor}, {&o.tick, tickEvery}, {&o.firstRetry, firstRetry}} {
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	all := ways(o.Config)
	if len(all) == 0 {
		return nil
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	errs := make([]error, len(all))
	var running sync.WaitGroup
	for i, w := range all {
		running.Go(func() { errs[i] = o.tell(ctx, w) })
	}
	running.Wait()
	return errors.Join(errs...)
}

// tell is Run for one way.
func (o Options) tell(ctx context.Context, w way) error {
	path := filepath.Join(o.Dir, "notify-"+w.name()+".json")
	l, err := readLedger(path)
	if l == nil {
		return fmt.Errorf("notify: %w", err)
	}
	if err != nil {
		o.Log.Warn("notify: " + err.Error())
	}
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval, waits.Multiplier, waits.RandomizationFactor = o.firstRetry, lastRetry, 2, 0.5
	waits.Reset()
	var notBefore time.Time // of the process' own clock, that cannot be set
	written := false
	for ctx.Err() == nil {
		news := o.Book.Changed()
		if l.update(o.Status(), o.Book, o.Now()) || !written {
			written = o.keep(l, path)
		}
		if due := l.due(o.Now(), o.gather, time.Duration(o.Config.Remind)); len(due) > 0 && !time.Now().Before(notBefore) {
			s := o.Status()
			m := compose(due, s.Host, s.Version, o.Now())
			sctx, done := lastWord(ctx)
			err := w.send(sctx, m)
			done()
			switch {
			case ctx.Err() != nil && err != nil:
			case err != nil:
				wait := waits.NextBackOff()
				notBefore = time.Now().Add(wait)
				o.Log.Error("notify: problems could not be told, it is tried again", "way", w.name(), "error", err.Error(), "problems", len(due), "in", wait.Round(time.Second).String())
			default:
				waits.Reset()
				l.told(due, o.Now())
				written = o.keep(l, path)
				o.Log.Info("notify: told", "way", w.name(), "subject", m.Subject, "id", m.ID)
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-news:
		case <-time.After(o.tick):
		}
	}
	return nil
}

// stopGrace is how long a message that is being sent has when the daemon stops:
// one that is cut off may have been taken, and would come twice.
const stopGrace = 5 * time.Second

// lastWord gives a context that ends a little after ctx.
func lastWord(ctx context.Context) (context.Context, func()) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancel) })
	return longer, func() { stop(); cancel() }
}

// keep writes a ledger. Without it what was told may be told again: that is better
// than nothing.
func (o Options) keep(l *ledger, path string) bool {
	if err := l.write(path); err != nil {
		o.Log.Error("notify: what was told cannot be written down, and may be told again", "error", err.Error())
		return false
	}
	return true
}

// Test sends a message by each way and gives what became of it, by the way's name.
func Test(ctx context.Context, c *config.Notify, host, version string, now time.Time) map[string]error {
	e := entry{Problem: Problem{Key: "test", Kind: KindTest, Since: now, Text: "this is a test: nothing is wrong. Messages of problems will come this way"}}
	m := compose([]entry{e}, host, version, now)
	results := map[string]error{}
	for _, w := range ways(c) {
		results[w.name()] = w.send(ctx, m)
	}
	return results
}
