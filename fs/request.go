package fs

import (
	"context"
	"time"
)

// request is the context of one kernel request: it ends when the kernel, or
// the watchdog of device at the deadline, interrupts it. It is made for every
// request, so it has no timer of its own: Done closes a little later than Err
// tells of the deadline.
type request struct {
	cancel   <-chan struct{}
	deadline time.Time
}

var _ context.Context = request{}

// Deadline implements context.Context.
func (r request) Deadline() (time.Time, bool) { return r.deadline, true }

// Done implements context.Context.
func (r request) Done() <-chan struct{} { return r.cancel }

// Err implements context.Context.
func (r request) Err() error {
	select {
	case <-r.cancel:
		return context.Canceled
	default:
	}
	if !time.Now().Before(r.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context.
func (r request) Value(any) any { return nil }
