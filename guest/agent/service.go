package agent

import (
	"context"
	"slices"
	"time"

	"cairn/guest"
	"cairn/guest/object"
)

// stopService stops an object's service.
func (a *Agent) stopService(ctx context.Context, s guest.Serve) (guest.Served, error) {
	return a.serveObject(ctx, s, phaseStop, func(f Found) *Command { return f.Stop })
}

// startService starts an object's service.
func (a *Agent) startService(ctx context.Context, s guest.Serve) (guest.Served, error) {
	return a.serveObject(ctx, s, phaseStart, func(f Found) *Command { return f.Start })
}

func (a *Agent) serveObject(ctx context.Context, s guest.Serve, phase string, command func(Found) *Command) (guest.Served, error) {
	if err := object.CheckName(s.Object); err != nil {
		return guest.Served{}, said(guest.CodeInvalid, "%v", err)
	}
	if err := a.mustNotStand(); err != nil {
		return guest.Served{}, err
	}
	// Always anew: what was found an hour ago may have changed.
	v := a.inventory(ctx, nil)
	i := slices.IndexFunc(v.items, func(it *item) bool { return it.name() == s.Object })
	if i < 0 {
		return guest.Served{}, said(guest.CodeNotFound, "there is no object %s in this guest; `cairn-agent inventory` lists them", s.Object)
	}
	c := command(v.items[i].found)
	if c == nil {
		return guest.Served{}, said(guest.CodeUnsupported, "it is not known how to %s %s: the guest's operator can write that into /etc/cairn-agent", phase, s.Object)
	}
	step := object.Step{Phase: phase, Object: s.Object, What: c.String()}
	if !s.DryRun {
		start := time.Now()
		err := c.Run(ctx)
		step = stepOf(phase, s.Object, c.String(), start, err)
		a.log.Info(phase, "object", s.Object, "command", c.String(), "error", step.Error)
	}
	return guest.Served{Steps: []object.Step{step}}, nil
}
