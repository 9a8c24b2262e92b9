package guest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/guest/object"
)

// Waits of the guard. The steps before and after a freeze are the guest
// operator's, so they have minutes; the filesystems stand for none of that.
const (
	thawCallTime = 90 * time.Second
	redialTime   = 5 * time.Second // of one attempt to reach an agent that may be gone
)

// InsideGuard freezes once through the inside agent and sees to it that the
// guest is thawed again, whatever happens in between. It is to Inside what
// Guard is to Agent.
type InsideGuard struct {
	session *Inside
	redial  func(context.Context) (*Inside, error)
	patient time.Duration // of the call to thaw

	mu       sync.Mutex
	sent     bool
	sentAt   time.Time
	released bool
	thawn    Thawn
	result   Release
}

// Guard returns a guard for one freeze. redial begins a new session: an agent
// undoes what the session before has left, so reaching it is as good as a thaw;
// that is tried when the call to thaw, with the post steps, takes longer than
// patient.
func (s *Inside) Guard(redial func(context.Context) (*Inside, error), patient time.Duration) *InsideGuard {
	return &InsideGuard{session: s, redial: redial, patient: min(patient, thawCallTime)}
}

// Freeze quiesces the applications and freezes the guest's filesystems. After
// any error the guest may be frozen, now or later: call Release on every path.
func (g *InsideGuard) Freeze(ctx context.Context, point string) (FreezeAnswer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sent || g.released {
		panic("internal error: a guest.InsideGuard freezes only once")
	}
	g.sent, g.sentAt = true, time.Now()
	var a FreezeAnswer
	if err := g.session.Call(ctx, CallFreeze, Freeze{Point: point}, &a); err != nil {
		return FreezeAnswer{}, err
	}
	if a.Filesystems < 0 || a.Filesystems > maxFrozen || len(a.Digest) != 64 || a.Size < 2 || a.Size > object.MaxDocument {
		return FreezeAnswer{}, fmt.Errorf("inside agent: freeze: %w: %d filesystems, a document of %d bytes with digest %.80q", ErrBadAnswer, a.Filesystems, a.Size, a.Digest)
	}
	return a, nil
}

// Release thaws if a freeze was sent. It goes on until the agent has answered
// or ctx has ended, which then should be a context of its own and not the
// run's. Thawn.Held is false unless the agent said that all stood until it was
// asked to thaw. When it has failed it may be called again.
func (g *InsideGuard) Release(ctx context.Context) (Thawn, Release, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.released || !g.sent {
		g.released = true
		return g.thawn, g.result, nil
	}
	start := time.Now()
	g.result.Sent = true
	g.result.Attempts++
	cctx, cancel := context.WithTimeout(ctx, g.patient)
	defer cancel()
	thawn := Thawn{}
	err := g.session.Call(cctx, CallThaw, nil, &thawn)
	if err == nil && (thawn.Filesystems < 0 || thawn.Filesystems > maxFrozen) {
		err = fmt.Errorf("inside agent: thaw: %w: %d filesystems", ErrBadAnswer, thawn.Filesystems)
	}
	if err != nil {
		why := err
		_ = g.session.Close() // it holds the channel: no other session is answered beside it
		if err = thawBySession(ctx, g.redial, &g.result.Attempts); err == nil {
			thawn = Thawn{Reason: object.Text("the agent's session broke before the thaw: " + why.Error())}
		}
	}
	g.result.Count, g.result.Took, g.result.FrozenFor = thawn.Filesystems, time.Since(start), time.Since(g.sentAt)
	if err != nil {
		return Thawn{Reason: object.Text(err.Error())}, g.result, err
	}
	thawn.Reason = object.Text(thawn.Reason)
	g.thawn, g.released = thawn, true
	return thawn, g.result, nil
}

// ThawInside sees to it that the inside agent behind redial holds nothing
// frozen, by the rules of Agent.Thaw. Errors: ErrNoAgent or ErrNoAnswer when it
// was not reached before ctx ended, ErrVMGone, ErrStillFrozen.
func ThawInside(ctx context.Context, redial func(context.Context) (*Inside, error)) error {
	var attempts int
	return thawBySession(ctx, redial, &attempts)
}

// thawBySession begins sessions until an agent says that nothing is frozen.
func thawBySession(ctx context.Context, redial func(context.Context) (*Inside, error), attempts *int) error {
	for begin := time.Now(); ; {
		*attempts++
		err := thawByOneSession(ctx, redial)
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrVMGone) && *attempts > 2 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %d attempts to thaw in %.1f s: %w", *attempts, time.Since(begin).Seconds(), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func thawByOneSession(ctx context.Context, redial func(context.Context) (*Inside, error)) error {
	dctx, cancel := context.WithTimeout(ctx, redialTime)
	defer cancel()
	s, err := redial(dctx)
	if err != nil {
		return err
	}
	defer s.Close()
	var is Status
	if err := s.Call(dctx, CallStatus, nil, &is); err != nil {
		return err
	}
	if is.Frozen {
		tctx, cancel := context.WithTimeout(ctx, thawCallTime)
		defer cancel()
		if err := s.Call(tctx, CallThaw, nil, nil); err != nil {
			return errors.Join(ErrStillFrozen, err)
		}
	}
	return nil
}
