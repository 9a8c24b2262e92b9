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
