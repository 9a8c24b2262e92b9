//go:build !linux

package agent

import (
	"context"

	"cairn/guest"
)

// canFreeze: here it is somebody else who freezes; on Windows qemu-ga, by the
// volume shadow copy service.
const canFreeze = false

type kernel interface{ unsupported() }

type linux struct{}

func (linux) unsupported() {}

type filesystems struct{}

func newFilesystems(string, kernel) *filesystems { return &filesystems{} }

func (*filesystems) begin(context.Context) (*freezing, error) {
	return nil, &guest.CallError{Code: guest.CodeUnsupported, Message: "this agent does not freeze filesystems on this system: leave that to qemu-ga"}
}

func (*filesystems) thawLeft(context.Context, []string) ([]string, error) { return nil, nil }

// freezing is never made here.
type freezing struct{ all []*superblock }

func (*freezing) devices() []string                                 { return nil }
func (*freezing) stuckDevices() []string                            { return nil }
func (*freezing) sync(context.Context) error                        { return nil }
func (*freezing) freeze(context.Context) (int, error)               { return 0, nil }
func (*freezing) stands(*superblock) bool                           { return false }
func (*freezing) thaw() (int, error)                                { return 0, nil }
func (*freezing) on(context.Context, string) ([]*superblock, error) { return nil, nil }
func (*freezing) close()                                            {}

func (*freezing) wait() {}
