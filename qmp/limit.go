package qmp

import (
	"context"

	"golang.org/x/time/rate"
)

// limitBurst is what may be read at once, in bytes: more than any one request.
const limitBurst = 1 << 20

// Limiter bounds the rate of reading of all sources that share it.
type Limiter struct{ l *rate.Limiter }

// NewLimiter makes a limiter of bytesPerSecond; nil, which limits nothing, for
// 0 or less.
func NewLimiter(bytesPerSecond int64) *Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return &Limiter{rate.NewLimiter(rate.Limit(bytesPerSecond), limitBurst)}
}

// NewShared makes a limiter for several runs, whose rate Set changes.
func NewShared(bytesPerSecond int64) *Limiter {
	l := &Limiter{rate.NewLimiter(rate.Inf, limitBurst)}
	l.Set(bytesPerSecond)
	return l
}

// Set changes the rate, also for reads that wait; 0 or less is no limit.
func (l *Limiter) Set(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		l.l.SetLimit(rate.Inf)
		return
	}
	l.l.SetLimit(rate.Limit(bytesPerSecond))
}

// Limit gives a source whose ReadAt keeps to the limit: a backup then leaves
// the VM's storage time for the guest. Samples are small and not limited.
func (l *Limiter) Limit(s Source) Source {
	if l == nil {
		return s
	}
	return limited{s, l}
}

type limited struct {
	Source
	limiter *Limiter
}

// ReadAt implements Source.
func (s limited) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	for left := len(p); left > 0; left -= limitBurst {
		if err := s.limiter.l.WaitN(ctx, min(left, limitBurst)); err != nil {
			return 0, err
		}
	}
	return s.Source.ReadAt(ctx, p, off)
}

// Whole implements Source.
func (s limited) Whole() Source { return limited{s.Source.Whole(), s.limiter} }
