package guest

import (
	"context"
	"sync"
	"time"
)

// Guard freezes once and sees to it that the guest is thawed again, whatever
// happens in between.
type Guard struct {
	agent *Agent

	mu       sync.Mutex
	sent     bool // a freeze may have reached the agent
	sentAt   time.Time
	released bool
	result   Release
}

// Release reports how a freeze ended.
type Release struct {
	ThawResult
	Sent      bool          // a freeze was sent; if not, there was nothing to thaw
	FrozenFor time.Duration // at most: from sending the freeze to the answer to the thaw
}

// Guard returns a guard for one freeze.
func (a *Agent) Guard() *Guard { return &Guard{agent: a} }

// Freeze is Agent.Freeze under the guard. It may be called once.
func (g *Guard) Freeze(ctx context.Context) (FreezeResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sent || g.released {
		panic("internal error: a guest.Guard freezes only once")
	}
	return g.agent.freeze(ctx, func() { g.sent, g.sentAt = true, time.Now() })
}

// Release thaws if a freeze was sent, also if that freeze failed or nobody
// knows how it ended. Give it a context of its own and not the run's: it goes
// on until the agent has answered or ctx has ended. When it has failed it may
// be called again; when it has succeeded it only reports again. Errors are
// those of Agent.Thaw; as long as it fails, the host's journal must keep the
// entry. It waits for a Freeze that still runs in another goroutine.
func (g *Guard) Release(ctx context.Context) (Release, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.released {
		return g.result, nil
	}
	if !g.sent {
		g.released = true
		return g.result, nil
	}
	thawed, err := g.agent.Thaw(ctx)
	g.result.Sent = true
	g.result.Count += thawed.Count
	g.result.Attempts += thawed.Attempts
	g.result.Took += thawed.Took
	g.result.FrozenFor = time.Since(g.sentAt)
	g.released = err == nil
	return g.result, err
}
