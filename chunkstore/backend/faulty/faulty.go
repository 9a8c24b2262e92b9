package faulty

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/chunkstore/backend"
)

// Kind is what goes wrong.
type Kind int

// The kinds. A call that neither puts nor reads fails where it could not be late,
// torn or flipped.
const (
	Fail       Kind = iota // nothing is done, and the call fails
	Lost                   // it is done, and the call fails
	Late                   // the call fails; a put is done when Deliver is called
	Stop                   // it fails, and so does every later call: the caller has died
	StopBehind             // it is done, and every later call fails
	Tear                   // half of it is done, and the call says that all is well
	Flip                   // it is done with one bit wrong, and the call says that all is well
	Kinds                  // how many there are
)

// String implements fmt.Stringer.
func (k Kind) String() string {
	return [...]string{"fail", "lost", "late", "stop", "stop behind", "tear", "flip"}[k]
}

// ErrFault is what a call that fails says.
var ErrFault = errors.New("the place fails")

// A Plan says which call goes wrong, of all places that it wraps.
type Plan struct {
	kind Kind
	at   int

	mu    sync.Mutex
	calls int
	what  string
	spoil string
	good  []byte // what should be under that name
	late  []func()
}

// At gives a plan: call number n, from 0 on, goes wrong.
func At(n int, kind Kind) *Plan { return &Plan{kind: kind, at: n} }

// Wrap gives a place whose calls the plan counts.
func (p *Plan) Wrap(b backend.Backend) backend.Backend { return &place{b, p} }

// N is the number of the call that goes wrong.
func (p *Plan) N() int { return p.at }

// Dies says that there are no calls behind it.
func (p *Plan) Dies() bool { return p.kind == Stop || p.kind == StopBehind }

// Reached says whether there were so many calls.
func (p *Plan) Reached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls > p.at
}

// Spoiled names the object that was put with other bytes, and gives the right
// ones; "" if none was.
func (p *Plan) Spoiled() (name string, good []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spoil, p.good
}

// String says what went wrong.
func (p *Plan) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("call %d (%s): %s", p.at, p.what, p.kind)
}

// Deliver does the puts that are late.
func (p *Plan) Deliver() {
	p.mu.Lock()
	late := p.late
	p.late = nil
	p.mu.Unlock()
	for _, put := range late {
		put()
	}
}

// next counts a call. With dead the caller has died before it; with now it is the
// one that goes wrong.
func (p *Plan) next(op, name string) (now, dead bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.calls
	p.calls++
	if n == p.at {
		p.what = op + " " + name
	}
	return n == p.at, n > p.at && p.Dies()
}

// do makes a call that can only be done or not.
func (p *Plan) do(op, name string, call func() error) error {
	now, dead := p.next(op, name)
	switch {
	case dead:
		return ErrFault
	case !now:
		return call()
	case p.kind == Lost || p.kind == StopBehind:
		_ = call()
	}
	return fmt.Errorf("%s %s: %w", op, name, ErrFault)
}

type place struct {
	backend.Backend
	plan *Plan
}

// Put implements backend.Backend.
func (b *place) Put(ctx context.Context, name string, data []byte) error {
	p := b.plan
	now, dead := p.next("put", name)
	err := fmt.Errorf("put %s: %w", name, ErrFault)
	switch {
	case dead:
		return ErrFault
	case !now:
		return b.Backend.Put(ctx, name, data)
	case p.kind == Lost || p.kind == StopBehind:
		_ = b.Backend.Put(ctx, name, data)
	case p.kind == Late:
		data = bytes.Clone(data)
		p.mu.Lock()
		p.late = append(p.late, func() { _ = b.Backend.Put(context.WithoutCancel(ctx), name, data) })
		p.mu.Unlock()
	case (p.kind == Tear || p.kind == Flip) && len(data) > 0:
		if err = b.Backend.Put(ctx, name, p.wrong(data)); err == nil {
			p.mu.Lock()
			p.spoil, p.good = name, bytes.Clone(data)
			p.mu.Unlock()
		}
	}
	return err
}

// wrong gives bytes as the plan spoils them.
func (p *Plan) wrong(data []byte) []byte {
	if p.kind == Tear {
		return data[:len(data)/2]
	}
	data = bytes.Clone(data)
	data[p.at*7919%len(data)] ^= 1 << (p.at % 8)
	return data
}

// ReadAt implements backend.Backend.
func (b *place) ReadAt(ctx context.Context, name string, buf []byte, off int64) error {
	p := b.plan
	if p.kind != Tear && p.kind != Flip {
		return p.do("read", name, func() error { return b.Backend.ReadAt(ctx, name, buf, off) })
	}
	now, _ := p.next("read", name)
	err := b.Backend.ReadAt(ctx, name, buf, off)
	if now && err == nil && len(buf) > 0 {
		n := copy(buf, p.wrong(buf))
		clear(buf[n:])
	}
	return err
}

// Size implements backend.Backend.
func (b *place) Size(ctx context.Context, name string) (n int64, err error) {
	err = b.plan.do("size", name, func() error { n, err = b.Backend.Size(ctx, name); return err })
	return n, err
}

// List implements backend.Backend.
func (b *place) List(ctx context.Context, prefix string, fn func(backend.Object) error) error {
	return b.plan.do("list", prefix, func() error { return b.Backend.List(ctx, prefix, fn) })
}

// Delete implements backend.Backend.
func (b *place) Delete(ctx context.Context, name string) error {
	return b.plan.do("delete", name, func() error { return b.Backend.Delete(ctx, name) })
}
