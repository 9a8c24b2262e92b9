package qmp

import (
	"context"
	"testing"
	"time"
)

// zeroSource is a disk of zeros.
type zeroSource struct{ Source }

func (zeroSource) ReadAt(context.Context, []byte, int64) (int, error) { return 0, nil }
func (zeroSource) Anywhere() bool                                     { return true }
func (zeroSource) Whole() Source                                      { return zeroSource{} }

// TestLimitHoldsReadsBack: the first burst is free, what is over the rate
// waits, and the whole disk of a source shares its limit.
func TestLimitHoldsReadsBack(t *testing.T) {
	s := NewLimiter(limitBurst).Limit(zeroSource{})
	if _, err := s.ReadAt(context.Background(), make([]byte, limitBurst), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Whole().ReadAt(ctx, make([]byte, limitBurst), 0); err == nil {
		t.Error("a second's worth of bytes was read in 50 ms")
	}
	if _, ok := NewLimiter(0).Limit(zeroSource{}).(zeroSource); !ok {
		t.Error("no limit is a limit")
	}
}

// TestSharedLimit: the disks of several runs share one limit, whose rate changes.
func TestSharedLimit(t *testing.T) {
	l := NewShared(0)
	a, b := l.Limit(zeroSource{}), l.Limit(zeroSource{})
	if _, err := a.ReadAt(context.Background(), make([]byte, 8*limitBurst), 0); err != nil { // no limit
		t.Fatal(err)
	}
	l.Set(1)
	if _, err := a.ReadAt(context.Background(), make([]byte, limitBurst), 0); err != nil { // what may be read at once
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.ReadAt(ctx, make([]byte, limitBurst), 0); err == nil {
		t.Error("the other one had a limit of its own")
	}
}
