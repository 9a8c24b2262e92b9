package cli

import (
	"context"
	"errors"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/gc"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/guest/filesystem"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// Exit codes. Scripts depend on them: codes are only added.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitWarnings     = 3
	exitDamage       = 4
	exitNoRepository = 10
	exitWrongKey     = 12
	exitInterrupted  = 130
)

const exitTable = `Exit codes:
    0  done
    1  failed
    2  wrong usage: a flag, a name, a point or a path that does not exist
    3  done, with warnings: something was not read, or not as consistent as wanted
    4  damage found in the repository
   10  no repository there
   12  wrong passphrase or key, or a key of a kind that may not do this
  130  interrupted`

// errUsage marks an error of the caller's words.
var errUsage = errors.New("usage")

// errWarnings ends a command that did its work and warned.
var errWarnings = errors.New("done with warnings")

// codeError carries the exit code of a process in the background.
type codeError struct {
	code int
	text string
}

func (e codeError) Error() string { return e.text }

// exitCode turns an error into a code: this is the one table that does.
func exitCode(ctx context.Context, err error) int {
	var child codeError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &child):
		return child.code
	case ctx.Err() != nil, errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, chunkstore.ErrNoRepository), errors.Is(err, backend.ErrAway), errors.Is(err, spread.ErrAway):
		return exitNoRepository
	case errors.Is(err, seal.ErrWrongSecret), errors.Is(err, wire.ErrSecret), errors.Is(err, seal.ErrKind):
		return exitWrongKey
	case errors.Is(err, job.ErrDamage), errors.Is(err, gc.ErrLost), errors.Is(err, chunkstore.ErrRolledBack), pack.IsDamage(err), errors.Is(err, restorepoint.ErrCorrupt), errors.Is(err, catalogue.ErrCorrupt), errors.Is(err, restorepoint.ErrMetadata):
		return exitDamage
	case errors.Is(err, errUsage), errors.Is(err, config.ErrUnknownVM), errors.Is(err, job.ErrNoDisk), errors.Is(err, restorepoint.ErrNoPoint),
		errors.Is(err, restorepoint.ErrAmbiguous), errors.Is(err, filesystem.ErrNotExist), errors.Is(err, chunkstore.ErrNoSlot), errors.Is(err, wire.ErrNoSuchPlace):
		return exitUsage
	case errors.Is(err, errWarnings):
		return exitWarnings
	}
	return exitFailed
}
