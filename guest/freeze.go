package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// State is whether an agent holds the guest's filesystems frozen.
type State string

// The two states that an agent reports.
const (
	Thawed State = "thawed"
	Frozen State = "frozen"
)

// maxFrozen bounds the number of filesystems that an agent may claim.
const maxFrozen = 1 << 20

// FreezeResult is a freeze that succeeded.
type FreezeResult struct {
	Count int           // filesystems that are frozen now; 0 means that the freeze was for nothing
	Took  time.Duration // includes the flushing that a freeze begins with
}

// ThawResult says what it took to thaw.
type ThawResult struct {
	Count    int // filesystems that the agent thawed; 0 if none was frozen
	Attempts int
	Took     time.Duration
}

// Status asks whether the guest's filesystems are frozen.
func (a *Agent) Status(ctx context.Context) (State, error) {
	if err := a.take(ctx); err != nil {
		return "", err
	}
	defer a.give()
	return a.status(ctx)
}

func (a *Agent) status(ctx context.Context) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, a.limit.call)
	defer cancel()
	var state State
	if err := a.exchange(ctx, "guest-fsfreeze-status", nil, &state, a.limit.call, nil); err != nil {
		return "", err
	}
	if state != Thawed && state != Frozen {
		return "", fmt.Errorf("guest agent: guest-fsfreeze-status: %w: state %.40q", ErrBadAnswer, string(state))
	}
	return state, nil
}

// Freeze flushes and freezes the guest's filesystems; without a deadline it
// waits ten seconds for the answer. After any error but ErrAlreadyFrozen and
// ErrUnsupported the guest may be frozen, now or later. Who calls this must
// call Thaw on every path; Guard does that.
func (a *Agent) Freeze(ctx context.Context) (FreezeResult, error) {
	return a.freeze(ctx, nil)
}

// freeze calls sending just before the command leaves: from then on the guest
// may freeze, whatever we get to hear.
func (a *Agent) freeze(ctx context.Context, sending func()) (FreezeResult, error) {
	if err := a.take(ctx); err != nil {
		return FreezeResult{}, err
	}
	defer a.give()
	// Whoever froze it may count on it: then it is not for us to thaw.
	state, err := a.status(ctx)
	if err != nil {
		return FreezeResult{}, fmt.Errorf("before freezing: %w", err)
	}
	if state == Frozen {
		return FreezeResult{}, fmt.Errorf("guest agent: %w; if no other backup runs, thaw them", ErrAlreadyFrozen)
	}
	start := time.Now()
	var count int
	if err := a.exchange(ctx, "guest-fsfreeze-freeze", nil, &count, a.limit.freeze, sending); err != nil {
		return FreezeResult{}, err
	}
	if count < 0 || count > maxFrozen {
		return FreezeResult{}, fmt.Errorf("guest agent: guest-fsfreeze-freeze: %w: %d filesystems", ErrBadAnswer, count)
	}
	return FreezeResult{Count: count, Took: time.Since(start)}, nil
}

// Thaw thaws until the agent answers that nothing is frozen, or until ctx ends.
// It begins every attempt with a sync, so that a freeze that waits in front of
// a hung agent is executed before the thaw and not after it. A closed channel
// is opened again. The error wraps ErrStillFrozen if the agent answers and
// does not thaw, ErrNoAnswer or ErrNoAgent if it does not answer, ErrVMGone
// if the virtual machine has ended, and ErrUnsupported if the agent cannot
// freeze at all.
func (a *Agent) Thaw(ctx context.Context) (ThawResult, error) {
	start := time.Now()
	var result ThawResult
	if err := a.take(ctx); err != nil {
		return result, fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	defer a.give()
	for {
		result.Attempts++
		count, err := a.thawOnce(ctx)
		result.Count += count
		result.Took = time.Since(start)
		if err == nil || errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrStillFrozen) {
			return result, err
		}
		if errors.Is(err, ErrVMGone) && result.Attempts > 1 {
			return result, err // asked twice: not just a QEMU that is starting
		}
		select {
		case <-ctx.Done():
			return result, fmt.Errorf("after %d attempts to thaw in %.1f s: %w", result.Attempts, result.Took.Seconds(), err)
		case <-time.After(a.limit.retry):
		}
	}
}

// thawOnce thaws even if the agent says that it is thawed: one that lost its
// state file does not know of what it froze.
func (a *Agent) thawOnce(ctx context.Context) (count int, err error) {
	if err := a.sync(ctx); err != nil {
		return 0, err
	}
	thawErr := a.thawCommand(ctx, &count)
	if count < 0 || count > maxFrozen {
		count = 0 // only a number for the report
	}
	state, err := a.status(ctx)
	switch {
	case errors.Is(err, ErrUnsupported) && thawErr == nil:
		return count, nil // an agent that thaws and has no status to ask
	case err != nil:
		return count, errors.Join(err, thawErr)
	case state == Frozen:
		return count, errors.Join(ErrStillFrozen, thawErr)
	}
	var answered *AgentError
	if thawErr != nil && !errors.As(thawErr, &answered) {
		return count, thawErr
	}
	// The agent may complain about one filesystem (on Windows: VSS, whose ten
	// seconds are over) and yet hold none.
	return count, nil
}

// thawCommand bounds one attempt, so that the next one may begin with a sync.
func (a *Agent) thawCommand(ctx context.Context, count *int) error {
	ctx, cancel := context.WithTimeout(ctx, a.limit.freeze)
	defer cancel()
	return a.exchange(ctx, "guest-fsfreeze-thaw", nil, count, a.limit.freeze, nil)
}

// Thaw thaws the guest behind a socket, by the rules of Agent.Thaw: for the
// entries of a journal that a run which died has left.
func Thaw(ctx context.Context, path string) (ThawResult, error) {
	a := dialer(path)
	defer a.Close()
	return a.Thaw(ctx)
}

// ThawBy is Thaw by the way that DialBy takes.
func ThawBy(ctx context.Context, name string, dial func(context.Context) (net.Conn, error)) (ThawResult, error) {
	a := newAgent(name, dial, defaultTimeouts())
	defer a.Close()
	return a.Thaw(ctx)
}
