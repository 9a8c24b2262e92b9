package agent

import (
	"context"
	"io"

	"cairn/guest"
)

// Handler answers the host's calls, one at a time.
type Handler interface {
	// Begin is called when a host begins a session, after the call of the
	// session before has returned. It undoes what that session left, and says
	// so in Welcome.Ended.
	Begin(ctx context.Context) guest.Welcome
	// Handle answers one call. Its context ends with the session and with the
	// call's deadline. stream is the call's stream, empty for calls without one;
	// what of it is not read is thrown away. The result becomes JSON, except
	// []byte, which is sent as it is. A *guest.CallError tells the host its code.
	Handle(ctx context.Context, call guest.Call, stream io.Reader) (result any, err error)
	// End is called when the host has hung up, or the channel has failed, with
	// the same duties as Begin.
	End(ctx context.Context)
}
