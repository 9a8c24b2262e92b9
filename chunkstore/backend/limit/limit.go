package limit

import (
	"context"

	"golang.org/x/time/rate"

	"cairn/chunkstore/backend"
)

// burst is what may go out at once, in bytes.
const burst = 1 << 20

// Limiter is what several places keep to together.
type Limiter struct{ rate *rate.Limiter }

// NewLimiter makes one of bytesPerSecond; 0 or less is no limit.
func NewLimiter(bytesPerSecond int64) *Limiter {
	l := &Limiter{rate.NewLimiter(rate.Inf, burst)}
	l.Set(bytesPerSecond)
	return l
}

// Set changes the rate; 0 or less is no limit. It may be called while places put.
func (l *Limiter) Set(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		l.rate.SetLimit(rate.Inf)
		return
	}
	l.rate.SetLimit(rate.Limit(bytesPerSecond))
}

// place limits another one.
type place struct {
	backend.Backend
	limiter *rate.Limiter
}

// Through limits what is put into a place together with other places; a nil
// limiter is no limit.
func Through(b backend.Backend, l *Limiter) backend.Backend {
	if l == nil {
		return b
	}
	return place{b, l.rate}
}

// New limits what is put into a place to bytesPerSecond, together and not for
// each object; 0 or less is no limit.
func New(b backend.Backend, bytesPerSecond int64) backend.Backend {
	if bytesPerSecond <= 0 {
		return b
	}
	return place{b, rate.NewLimiter(rate.Limit(bytesPerSecond), burst)}
}

// Put implements backend.Backend: it waits until the object may go out.
func (p place) Put(ctx context.Context, name string, data []byte) error {
	if err := p.wait(ctx, len(data)); err != nil {
		return err
	}
	return p.Backend.Put(ctx, name, data)
}

// PutStrict implements backend.Strict for what it limits.
func (p place) PutStrict(ctx context.Context, name string, data []byte) error {
	if err := p.wait(ctx, len(data)); err != nil {
		return err
	}
	return backend.PutStrict(ctx, p.Backend, name, data)
}

// wait returns when so many bytes may go out.
func (p place) wait(ctx context.Context, bytes int) error {
	for left := bytes; left > 0; {
		n := min(left, burst)
		if err := p.limiter.WaitN(ctx, n); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// Replaces implements backend.Replacer for what it limits.
func (p place) Replaces() bool {
	r, ok := p.Backend.(backend.Replacer)
	return ok && r.Replaces()
}

// Replace implements backend.Replacer for what it limits, where that does.
func (p place) Replace(ctx context.Context, name string, data []byte) error {
	if err := p.wait(ctx, len(data)); err != nil {
		return err
	}
	_, err := backend.Replace(ctx, p.Backend, name, data)
	return err
}

// Syncs implements backend.Syncer for what it limits.
func (p place) Syncs() bool { return backend.Syncs(p.Backend) }

// Sync implements backend.Syncer for what it limits.
func (p place) Sync(ctx context.Context, prefix string) error {
	return backend.Sync(ctx, p.Backend, prefix)
}

// Tidy implements backend.Tidier for what it limits.
func (p place) Tidy(ctx context.Context, listed func(name string) bool) error {
	return backend.Tidy(ctx, p.Backend, listed)
}

// PutsAtOnce is what the limited place says.
func (p place) PutsAtOnce() int { return backend.PutsAtOnce(p.Backend) }

// Get implements backend.Getter.
func (p place) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	return backend.Get(ctx, p.Backend, name, limit)
}
