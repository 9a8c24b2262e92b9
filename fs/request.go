package fs

import (
	"context"
	"time"
)

// request is the context of one kernel request: it ends when the kernel
// interrupts it or its deadline is over. It is made for every request, so it
// has no timer: Done closes on an interrupt only, and Err tells of the
// deadline to whoever asks between two steps. What may block without asking
// is a read of a disk's image, and that has a deadline of its own
// (boundedImage).
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
