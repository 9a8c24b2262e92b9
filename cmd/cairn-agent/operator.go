package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"cairn/guest/agent"
	"cairn/guest/agent/config"
)

// checkConfig reads the configuration as the agent does.
func (a *app) checkConfig() error {
	c := config.Load(a.config)
	collectors(a.config, c) // names that are disabled and that none has
	var warnings []config.Problem
	for i := range c.Objects {
		warnings = append(warnings, c.Objects[i].Check()...)
	}
	for _, p := range c.Problems {
		fmt.Fprintf(a.stderr, "%s\n", printable(p.Error()))
	}
	for _, p := range warnings {
		fmt.Fprintf(a.stderr, "warning: %s\n", printable(p.Error()))
	}
	for _, o := range c.Objects {
		if _, err := fmt.Fprintln(a.stdout, "object", o.Name); err != nil {
			return err
		}
	}
	switch {
	case len(c.Problems) > 0:
		return fmt.Errorf("%d problems in %s: what they concern is not used", len(c.Problems), a.config)
	case len(warnings) > 0:
		return errWarnings
	}
	return nil
}

// status tells what the agent's notes tell.
func (a *app) status() error {
	i, err := agent.Inspect(a.runDir, a.stateDir)
	if err != nil {
		return fmt.Errorf("%w; only root may see it", err)
	}
	if a.json {
		return a.printJSON(i)
	}
	lines := []string{"cairn-agent does not run: systemctl start cairn-agent"}
	if i.PID != 0 {
		lines = []string{fmt.Sprintf("cairn-agent runs, process %d", i.PID)}
	}
	if _, err := os.Stat(a.port); err != nil {
		lines = append(lines, fmt.Sprintf("the host's channel is not there: the VM needs a virtio-serial port named org.cairn.agent.0 (%v)", err))
	}
	if len(i.Frozen) > 0 {
		lines = append(lines, fmt.Sprintf("%d filesystems may be frozen for restore point %s: it thaws them by itself; `cairn-agent thaw` does it now", len(i.Frozen), printable(i.Point)))
	}
	for _, o := range i.Owed {
		lines = append(lines, fmt.Sprintf("a %s step of %s is owed: %s", printable(o.Phase), printable(o.Object), printable(o.Command)))
	}
	_, err = fmt.Fprintln(a.stdout, strings.Join(lines, "\n"))
	return err
}

// thaw thaws everything.
func (a *app) thaw(ctx context.Context) error {
	thawed, err := agent.ThawAll(ctx, a.below)
	if a.json {
		if perr := a.printJSON(map[string]any{"thawed": append([]string{}, thawed...)}); err == nil {
			err = perr
		}
		return err
	}
	for _, name := range thawed {
		if _, perr := fmt.Fprintln(a.stdout, "thawed", printable(name)); err == nil {
			err = perr
		}
	}
	if len(thawed) == 0 && err == nil {
		_, err = fmt.Fprintln(a.stdout, "nothing was frozen")
	}
	return err
}
