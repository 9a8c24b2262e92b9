package guest

import (
	"errors"
	"fmt"
)

var (
	// ErrNoAgent means that no agent can be reached: no socket, a closed
	// channel, or silence right after connecting.
	ErrNoAgent = errors.New("no guest agent answers")

	// ErrVMGone means that nobody listens on the socket of an agent: the virtual
	// machine has ended, and so nothing in it is frozen.
	ErrVMGone = errors.New("nobody listens on the agent's socket, the virtual machine has ended")

	// ErrNoAnswer means that an agent that was there did not answer in time. The
	// command may be executed later, when the agent wakes up.
	ErrNoAnswer = errors.New("the guest agent does not answer")

	// ErrStillFrozen means that the agent answers and that filesystems of the
	// guest are frozen all the same.
	ErrStillFrozen = errors.New("the guest's filesystems are still frozen")

	// ErrAlreadyFrozen means that they were frozen before we asked, by somebody
	// else or by a run of ours that died. No freeze was sent.
	ErrAlreadyFrozen = errors.New("the guest's filesystems are frozen already")

	// ErrUnsupported means that this agent has no such command, or that its
	// administrator has disabled it.
	ErrUnsupported = errors.New("the guest agent does not have or allow this command")

	// ErrBadAnswer means that the agent's answer breaks the protocol or a limit.
	ErrBadAnswer = errors.New("unusable answer of the guest agent")
)

// AgentError is the agent's own answer that a command failed.
type AgentError struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", …
	Desc    string // the guest's words: a claim, at most 1,024 bytes
}

func (e *AgentError) Error() string {
	return fmt.Sprintf("guest agent: %s: %q", e.Command, e.Desc)
}

// Is makes a missing or disabled command an ErrUnsupported.
func (e *AgentError) Is(target error) bool {
	return target == ErrUnsupported && e.Class == "CommandNotFound"
}
