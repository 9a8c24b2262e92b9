package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// maxQueuedEvents bounds what a subscriber may leave unfetched.
const maxQueuedEvents = 10_000

// Event is one event of QEMU.
type Event struct {
	Name string          // "BLOCK_EXPORT_DELETED"
	Data json.RawMessage // an object, or nil: STOP and RESUME have none
	Time time.Time       // QEMU's clock
}

// Subscription is a queue of events. A subscriber that does not fetch them
// never holds up commands or other subscribers: it loses the oldest events and
// is told so.
type Subscription struct {
	conn *Conn
	wake chan struct{} // has room for one

	mu    sync.Mutex
	queue []Event
	lost  int
	dead  error
}

// Subscribe queues all events from now on until Close.
func (c *Conn) Subscribe() *Subscription {
	s := &Subscription{conn: c, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = struct{}{}
	if c.dead != nil {
		s.dead = c.dead
	}
	return s
}

func (s *Subscription) put(e Event) {
	s.mu.Lock()
	if len(s.queue) >= maxQueuedEvents {
		s.queue = s.queue[1:]
		s.lost++
	}
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	s.signal()
}

func (s *Subscription) end(err error) {
	s.mu.Lock()
	s.dead = err
	s.mu.Unlock()
	s.signal()
}

func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Next gives the next event. It says ErrEventsLost once for each loss, and
// after the last event why the connection ended. One goroutine at a time.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		e, ok, err := s.poll()
		if ok || err != nil {
			return e, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// poll is Next without waiting; ok is false when there is nothing.
func (s *Subscription) poll() (e Event, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost > 0 {
		n := s.lost
		s.lost = 0
		return Event{}, false, fmt.Errorf("%d %w", n, ErrEventsLost)
	}
	if len(s.queue) > 0 {
		e := s.queue[0]
		s.queue = s.queue[1:]
		return e, true, nil
	}
	return Event{}, false, s.dead
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	delete(s.conn.subs, s)
}
