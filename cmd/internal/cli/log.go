package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// changeJSON is a version in `cairn log --json`.
type changeJSON struct {
	Type    string     `json:"message_type"` // "version"
	VM      string     `json:"vm"`
	Path    string     `json:"path"`
	Change  string     `json:"change"`
	What    string     `json:"what,omitempty"`
	Content int        `json:"content,omitempty"` // equal numbers are equal contents
	Kind    string     `json:"type,omitempty"`
	Size    int64      `json:"size"`
	Mode    string     `json:"mode,omitempty"`
	UID     uint32     `json:"uid"`
	GID     uint32     `json:"gid"`
	Mtime   *time.Time `json:"mtime,omitempty"`
	Target  string     `json:"target,omitempty"`
	Time    time.Time  `json:"time"`  // of the first point
	First   string     `json:"first"` // point
	Last    string     `json:"last"`  // point
	Points  int        `json:"points"`
	Restore string     `json:"restore,omitempty"` // what cairn restore takes
}

func (a *app) logCmd() *cobra.Command {
	var since, until string
	var noCompare bool
	c := &cobra.Command{
		Use:   "log VM:PATH",
		Short: "List the versions of a file over all restore points, newest first",
		Long: `List what happened to a file or a folder of a guest, newest first: the first
restore point that has each version, what changed, its size, mode and time, and
how many points have it.

  cairn log web01:/etc/nginx/nginx.conf
  cairn log web01:/etc/nginx/nginx.conf --since 30d

A change is one of:
  created    the point before did not have it
  oldest     the oldest point has it: since when is not known
  contents   other contents, another target or type
  metadata   the same contents with another mode, owner or time
  removed    the point does not have it
  back       it was removed before

Versions of one size whose times differ are compared by reading them, up to
64 MiB; larger ones count as different. --no-compare reads none.

` + whenHelp,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.completeVMPath),
		RunE: func(c *cobra.Command, argv []string) error {
			vm, p, ok := splitPath(argv[0])
			if !ok {
				return usagef("name a VM and a path: cairn log VM:PATH")
			}
			return a.withCatalogue(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
				return a.runLog(c.Context(), a.newQuestion(cat), vm, p, since, until, noCompare)
			})
		},
	}
	c.Flags().StringVar(&since, "since", "", "versions that came since this time")
	c.Flags().StringVar(&until, "until", "", "versions that came until this time")
	c.Flags().BoolVar(&noCompare, "no-compare", false, "do not read files to compare them")
	return c
}

func (a *app) runLog(ctx context.Context, q *question, vm, p, since, until string, noCompare bool) error {
	all, err := q.cat.Points(ctx)
	if err != nil {
		return err
	}
	points, err := ofVM(all, vm)
	if err != nil {
		return err
	}
	from, err := a.parseWhen("since", since, false)
	if err != nil {
		return err
	}
	to, err := a.parseWhen("until", until, true)
	if err != nil {
		return err
	}
	past, err := catalogue.NewPast(ctx, points, q.from, nil)
	if err != nil {
		return err
	}
	q.unread(past)
	var equal catalogue.Equal
	if q.cat.MayRead() != nil && !noCompare {
		a.say("note: versions of one size whose times differ count as different: this key cannot read and compare them")
	} else if !noCompare {
		equal = q.cat.NewComparer().Equal
	}
	list, problems, err := past.Log(ctx, p, equal)
	if err != nil {
		return err
	}
	q.problems(points, problems)
	var shown []catalogue.Change
	for _, c := range list {
		if len(between([]restorepoint.Summary{points[c.First]}, from, to)) > 0 {
			shown = append(shown, c)
		}
	}
	if len(shown) == 0 {
		switch {
		case q.warned > 0:
			return q.ended()
		case len(list) > 0:
			return fmt.Errorf("nothing happened to %s in that time", safe(p))
		}
		return usagef("no restore point of %s has %s\nFind it by its name: cairn find %s NAME", safe(vm), safe(p), quoted(vm))
	}
	if err := a.printLog(points, p, shown); err != nil {
		return err
	}
	for _, c := range shown {
		if c.Kind != catalogue.Removed {
			a.getBack(pointSpec(points, points[c.Last]), p)
			break
		}
	}
	return q.ended()
}

func (a *app) printLog(points []restorepoint.Summary, p string, list []catalogue.Change) error {
	if !a.json {
		fmt.Fprintf(a.stdout, "%-20s  %-8s  %12s  %-10s  %-19s  %6s  WHAT\n", "FIRST POINT", "CHANGE", "SIZE", "MODE", "MODIFIED (UTC)", "POINTS")
	}
	for _, c := range list {
		first, last, e := points[c.First], points[c.Last], &c.Entry
		if a.json {
			j := changeJSON{Type: "version", VM: first.VM, Path: p, Change: string(c.Kind), What: c.What.String(), Content: c.Content, Time: first.Time.UTC(),
				First: first.ID, Last: last.ID, Points: c.Points}
			if c.Kind != catalogue.Removed {
				mtime := mtimeOf(e)
				j.Kind, j.Size, j.Mode, j.UID, j.GID, j.Mtime, j.Target = wire.TypeName(e.Mode), e.Size, wire.ModeString(e.Mode), e.UID, e.GID, &mtime, e.Target
				j.Restore = pointSpec(points, last) + ":" + p
			}
			if err := a.printJSON(j); err != nil {
				return err
			}
			continue
		}
		size, mode, mtime, what := "-", "-", "-", "-"
		if c.Kind != catalogue.Removed {
			size, mode, mtime = fmt.Sprint(e.Size), wire.ModeString(e.Mode), listedTime(mtimeOf(e))
			if c.What != 0 {
				what = c.What.String()
			}
			if e.Target != "" {
				what += " -> " + safe(e.Target)
			}
		}
		if _, err := fmt.Fprintf(a.stdout, "%-20s  %-8s  %12s  %-10s  %-19s  %6d  %s\n", restorepoint.DirName(first.Time), c.Kind, size, mode, mtime, c.Points, what); err != nil {
			return err
		}
	}
	return nil
}
