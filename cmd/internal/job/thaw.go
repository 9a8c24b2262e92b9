package job

import (
	"context"
	"errors"
	"time"

	"cairn/guest"
)

// Who froze a guest.
const (
	byStock  = "qemu-guest-agent"
	byInside = "cairn-agent"
)

// thawWay is how a guest is thawed that a run has frozen.
type thawWay struct {
	By              string // byStock or byInside
	Agent           string // the stock agent's socket, or throughLibvirt; "": none
	Inside          string // the inside agent's socket; "": none
	Libvirt, Domain string
}

func wayOf(e entry) thawWay {
	return thawWay{By: first(e.By, byStock), Agent: e.Agent, Inside: e.Inside, Libvirt: e.Libvirt, Domain: e.Domain}
}

// known says whether there is somebody who can be asked.
func (w thawWay) known() bool { return w.By == byInside && w.Inside != "" || w.Agent != "" }

// backstop is how long the inside agent alone is tried: longer than its own
// time limit takes, after which the guest is thawed if the agent lives.
const backstop = freezeLimit + 10*time.Second

// thaw goes on until the guest's agent has answered, or until ctx ends. What
// the inside agent froze the stock one can thaw, too, if the other is dead.
func (w thawWay) thaw(ctx context.Context) error {
	if w.By != byInside || w.Inside == "" {
		return w.thawByStock(ctx)
	}
	redial := func(ctx context.Context) (*guest.Inside, error) { return guest.DialInside(ctx, w.Inside, hello("")) }
	patience := backstop
	if deadline, ok := ctx.Deadline(); ok && w.Agent != "" {
		patience = min(patience, time.Until(deadline)/2) // the rest is for the stock agent
	}
	tctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := guest.ThawInside(tctx, redial)
	if err == nil || errors.Is(err, guest.ErrVMGone) || ctx.Err() != nil || w.Agent == "" {
		return err
	}
	if serr := w.thawByStock(ctx); serr != nil {
		return errors.Join(err, serr)
	}
	return nil // a cairn-agent that wakes up finds its session ended, and undoes the rest
}

func (w thawWay) thawByStock(ctx context.Context) error {
	var err error
	if w.Agent == throughLibvirt {
		_, err = guest.ThawBy(ctx, "libvirt domain "+w.Domain, domainAgent(w.Libvirt, w.Domain))
	} else {
		_, err = guest.Thaw(ctx, w.Agent)
	}
	return err
}

// owe notes, before it is asked for, that the guest may be frozen.
func (b *Backup) owe(by string) error {
	b.entry.Frozen, b.entry.By = true, by
	if err := b.step("freeze"); err != nil {
		return err
	}
	if by == byInside {
		return b.guardian.say(sayFreezingInside)
	}
	return b.guardian.say(sayFreezing)
}

// thawed notes that the guest goes on. One that a dead run had frozen, and
// whose agent did not answer, is still owed a thaw: the guardian was told of a
// freeze, and goes on trying when the run has ended.
func (b *Backup) thawed() error {
	if b.entry.Frozen, b.entry.By = b.owes != "", b.owes; b.owes != "" {
		return nil
	}
	return b.guardian.say(sayThawed)
}
