package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/qmp"
)

// watchPace is how often the watcher looks, and so for how long at most a
// guest stands still by scratch space that ran full, but for the time that the
// end of the backup takes.
const watchPace = 100 * time.Millisecond

// watchTimeout bounds each of its looks: libvirtd may be restarting.
const watchTimeout = 5 * time.Second

// errStopped is what the reader gets to hear.
var errStopped = fmt.Errorf("the guest was paused by an I/O error while the backup ran, and goes on since the backup was ended: %w", qmp.ErrFleeceBroken)

// watch looks after the guest while a backup runs: it does not depend on the
// reader, which may wait for just what the guest cannot write.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// startWatch starts the watcher on a connection of its own, for the other may
// wait in a call.
func (f *Fleece) startWatch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &watch{cancel: cancel, done: make(chan struct{})}
	own := *f.d
	own.conn = &Conn{uri: f.d.conn.uri}
	go func() {
		defer close(w.done)
		defer own.conn.Close()
		f.watchOver(ctx, &own)
	}()
	return w
}

func (w *watch) stop() {
	w.cancel()
	<-w.done
}

func (f *Fleece) watchOver(ctx context.Context, d *Domain) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPace):
		}
		if f.look(ctx, d) {
			return
		}
	}
}

// look ends the backup if it holds the guest up, and says whether it did.
func (f *Fleece) look(ctx context.Context, d *Domain) bool {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	s, err := d.State(ctx)
	if err != nil || s.Status != "io-error" {
		return false // an error here is one that the run will see, too
	}
	f.mu.Lock()
	f.broken = errStopped
	f.mu.Unlock()
	ended, err := d.abortOurs(ctx)
	if err != nil || !ended {
		return false
	}
	_, err = d.letGoOn(ctx)
	if err != nil {
		f.mu.Lock()
		f.broken = errors.Join(errStopped, err)
		f.mu.Unlock()
	}
	return err == nil
}
