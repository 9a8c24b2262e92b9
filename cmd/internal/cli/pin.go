package cli

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/chunkstore"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// pinJSON is a pin in JSON.
type pinJSON struct {
	Time   time.Time `json:"time"`
	Host   string    `json:"host"`
	Reason string    `json:"reason,omitempty"`
	Error  string    `json:"error,omitempty"` // the pin's record is damaged
}

// String is for a column; nothing for a nil pin.
func (p *pinJSON) String() string {
	switch {
	case p == nil:
		return ""
	case p.Error != "":
		return "yes; its record is damaged"
	case p.Reason != "":
		return safe(p.Reason)
	}
	return "yes"
}

// pinsOf gives the pins by the points' IDs.
func pinsOf(ctx context.Context, repo *wire.Repo) (map[string]*pinJSON, error) {
	pins, err := repo.Store.Pins(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]*pinJSON{}
	for id, p := range pins {
		pin := &pinJSON{Time: p.Time, Host: p.Host, Reason: p.Reason}
		if p.Damaged != nil {
			pin.Error = p.Damaged.Error()
		}
		out[id.String()] = pin
	}
	return out, nil
}

func (a *app) pinCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "pin POINT",
		Short: "Keep a restore point from being forgotten",
		Long: `Keep a restore point from being forgotten, whatever the rules of cairn forget say
and also by name, until cairn unpin.

  cairn pin web01@2026-10-12 --reason "before the upgrade"
  cairn pin ls                         which points are pinned, and why
  cairn unpin web01@2026-10-12

A pin lies in the repository: it holds for all hosts that use it. Pinning a point
again changes nothing; for another reason unpin it first.`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completePoints,
		RunE: func(c *cobra.Command, argv []string) error {
			return a.withPoint(c.Context(), argv[0], func(repo *wire.Repo, p restorepoint.Summary, id chunkstore.SessionID) error {
				err := repo.Store.Pin(c.Context(), id, a.note(reason))
				if errors.Is(err, chunkstore.ErrDropped) {
					return fmt.Errorf("%s@%s was forgotten by somebody at the same moment: the pin is too late", p.VM, restorepoint.DirName(p.Time))
				}
				return a.pinned(p, true, err)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those who find the pin")
	c.AddCommand(a.pinLsCmd())
	return c
}

func (a *app) unpinCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "unpin POINT",
		Short:             "Let a pinned restore point be forgotten again",
		Args:              args(1, 1),
		ValidArgsFunction: a.completePoints,
		RunE: func(c *cobra.Command, argv []string) error {
			return a.withPoint(c.Context(), argv[0], func(repo *wire.Repo, p restorepoint.Summary, id chunkstore.SessionID) error {
				return a.pinned(p, false, repo.Store.Unpin(c.Context(), id, a.note("")))
			})
		},
	}
}

// note is what is written down of an action of this host.
func (a *app) note(reason string) chunkstore.Note {
	return chunkstore.Note{Time: a.now().UTC().Truncate(time.Second), Host: job.Hostname(), Reason: reason}
}

// withPoint opens the repository and finds a point.
func (a *app) withPoint(ctx context.Context, spec string, f func(*wire.Repo, restorepoint.Summary, chunkstore.SessionID) error) error {
	return a.withCatalogue(ctx, commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
		points, err := cat.Points(ctx)
		if err != nil {
			return err
		}
		p, err := restorepoint.Select(points, spec)
		if err != nil {
			return err
		}
		id, err := chunkstore.ParseSessionID(p.ID)
		if err != nil {
			return err
		}
		return f(repo, p, id)
	})
}

// pinned says what became of a pin.
func (a *app) pinned(p restorepoint.Summary, is bool, err error) error {
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"vm": p.VM, "point": p.ID, "pinned": is})
	}
	state := "pinned: it stays until cairn unpin"
	if !is {
		state = "not pinned: the rules of cairn forget are about it, too"
	}
	_, err = fmt.Fprintf(a.stdout, "%s@%s (%s) is %s\n", safe(p.VM), restorepoint.DirName(p.Time), p.ID[:8], state)
	return err
}

// pinnedJSON is a pin in `cairn pin ls --json`.
type pinnedJSON struct {
	VM        string    `json:"vm"`
	Point     string    `json:"point"`
	PointTime time.Time `json:"point_time"`
	*pinJSON
}

func (a *app) pinLsCmd() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List the pinned restore points", Args: noArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
			points, err := cat.Points(c.Context())
			if err != nil {
				return err
			}
			pins, err := pinsOf(c.Context(), repo)
			if err != nil {
				return err
			}
			list := []pinnedJSON{}
			for _, p := range points {
				if pin := pins[p.ID]; pin != nil {
					list = append(list, pinnedJSON{p.VM, p.ID, p.Time, pin})
				}
			}
			return a.printPins(list)
		})
	}}
}

func (a *app) printPins(list []pinnedJSON) error {
	if a.json {
		return a.printJSON(map[string]any{"pins": list})
	}
	if len(list) == 0 {
		a.say("no point is pinned: cairn pin POINT")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tVM\tTIME (UTC)\tPINNED SINCE\tBY HOST\tREASON")
	for _, p := range list {
		since, reason := "?", p.pinJSON.String()
		if p.Error == "" {
			since = restorepoint.DirName(p.pinJSON.Time)
		}
		if p.Reason == "" && p.Error == "" {
			reason = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Point[:8], safe(p.VM), restorepoint.DirName(p.PointTime), since, safe(p.Host), reason)
	}
	return w.Flush()
}
