package chunkstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/limit"
	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/chunk"
)

// slowPlace is a far place: a pack takes it a while, and it likes several at
// once.
type slowPlace struct {
	*mem.Place
	atOnce    int
	now, most atomic.Int64
	stored    sync.Map // pack → true, once it is durable
	fail      func(n int64) error
	puts      atomic.Int64
	full      chan struct{} // closed when atOnce packs were on their way at once
	isFull    sync.Once
}

func newSlowPlace(atOnce int) *slowPlace {
	return &slowPlace{Place: mem.New(), atOnce: atOnce, full: make(chan struct{})}
}

func (s *slowPlace) PutsAtOnce() int { return s.atOnce }

func (s *slowPlace) Put(ctx context.Context, name string, data []byte) error {
	if !strings.HasPrefix(name, packsPrefix) {
		return s.Place.Put(ctx, name, data)
	}
	n := s.now.Add(1)
	defer s.now.Add(-1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	nth := s.puts.Add(1)
	if n == int64(s.atOnce) {
		s.isFull.Do(func() { close(s.full) })
	}
	select { // a busy machine may take long to fill so many packs
	case <-s.full:
	case <-time.After(time.Minute):
	case <-ctx.Done():
		return ctx.Err()
	}
	select { // the later one is faster: their ends come in another order
	case <-time.After(time.Duration(8-min(nth, 7)) * 20 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.fail != nil {
		if err := s.fail(nth); err != nil {
			return err
		}
	}
	err := s.Place.Put(ctx, name, data)
	s.stored.Store(name, true)
	return err
}

// orderIndex holds a session to the order: durable, then indexed.
type orderIndex struct {
	*memIndex
	place *slowPlace
	packs atomic.Int64
	wrong atomic.Int64
	busy  atomic.Int64
}

func (o *orderIndex) Add(ctx context.Context, ref PackRef, ids []chunk.ID) error {
	if _, ok := o.place.stored.Load(packName(ref)); !ok || o.busy.Add(1) > 1 {
		o.wrong.Add(1)
	}
	defer o.busy.Add(-1)
	o.packs.Add(1)
	return o.memIndex.Add(ctx, ref, ids)
}

// pour appends n packs' worth of data that does not compress.
func pour(ctx context.Context, w *Session, seed uint64, n int) error {
	var key [32]byte
	key[0] = byte(seed)
	r := rand.NewChaCha8(key)
	for range n * (targetPack / BatchSize) {
		buf, err := w.Buffer(ctx)
		if err != nil {
			return err
		}
		_, _ = r.Read(buf) // never fails
		if err := w.Append(ctx, &Batch{Data: buf}); err != nil {
			return err
		}
	}
	return nil
}

// TestSeveralPacksAtOnce: as many packs as the place likes are stored at the
// same time, also through a limit, each is durable before the index hears of
// it, and Flush returns only when all are both.
func TestSeveralPacksAtOnce(t *testing.T) {
	for _, atOnce := range []int{1, 4} {
		ctx := context.Background()
		s := newSlowPlace(atOnce)
		ix := &orderIndex{memIndex: newMemIndex(), place: s}
		w, err := newStore(t, limit.New(s, 1<<40)).Begin(ctx, ix, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		for round := range uint64(2) {
			if err := pour(ctx, w, round, 5); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if n := w.Statistics().Packs; ix.packs.Load() != n || s.now.Load() != 0 {
				t.Errorf("after a flush: %d packs, %d in the index, %d on their way", n, ix.packs.Load(), s.now.Load())
			}
		}
		if ix.wrong.Load() > 0 {
			t.Errorf("%d times the index was told too early, or twice at once", ix.wrong.Load())
		}
		if s.most.Load() != int64(atOnce) {
			t.Errorf("%d packs at once, want %d", s.most.Load(), atOnce)
		}
	}
}

// TestOneOfSeveralPacksFails: the error of any of them ends the session, is what
// Flush says, and nothing hangs or goes on.
func TestOneOfSeveralPacksFails(t *testing.T) {
	for _, nth := range []int64{1, 3, 5} {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		s := newSlowPlace(4)
		s.fail = func(n int64) error {
			if n == nth {
				return backend.ErrNoSpace
			}
			return nil
		}
		ix := &orderIndex{memIndex: newMemIndex(), place: s}
		w, err := newStore(t, s).Begin(ctx, ix, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = pour(ctx, w, 9, 5)
		if err == nil {
			err = w.Flush(ctx)
		}
		if !errors.Is(err, backend.ErrNoSpace) {
			t.Errorf("pack %d failed, the session says: %v", nth, err)
		}
		w.Close()
		if s.now.Load() != 0 || ix.wrong.Load() > 0 {
			t.Errorf("pack %d failed: %d still on their way, %d indexed too early", nth, s.now.Load(), ix.wrong.Load())
		}
		if err := w.Commit(ctx, []byte("no")); err == nil {
			t.Error("a failed session committed")
		}
	}
}
