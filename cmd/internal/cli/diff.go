package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// deltaJSON is a difference in `cairn diff --json`.
type deltaJSON struct {
	Type   string   `json:"message_type"` // "difference"
	Op     string   `json:"op"`           // + - M R
	Path   string   `json:"path"`
	From   string   `json:"from,omitempty"`
	What   []string `json:"what,omitempty"`
	Kind   string   `json:"type"`
	Before *int64   `json:"size_before,omitempty"`
	After  *int64   `json:"size_after,omitempty"`
}

// sumJSON is what differs in one directory at the top; Top is "" for the total.
type sumJSON struct {
	Type         string `json:"message_type"` // "sum"
	Top          string `json:"top"`
	Added        int    `json:"added"`
	Removed      int    `json:"removed"`
	Changed      int    `json:"changed"`
	Renamed      int    `json:"renamed"`
	BytesAdded   int64  `json:"bytes_added"`
	BytesRemoved int64  `json:"bytes_removed"`
}

func (a *app) diffCmd() *cobra.Command {
	var stat, compare bool
	c := &cobra.Command{
		Use:   "diff POINT [POINT [PATH]]",
		Short: "List what differs between two restore points",
		Long: `List what files a restore point has otherwise than an earlier one, or than one of
another VM. With one point: what it has otherwise than the point before it.

  cairn diff web01                                  the newest against the one before
  cairn diff web01@latest~7 web01@latest
  cairn diff web01@2026-10-01 web01@2026-10-12 /etc
  cairn diff web01 web02 /etc --stat

  + PATH                only in the second point
  - PATH                only in the first
  M PATH (what)         in both: contents, mode, owner, times, target or type differ
  R PATH -> PATH (what) renamed; what is in a renamed folder is listed if it differs

Files of one size whose times differ count as changed; with --compare they are
read, up to 64 MiB each.

The exit code is 0 whether or not something differs, and 3 when a part could
not be read.`,
		Args:              args(1, 3),
		ValidArgsFunction: a.completeTwoPoints,
		RunE: func(c *cobra.Command, argv []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
				o := catalogue.DiffOptions{}
				if len(argv) == 3 {
					o.Path = guestPath(argv[2])
				}
				if compare {
					if err := cat.MayRead(); err != nil {
						return err
					}
					o.Equal = cat.NewComparer().Equal
				}
				return a.runDiff(c.Context(), a.newQuestion(cat), argv, o, stat)
			})
		},
	}
	c.Flags().BoolVar(&stat, "stat", false, "count differences and bytes for each folder at the top")
	c.Flags().BoolVar(&compare, "compare", false, "read files of one size whose times differ, to see whether they do")
	return c
}

// twoPoints gives the points that the arguments name; of one, it and the point
// before it.
func (q *question) twoPoints(ctx context.Context, argv []string) (one, two restorepoint.Summary, err error) {
	first, points, err := q.selectPoint(ctx, argv[0])
	if err != nil {
		return one, two, err
	}
	if len(argv) > 1 {
		two, err = restorepoint.Select(points, argv[1])
		return first, two, err
	}
	mine, err := ofVM(points, first.VM)
	if err != nil {
		return one, two, err
	}
	for i, p := range mine {
		if p.ID == first.ID && i > 0 {
			return mine[i-1], first, nil
		}
	}
	return one, two, usagef("%s is the oldest point of %s: there is none to compare it with", pointSpec(points, first), first.VM)
}

func (a *app) runDiff(ctx context.Context, q *question, argv []string, o catalogue.DiffOptions, stat bool) error {
	one, two, err := q.twoPoints(ctx, argv)
	if err != nil {
		return err
	}
	points := []restorepoint.Summary{one, two}
	past, err := catalogue.NewPast(ctx, points, q.from, nil)
	if err != nil {
		return err
	}
	if q.denied != nil {
		return q.denied
	}
	sides, err := past.Sides()
	if err != nil {
		return err
	}
	q.unread(past)
	d, err := catalogue.Diff(ctx, sides[0], sides[1], o)
	if err != nil {
		return err
	}
	q.problems(points, d.Problems)
	if d.Cut {
		a.say("warning: more than %d files differ; the rest is left out", len(d.List))
		q.warned++
	}
	if !stat {
		err = a.printDeltas(d)
	} else {
		err = a.printSums(d, o.Path)
	}
	if err != nil {
		return err
	}
	if len(d.List) == 0 {
		a.say("no file differs between %s and %s", pointSpec(points, one), pointSpec(points, two))
	}
	return q.ended()
}

func (a *app) printDeltas(d *catalogue.Differences) error {
	for _, x := range d.List {
		if !a.json {
			if _, err := fmt.Fprintln(a.stdout, x); err != nil {
				return err
			}
			continue
		}
		j := deltaJSON{Type: "difference", Op: string(x.Op), Path: x.Path, From: x.From}
		if x.What != 0 {
			j.What = strings.Split(x.What.String(), ",")
		}
		if x.Old != nil {
			j.Kind, j.Before = wire.TypeName(x.Old.Mode), &x.Old.Size
		}
		if x.New != nil {
			j.Kind, j.After = wire.TypeName(x.New.Mode), &x.New.Size
		}
		if err := a.printJSON(j); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printSums(d *catalogue.Differences, path string) error {
	tops, total := d.Sums(path)
	if a.json {
		for _, s := range append(tops, total) {
			if err := a.printJSON(sumJSON{"sum", s.Top, s.Added, s.Removed, s.Changed, s.Moved, s.BytesAdded, s.BytesRemoved}); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "+\t-\tM\tR\tBYTES +\tBYTES -\t  FOLDER")
	for _, s := range append(tops, total) {
		name := safe(s.Top)
		if s.Top == "" {
			name = "all"
		}
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t  %s\n", s.Added, s.Removed, s.Changed, s.Moved, s.BytesAdded, s.BytesRemoved, name)
	}
	return w.Flush()
}
