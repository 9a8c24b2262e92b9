package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// catalogueMessage is a point's line in `cairn catalogue --json`, and what
// `cairn backup --json` says of a catalogue.
type catalogueMessage struct {
	Type  string          `json:"message_type"` // "catalogue"
	VM    string          `json:"vm"`
	Point string          `json:"point"`
	Time  string          `json:"time"`
	State string          `json:"state"` // "stored", "made", "none" or "damaged"
	Error string          `json:"error,omitempty"`
	Made  *catalogue.Made `json:"made,omitempty"`
	// Volumes are the trees in it, and why others are not.
	Volumes []catalogueVolume `json:"volumes,omitempty"`
}

// catalogueVolume is a volume in a catalogue.
type catalogueVolume struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	UUID   string `json:"uuid,omitempty"`
	Hash   string `json:"hash,omitempty"` // of the whole tree: equal hashes, equal trees
	Reason string `json:"reason,omitempty"`
}

// States of a catalogue.
const (
	stateStored  = "stored"
	stateMade    = "made"
	stateNone    = "none"
	stateDamaged = "damaged"
)

func (a *app) catalogueCmd() *cobra.Command {
	var all, rebuild bool
	c := &cobra.Command{
		Use:   "catalogue [POINT…]",
		Short: "Show which points have a catalogue of files, and make missing ones",
		Long: `A catalogue is the list of all files in a restore point: names, sizes, owners,
times, not their contents. cairn backup makes it after each point, so that
questions over many points read no guest data. It is stored in the repository,
beside the point; folders in which nothing changed are stored once for all
points, so it costs little.

Nothing depends on it. A point without a catalogue is whole and can be restored;
questions about it only take longer, as its filesystems are then read.

  cairn catalogue                      which points have one, and its size
  cairn catalogue web01@latest         make it for this point, if it is missing
  cairn catalogue --all                make all that are missing, oldest first
  cairn catalogue --rebuild POINT      make it anew from the point alone: when
                                       cairn check has called it damaged

An interrupted run is harmless: run it again.`,
		Args:              args(0, -1),
		ValidArgsFunction: a.completeEveryPoint,
		RunE: func(c *cobra.Command, points []string) error {
			if all && len(points) > 0 {
				return usagef("name points, or write --all, not both")
			}
			if rebuild && !all && len(points) == 0 {
				return usagef("--rebuild of which points? Name them, or write --all")
			}
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
				if !all && len(points) == 0 {
					return a.listCatalogues(c.Context(), repo, cat)
				}
				if err := repo.Store.MayRead(); err != nil {
					return fmt.Errorf("a catalogue is made from guest data: %w", err)
				}
				list, err := selectAll(c.Context(), cat, points, all)
				if err != nil {
					return err
				}
				return a.makeCatalogues(c.Context(), cat, list, rebuild)
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all points")
	c.Flags().BoolVar(&rebuild, "rebuild", false, "make it anew, also where there is one")
	return c
}

// selectAll gives the manifests of the points named, or of all, oldest first.
func selectAll(ctx context.Context, cat *wire.Catalogue, specs []string, all bool) ([]*restorepoint.Manifest, error) {
	var list []*restorepoint.Manifest
	for _, spec := range specs {
		m, err := cat.Select(ctx, spec)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	if !all {
		return list, nil
	}
	points, err := cat.Points(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		m, err := cat.Manifest(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// makeCatalogues makes what is missing. One that fails does not keep the
// others from being made.
func (a *app) makeCatalogues(ctx context.Context, cat *wire.Catalogue, list []*restorepoint.Manifest, rebuild bool) error {
	var errs []error
	for _, m := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p, fresh, err := cat.Make(ctx, m, wire.MakeOptions{Rebuild: rebuild, Progress: a.reporter().Items})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", pointName(m), err))
			continue
		}
		state := stateStored
		if fresh {
			state = stateMade
		}
		if err := a.printCatalogue(m, state, p.Root); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// message describes a point's catalogue.
func message(vm, id string, at time.Time, state string, root *catalogue.Root, err error) catalogueMessage {
	msg := catalogueMessage{Type: "catalogue", VM: vm, Point: id, Time: restorepoint.DirName(at), State: state}
	if root != nil {
		msg.Made = &root.Made
		for i := range root.Volumes {
			v := &root.Volumes[i]
			row := catalogueVolume{Name: v.Name, Type: v.Type, UUID: v.UUID, Reason: v.Reason}
			if v.Top != nil && v.Top.Dir != nil {
				row.Hash = hex.EncodeToString(v.Top.Dir.Hash[:])
			}
			msg.Volumes = append(msg.Volumes, row)
		}
	}
	if err != nil {
		msg.Error = err.Error()
	}
	return msg
}

func (a *app) printCatalogue(m *restorepoint.Manifest, state string, root *catalogue.Root) error {
	if a.json {
		return a.printJSON(message(m.VM.Name, m.ID, m.Time, state, root, nil))
	}
	_, err := fmt.Fprintf(a.stdout, "%s  catalogue %s: %s\n", pointName(m), state, howMade(root))
	return err
}

// howMade says what a catalogue took.
func howMade(root *catalogue.Root) string {
	made := root.Made
	how := "all folders read"
	if made.Incremental > 0 {
		how = "from what changed since " + made.Parent[:min(8, len(made.Parent))]
	}
	text := fmt.Sprintf("%s stored, in %.1f s, %s", bytesOf(made.BytesStored), float64(made.DurationMS)/1000, how)
	for _, v := range root.Volumes {
		if v.Top == nil && v.Type != "swap" && v.Reason != "" {
			text += fmt.Sprintf("; without %s: %s", safe(v.Name), safe(v.Reason))
		}
	}
	return text
}

// listCatalogues shows the state of all points.
func (a *app) listCatalogues(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue) error {
	points, err := cat.Points(ctx)
	if err != nil {
		return err
	}
	var rows []catalogueMessage
	damaged, missing := 0, 0
	for _, s := range points {
		root, state, err := cat.FilesState(ctx, s.ID)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case state == stateDamaged:
			damaged++
		case state == stateNone:
			missing++
			err = nil
		case err != nil:
			return err
		}
		msg := message(s.VM, s.ID, s.Time, state, root, err)
		if a.json {
			if err := a.printJSON(msg); err != nil {
				return err
			}
		}
		rows = append(rows, msg)
	}
	if !a.json {
		w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tVM\tTIME (UTC)\tCATALOGUE\tSTORED\tSHARES WITH")
		for _, r := range rows {
			stored, shares := "-", "-"
			if r.Made != nil {
				stored = bytesOf(r.Made.BytesStored)
				if r.Made.Parent != "" {
					shares = r.Made.Parent[:min(8, len(r.Made.Parent))]
				}
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Point[:8], r.VM, r.Time, r.State, stored, shares)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if missing > 0 {
			a.say("%d points have none; make them with: cairn catalogue --all", missing)
		}
	}
	if damaged > 0 {
		a.say("warning: %d are damaged, the points are not; make them anew with: cairn catalogue --rebuild POINT", damaged)
		return errWarnings
	}
	return nil
}
