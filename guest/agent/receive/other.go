//go:build !linux

package receive

import (
	"context"
	"io"

	"cairn/guest"
)

// Receiver refuses: nothing can be put into such a guest.
type Receiver struct{}

// New gives a receiver that refuses.
func New(string, ...string) *Receiver { return &Receiver{} }

// Recover has nothing to do.
func (*Receiver) Recover(context.Context) []string { return nil }

// Put refuses.
func (*Receiver) Put(context.Context, guest.Put, io.Reader) (*guest.PutResult, error) {
	return nil, &guest.CallError{Code: guest.CodeUnsupported, Message: "put: files can be put back into Linux guests only: restore them to the host, or mount the point, and copy them by network"}
}
