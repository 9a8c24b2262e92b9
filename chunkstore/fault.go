package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/pack"
)

// FaultKind says in one word what is wrong with a stored object.
type FaultKind string

// Kinds of faults. Scripts see these words: they are only added.
const (
	// FaultMissing: something needs the object, and it is not there.
	FaultMissing FaultKind = "missing"
	// FaultShort: it ends before its end.
	FaultShort FaultKind = "short"
	// FaultChanged: its bytes are not those that were written.
	FaultChanged FaultKind = "changed"
	// FaultExchanged: it is whole, but is another object.
	FaultExchanged FaultKind = "exchanged"
	// FaultUnreadable: the place gives an error. Nothing is proven of the
	// bytes: another try may read them.
	FaultUnreadable FaultKind = "unreadable"
)

// Proven says that the stored bytes are known to be bad or gone, so that
// putting good ones in their place loses nothing.
func (k FaultKind) Proven() bool { return k != FaultUnreadable }

// Span is a range of chunks, records or frames of a pack: first, and the one
// behind the last.
type Span [2]int

// A Fault is what is wrong with one stored object.
type Fault struct {
	Object string // its name in the place
	Kind   FaultKind
	// Whole says that nothing of a pack can be used. Else Frames and Chunks
	// are what cannot; both may be empty, when the fault lies in a part that
	// reading does not need.
	Whole          bool
	Frames, Chunks []Span
	Is             *pack.Hash // of a whole pack under a wrong name: what it is
	Err            error
}

// Error implements error.
func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap gives the cause.
func (f *Fault) Unwrap() error { return f.Err }

// FaultOf tells what kind of fault an error is, met when an object was read.
func FaultOf(object string, err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	f = &Fault{Object: object, Kind: FaultUnreadable, Whole: true, Err: err}
	switch {
	case errors.Is(err, backend.ErrNotExist):
		f.Kind = FaultMissing
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, pack.ErrShort):
		f.Kind = FaultShort
	case pack.IsDamage(err):
		f.Kind = FaultChanged
	}
	return f
}

// PackObject gives the name that a pack has in the place.
func PackObject(r PackRef) string { return packName(r) }

// verifyName holds a whole stored pack against its name and the hash in its
// trailer. It needs no key.
func verifyName(r PackRef, stored []byte) *Fault {
	err := pack.Verify(stored, r.Hash)
	if err == nil {
		return nil
	}
	f := FaultOf(packName(r), fmt.Errorf("%s: %w", packName(r), err))
	if errors.Is(err, pack.ErrOtherName) {
		is := pack.HashOf(stored)
		f.Kind, f.Is = FaultExchanged, &is
		f.Err = fmt.Errorf("%w: they are those of %s", f.Err, is)
	}
	return f
}

// VerifyPack reads a pack and holds it against its name and the hash in its
// trailer, without any key. The error is a *Fault, or ctx's.
func VerifyPack(ctx context.Context, b backend.Backend, r PackRef) (int64, error) {
	stored, err := backend.Get(ctx, b, packName(r), pack.MaxSize)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, FaultOf(packName(r), err)
	}
	if f := verifyName(r, stored); f != nil {
		return int64(len(stored)), f
	}
	return int64(len(stored)), nil
}

// join adds a range to spans in order.
func join(spans []Span, first, end int) []Span {
	if n := len(spans); n > 0 && spans[n-1][1] == first {
		spans[n-1][1] = end
		return spans
	}
	return append(spans, Span{first, end})
}
