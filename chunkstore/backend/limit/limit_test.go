package limit

import (
	"context"
	"errors"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/backendtest"
	"cairn/chunkstore/backend/mem"
)

func TestContract(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return New(mem.New(), 1<<40) })
}

// TestPutWaits: what is over the limit is not put before its time; the first
// burst is free.
func TestPutWaits(t *testing.T) {
	b := New(mem.New(), 1<<20)
	ctx := context.Background()
	if err := b.Put(ctx, "a/first", make([]byte, burst)); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := b.Put(short, "a/second", make([]byte, burst)); err == nil {
		t.Fatal("a second's worth of bytes went out in 50 ms")
	}
	if _, err := b.Size(ctx, "a/second"); !errors.Is(err, backend.ErrNotExist) {
		t.Fatalf("what had to wait was put: %v", err)
	}
}

// TestShared: two places that share a limiter are limited together, and a new rate
// holds at once.
func TestShared(t *testing.T) {
	l := NewLimiter(0)
	a, b := Through(mem.New(), l), Through(mem.New(), l)
	ctx := context.Background()
	for _, p := range []backend.Backend{a, b} { // without a limit
		if err := p.Put(ctx, "a/first", make([]byte, 8*burst)); err != nil {
			t.Fatal(err)
		}
	}
	l.Set(1 << 10)
	if err := a.Put(ctx, "a/second", make([]byte, burst)); err != nil { // what may go out at once
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := b.Put(short, "a/second", make([]byte, burst)); err == nil {
		t.Fatal("the other one had a burst of its own")
	}
	l.Set(0)
	if err := b.Put(ctx, "a/third", make([]byte, 8*burst)); err != nil {
		t.Fatal(err)
	}
}
