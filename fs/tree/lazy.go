package tree

import (
	"context"
	"errors"
	"sync/atomic"

	"cairn/guest/filesystem"
	"cairn/index/restorepoint"
)

// lazy is a value that the first caller computes and the others wait for.
// Unlike sync.OnceValue it can be waited for with a context, and a failure
// that may pass (a deadline, a store that does not answer) is not kept.
type lazy[T any] struct {
	turn chan struct{} // holds a token while somebody computes
	kept atomic.Pointer[outcome[T]]
}

type outcome[T any] struct {
	value T
	err   error
}

func newLazy[T any]() *lazy[T] {
	return &lazy[T]{turn: make(chan struct{}, 1)}
}

func (l *lazy[T]) get(ctx context.Context, compute func(context.Context) (T, error)) (T, error) {
	if o := l.kept.Load(); o != nil {
		return o.value, o.err
	}
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	defer func() { <-l.turn }()
	if o := l.kept.Load(); o != nil {
		return o.value, o.err
	}
	value, err := compute(ctx)
	if err == nil || Lasting(err) {
		l.kept.Store(&outcome[T]{value, err})
	}
	return value, err
}

// Lasting says whether err is a property of the point, which will not change.
func Lasting(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	for _, sentinel := range []error{
		filesystem.ErrCorrupt, filesystem.ErrUnsupported, filesystem.ErrEncrypted, filesystem.ErrNotExist,
		filesystem.ErrNotDir, filesystem.ErrIsDir, filesystem.ErrNotSymlink, ErrNoRoot, ErrLoop, ErrTooLong, restorepoint.ErrMetadata,
	} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}
