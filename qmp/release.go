package qmp

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"
)

// Release takes the fleece down: exports, connections, nodes, filters, scratch
// files, temporary bitmaps, and the NBD server if that is safe. It works after
// any part of the other steps and after QEMU's death, and may be called again
// when it failed. The order matters, see the package's comment.
func (f *Fleece) Release(ctx context.Context) error {
	if f.done {
		return nil
	}
	err := f.release(ctx)
	if errors.Is(f.conn.Dead(), io.ErrUnexpectedEOF) {
		// With QEMU everything in it is gone. Only what is ours remains. A
		// monitor that broke otherwise is no reason to close the NBD
		// connections: QEMU may live, and the exports were not deleted.
		f.abandon()
		err = nil
	}
	if err != nil {
		return err // the scratch files are in use: they stay, too
	}
	if f.scratch != nil {
		err = f.scratch.remove()
	}
	f.done = err == nil
	f.sub.Close()
	return err
}

func (f *Fleece) release(ctx context.Context) error {
	for _, l := range f.lanes { // before any command: QEMU may wait for us to take what it pushes
		l.close()
	}
	if err := tearDown(ctx, f.conn, f.abandon, func(string) {}); err != nil {
		return err
	}
	f.inserted = nil
	return f.stopServer(ctx)
}

// abandon closes all NBD connections, after their exports were deleted, and
// the servers that QEMU pushes to: their jobs fail then, and can be cancelled.
func (f *Fleece) abandon() {
	for _, l := range f.lanes {
		l.close()
	}
	f.lanes = nil
	for _, c := range f.conns {
		c.Abandon()
	}
	f.conns = nil
}

// stopServer stops the NBD server unless a handshake of ours may still be open
// in QEMU: 7.2 would never come back from that. A server that is left is found again by
// the next run; it does no harm, except that other programs cannot start theirs.
//
// One on which another program has an export is left as well: stopping it would
// end that export, and hang QEMU 7.2 if a client of it is in its handshake.
func (f *Fleece) stopServer(ctx context.Context) error {
	if !f.server || f.opt.Now().Before(f.doubtUntil) {
		return nil
	}
	list, err := exports(ctx, f.conn)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(e exportInfo) bool { return e.Type == "nbd" }) { // ours are gone
		return nil
	}
	err = f.conn.run(ctx, nbdServerStop{}, nil)
	if err == nil || isRefusal(err) { // refused: somebody stopped it
		f.server = false
		return nil
	}
	return err
}

// waitGone waits until gone says yes. It asks again at each event and ten
// times a second: an event alone may be lost.
func waitGone(ctx context.Context, sub *Subscription, gone func(context.Context) (bool, error)) error {
	for {
		ok, err := gone(ctx)
		if ok || err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		_, err = sub.Next(wait)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrEventsLost) {
			return err
		}
	}
}
