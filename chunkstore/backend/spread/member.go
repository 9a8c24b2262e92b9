package spread

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"cairn/chunkstore/backend"
)

// ErrAway: so many places cannot be reached that the answer is not certain,
// or that nothing can be stored.
var ErrAway = errors.New("too few places can be reached")

// errGone: one place is passed over because it did not answer.
var errGone = errors.New("the place does not answer")

// identityName is the object by which a place says which one it is. Part of
// the on-disk format.
const identityName = "place"

// Member is one of the places.
type Member struct {
	// ID names the place for ever; Slot is the ID of the place whose shards
	// it took over, or its own.
	ID, Slot string
	Spec     string          // a folder or URL, for people
	Place    backend.Backend // nil: it could not be opened
	Why      error           // why not
	// Identity is what the place's identity object holds; nil: it is not
	// looked at.
	Identity []byte
}

// A member is a Member and what is known of its health. A place that did not
// answer in time is passed over for a while, which doubles each time; then
// one operation tries it, and while an old one still hangs none does.
type member struct {
	Member
	o *Options

	mu      sync.Mutex
	hanging int           // operations that nobody waits for any more
	wait    time.Duration // 0: it answers
	until   time.Time
	trying  bool
	why     error
}

// enter says whether an operation may begin, and whether it is the one that
// tries a place which did not answer.
func (m *member) enter() (trial bool, err error) {
	if m.Place == nil {
		return false, &placeError{m.Spec, m.Why}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wait == 0 {
		return false, nil
	}
	if m.hanging > 0 || m.trying || m.o.now().Before(m.until) {
		return false, &placeError{m.Spec, m.why}
	}
	m.trying = true
	return true, nil
}

// away says whether an operation would be refused now.
func (m *member) away() bool {
	if m.Place == nil {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wait > 0 && (m.hanging > 0 || m.trying || m.o.now().Before(m.until))
}

// answered ends an operation.
func (m *member) answered() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wait, m.trying, m.why = 0, false, nil
}

// timedOut closes the place for a while: one hang that many operations met is
// one.
func (m *member) timedOut(limit time.Duration, trial bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wait == 0 || trial {
		m.wait = min(max(2*m.wait, m.o.Backoff), 20*m.o.Backoff)
		m.until = m.o.now().Add(m.wait)
		m.why = fmt.Errorf("%w within %s", errGone, limit)
	}
	if trial {
		m.trying = false
	}
	return &placeError{m.Spec, m.why}
}

// gaveUp ends an operation whose caller left: it says nothing of the place.
func (m *member) gaveUp(trial bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trying = m.trying && !trial
}

func (m *member) hangs(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hanging += n
}

// do runs fn, which must not touch what its caller uses later: after limit
// without an answer (or a call of alive) do returns, and fn may still run.
func (m *member) do(ctx context.Context, limit time.Duration, fn func(ctx context.Context, alive func()) error) error {
	trial, err := m.enter()
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	pulse := make(chan struct{}, 1)
	go func() {
		done <- fn(inner, func() {
			select {
			case pulse <- struct{}{}:
			default:
			}
		})
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	left := ctx.Done()
	for {
		select {
		case err := <-done:
			if err != nil && ctx.Err() != nil {
				m.gaveUp(trial)
				return err
			}
			m.answered()
			if err != nil {
				return &placeError{m.Spec, err}
			}
			return nil
		case <-pulse:
			timer.Reset(limit)
		case <-left: // what is quick may end; a hung place is not waited for
			left = nil
			timer.Reset(min(limit, m.o.Leave))
		case <-timer.C:
			m.hangs(1)
			go func() { // ends with fn
				<-done
				m.hangs(-1)
			}()
			if ctx.Err() != nil {
				m.gaveUp(trial)
				return context.Cause(ctx)
			}
			return m.timedOut(limit, trial)
		}
	}
}

// known says that the place is still the one it was: a disk that is not
// mounted any more leaves an empty folder, which must not be written to and
// knows nothing of what is stored.
func (m *member) known(ctx context.Context) error {
	if m.Identity == nil {
		return nil
	}
	n, err := m.Place.Size(ctx, identityName)
	switch {
	case errors.Is(err, backend.ErrNotExist), err == nil && n != int64(len(m.Identity)):
		return fmt.Errorf("%w: it holds no place any more: is its disk mounted", errGone)
	}
	return err
}

// there says whether the place answers, and is itself.
func (m *member) there(ctx context.Context) error {
	_, err := m.size(ctx, identityName)
	if errors.Is(err, backend.ErrNotExist) && m.Identity == nil {
		return nil
	}
	return err
}

// putLimit is how long a put may take: as if a place took 1 MiB a second, and
// half of that for what is small, so that two places which hang in the middle
// of a commit do not outlast it.
func (m *member) putLimit(n int) time.Duration {
	if n < 1<<20 {
		return m.o.PutLimit / 2
	}
	return m.o.PutLimit + time.Duration(n>>20)*m.o.PutLimit/30
}

// put stores data, which must not be changed any more.
func (m *member) put(ctx context.Context, name string, data []byte) error {
	return m.do(ctx, m.putLimit(len(data)), func(ctx context.Context, _ func()) error {
		if err := m.known(ctx); err != nil {
			return err
		}
		return m.Place.Put(ctx, name, data)
	})
}

// read gives n bytes of an object.
func (m *member) read(ctx context.Context, name string, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	limit := m.o.ReadLimit + time.Duration(n>>20)*m.o.PutLimit/30 // repair reads whole shards
	err := m.do(ctx, limit, func(ctx context.Context, _ func()) error { return m.Place.ReadAt(ctx, name, b, off) })
	if err != nil {
		return nil, err // and not b: it may still be written to
	}
	return b, nil
}

// size gives an object's size; what is not there counts only when the place
// is there.
func (m *member) size(ctx context.Context, name string) (int64, error) {
	out := make(chan int64, 1)
	err := m.do(ctx, m.o.ReadLimit, func(ctx context.Context, _ func()) error {
		n, err := m.Place.Size(ctx, name)
		if errors.Is(err, backend.ErrNotExist) {
			if gone := m.known(ctx); gone != nil {
				return gone
			}
		}
		out <- n
		return err
	})
	if err != nil {
		return 0, err
	}
	return <-out, nil
}

// list gives the objects below a prefix to fn, also some after it has failed.
func (m *member) list(ctx context.Context, prefix string, fn func(backend.Object)) error {
	return m.do(ctx, m.o.PutLimit, func(ctx context.Context, alive func()) error {
		err := m.Place.List(ctx, prefix, func(o backend.Object) error {
			alive()
			fn(o)
			return ctx.Err() // nobody waits any more
		})
		if err == nil {
			err = m.known(ctx)
		}
		return err
	})
}

func (m *member) remove(ctx context.Context, name string) error {
	return m.do(ctx, m.o.PutLimit, func(ctx context.Context, _ func()) error {
		if err := m.known(ctx); err != nil {
			return err
		}
		err := m.Place.Delete(ctx, name)
		if errors.Is(err, fs.ErrNotExist) { // its folder is not there either
			return nil
		}
		return err
	})
}

// slow says whether the place is passed over because it did not answer in
// time.
func (m *member) slow() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wait > 0
}

// forgive lets everybody use the place again, unless something still hangs.
func (m *member) forgive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hanging == 0 {
		m.wait, m.trying, m.why = 0, false, nil
	}
}

// reason says why the place is passed over.
func (m *member) reason() error {
	if m.Place == nil {
		return &placeError{m.Spec, m.Why}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.why == nil {
		return nil
	}
	return &placeError{m.Spec, m.why}
}
