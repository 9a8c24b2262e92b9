package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cairn/guest/object"
)

// Start makes this the machine's only agent and undoes what one before it has
// left: it thaws before it returns, and pays the post steps owed in the
// background. Services that were stopped wait for StartOwed. ctx is the agent's
// life. The error says why the agent cannot serve; nothing was undone then.
func (a *Agent) Start(ctx context.Context) error {
	a.told = ctx.Done()
	if err := a.ledger.open(); err != nil {
		if errors.Is(err, errTwice) {
			return fmt.Errorf("%w; `cairn-agent status` tells about it", err)
		}
		return fmt.Errorf("the agent's folders: %w", err)
	}
	frozen, owed, err := a.ledger.left()
	if err != nil {
		a.log.Warn("what an agent before this one noted cannot be read; all filesystems are thawed", "why", err)
	}
	if frozen != nil {
		a.thawLeft(ctx, frozen)
	}
	if err := a.ledger.putAway(); err != nil {
		a.log.Warn("the notes of what is owed could not be put away", "why", err)
	}
	owed = a.keepStarts(owed)
	if len(owed) > 0 {
		done := make(chan struct{})
		a.owing = append(a.owing, done)
		a.log.Warn("post steps are owed since an agent before this one; they are run now", "steps", len(owed))
		go func() {
			defer close(done)
			a.pay(owed)
		}()
	}
	return nil
}

// thawLeft thaws what an agent that was killed may have left frozen. After a
// boot nothing is.
func (a *Agent) thawLeft(ctx context.Context, note *frozenNote) {
	var thawed []string
	var err error
	if note.BootID == bootID() {
		thawed, err = a.filesystems.thawLeft(ctx, note.Devices)
	}
	if err != nil {
		a.log.Error("not everything that an agent before this one may have frozen can be thawed", "why", err)
	} else if err := a.ledger.noteThawed(); err != nil {
		a.log.Warn("the note of what was frozen could not be removed; the next start will thaw once more", "why", err)
	}
	if len(thawed) > 0 {
		a.ended = object.Text(fmt.Sprintf("the agent was killed while it froze for restore point %s; at its start it thawed %s", note.Point, strings.Join(thawed, ", ")))
		a.log.Warn(a.ended)
	}
}

// pay runs post steps that are owed, each once: what became of it is in the log.
func (a *Agent) pay(owed []owedStep) {
	for _, s := range owed {
		start := time.Now()
		err := s.Command.Run(context.Background())
		step := stepOf(phasePost, s.Object, s.Command.String(), start, err)
		a.log.Info("post step that was owed", "object", s.Object, "point", s.Point, "command", step.What, "error", step.Error, "output", step.Output)
		if err := a.ledger.paid(s.Phase, s.Object); err != nil {
			a.log.Warn("a post step that is done is still noted as owed; the next start will repeat it", "object", s.Object, "why", err)
		}
	}
}

// ThawAll thaws every filesystem that could be frozen, whoever froze it, and
// gives their names: for an operator whose machine stands.
func ThawAll(ctx context.Context, below string) (thawed []string, err error) {
	return newFilesystems(below, linux{}).thawLeft(ctx, nil)
}
