package gc

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"cairn/chunkstore/backend"
)

// simPlace is the store as one actor sees it.
type simPlace struct{ a *actor }

// PutsAtOnce keeps an actor to one call at a time, or a seed would not replay.
func (simPlace) PutsAtOnce() int { return 1 }

// do makes one call, with its faults.
func (p simPlace) do(op, name string, call func() error) (err error) {
	if err := p.a.turn(); err != nil {
		return err
	}
	s := p.a.s
	if s.log != nil {
		defer func() { s.log(fmt.Sprintf("%4d %-12s %-6s %s: %v", s.steps, p.a.name, op, name, err)) }()
	}
	switch n := s.rnd.IntN(600); {
	case n == 0:
		s.crash(p.a)
		return errCrashed
	case n == 1:
		_ = call()
		s.crash(p.a)
		return errCrashed
	case n == 2 && op == "put":
		s.counts["answers lost"]++
		_ = call()
		return errLost
	case n == 3:
		s.counts["calls failed"]++
		return errLost
	case n == 5 && op == "read":
		s.counts["bodies torn"]++
		return io.ErrUnexpectedEOF
	}
	return call()
}

// put stores an object, and a mirror has it a moment later.
func (s *sim) put(ctx context.Context, name string, data []byte) error {
	err := s.place.Put(ctx, name, data)
	if err == nil {
		_ = s.mirror.Put(ctx, name, data) // names are never used again
	}
	return err
}

func (s *sim) crash(a *actor) {
	a.crashed = true
	s.counts["crashes"]++
}

func (p simPlace) Put(ctx context.Context, name string, data []byte) error {
	s := p.a.s
	return p.do("put", name, func() error {
		if s.rnd.IntN(600) == 0 {
			s.counts["puts repeated"]++
			again := bytes.Clone(data) // its owner uses the buffer for the next pack
			s.late = append(s.late, func() { _ = s.put(ctx, name, again) })
		}
		return s.put(ctx, name, data)
	})
}

func (p simPlace) ReadAt(ctx context.Context, name string, b []byte, off int64) error {
	return p.do("read", name, func() error { return p.a.s.place.ReadAt(ctx, name, b, off) })
}

func (p simPlace) Size(ctx context.Context, name string) (n int64, err error) {
	err = p.do("size", name, func() error { n, err = p.a.s.place.Size(ctx, name); return err })
	return n, err
}

func (p simPlace) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	return p.do("list", prefix, func() error { return p.a.s.place.List(ctx, prefix, fn) })
}

func (p simPlace) Delete(ctx context.Context, name string) error {
	return p.do("delete", name, func() error { return p.a.s.place.Delete(ctx, name) })
}
