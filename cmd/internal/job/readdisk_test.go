package job

import (
	"context"
	"errors"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

// brokenSource is a disk of data whose first byte cannot be read, as that of
// a fleece whose scratch disk is full.
type brokenSource struct{ size int64 }

var errBroken = errors.New("the fleece is broken")

func (s brokenSource) Size() int64 { return s.size }

func (s brokenSource) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off == 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func (s brokenSource) Extents(_ context.Context, fn func(off, length int64, zero bool) error) error {
	return fn(0, s.size, false)
}

type noIndex struct{}

func (noIndex) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (noIndex) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// A read that fails ends the run, however much of the disk is still to come:
// the buffers of what is behind it must not be waited for.
func TestReadDiskEndsOnBrokenSource(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	place := mem.New()
	c, err := chunkstore.Init(ctx, place, chunkstore.InitOptions{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunkstore.Unlock(ctx, place, c, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.NewStore(place, c, keys).Begin(ctx, noIndex{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	src := brokenSource{64 * chunkstore.BatchSize}
	b, err := restorepoint.NewBuilder(ctx, s, nil, src.size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readDisk(ctx, s, b, src, false, newPace(time.Now), func(int64) {}); !errors.Is(err, errBroken) || ctx.Err() != nil {
		t.Errorf("got %v (%v), want %v at once", err, ctx.Err(), errBroken)
	}
}
