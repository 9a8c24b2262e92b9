package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// What callers branch on.
var (
	// ErrNoContext: the server does not have a meta context that was asked for.
	ErrNoContext = errors.New("meta context is not there")
	// ErrNoExport: the server lives and does not have the export.
	ErrNoExport = errors.New("no such export")
	// ErrProtocol: the server sent what the protocol does not allow.
	ErrProtocol = errors.New("protocol error")
	// ErrSilent: the server sent nothing for the progress timeout.
	ErrSilent = errors.New("server is silent")
	// ErrClosed: Close or Abandon was called.
	ErrClosed = errors.New("connection is closed")
)

// Error is the server's refusal of one request; the connection lives on. It
// unwraps to Errno. The protocol's numbers are Linux's.
type Error struct {
	Command string // "read" or "block status"
	Offset  int64
	Errno   syscall.Errno
	Message string // the server's words, may be empty
}

func (e *Error) Error() string {
	s := fmt.Sprintf("nbd: %s at %d: server answered %q", e.Command, e.Offset, e.Errno.Error())
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	return s
}

// Unwrap gives Errno, so that errors.Is(err, syscall.EINVAL) works.
func (e *Error) Unwrap() error { return e.Errno }

func protocolError(format string, args ...any) error {
	return fmt.Errorf("nbd: %w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}
