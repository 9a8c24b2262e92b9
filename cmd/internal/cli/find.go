package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/index/catalogue"
	"cairn/index/restorepoint"
)

// findOptions are the flags of `cairn find`.
type findOptions struct {
	since, until, newer, older, size, kind, under, point string
	fold                                                 bool
}

// foundJSON is a version in `cairn find --json`.
type foundJSON struct {
	Type    string    `json:"message_type"` // "found"
	VM      string    `json:"vm"`
	Path    string    `json:"path"`
	Kind    string    `json:"type"`
	Size    int64     `json:"size"`
	Mode    string    `json:"mode"`
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Mtime   time.Time `json:"mtime"`
	Target  string    `json:"target,omitempty"`
	First   string    `json:"first"` // point
	Last    string    `json:"last"`  // point
	Points  int       `json:"points"`
	Restore string    `json:"restore"` // what cairn restore takes
}

func (a *app) findCmd() *cobra.Command {
	var o findOptions
	c := &cobra.Command{
		Use:   "find [VM] PATTERN",
		Short: "Find files in all restore points, with every version",
		Long: `Find files by name in all restore points of a VM, or of all VMs. Each version
of a file is one line: its type, size and time, how many points have it, the
first and the last of them, and its path.

  cairn find web01 nginx.conf
  cairn find web01 '*.sql' --size +10M --newer 2026-10-01
  cairn find web01 '/etc/**/*.conf' --point web01@2026-10-12
  cairn find 'report*.xlsx' --path /home --since 30d

PATTERN is a glob: *, ?, [a-z], {a,b}. Without a slash it is about the name; with
one about the whole path, where ** is any number of folders. One that does not
begin with a slash may begin in any folder. Quote it, or the shell expands it.
What is mounted nowhere has paths like volumes/vdb-ext4/FILE.

--since, --until and --point choose restore points; --newer and --older are about
the time that a file was modified. ` + whenHelp + `

The exit code is 1 when nothing is found, as with grep, and 3 when a part could
not be read.`,
		Args:              args(1, 2),
		ValidArgsFunction: a.completeFirst(a.completeVMs),
		RunE: func(c *cobra.Command, argv []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
				vm := ""
				if len(argv) == 2 {
					vm = argv[0]
				}
				return a.runFind(c.Context(), a.newQuestion(cat), vm, argv[len(argv)-1], o)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&o.since, "since", "", "look in points made since this time")
	f.StringVar(&o.until, "until", "", "look in points made until this time")
	f.StringVar(&o.point, "point", "", "look in this point alone")
	f.StringVar(&o.newer, "newer", "", "files modified since this time")
	f.StringVar(&o.older, "older", "", "files modified until this time")
	f.StringVar(&o.size, "size", "", "size in bytes: +10M (more), -10M (less), 10M")
	f.StringVar(&o.kind, "type", "", "types: f file, d folder, l link, b, c, p, s; several letters mean any of them")
	f.StringVar(&o.under, "path", "", "folder to look in")
	f.BoolVarP(&o.fold, "ignore-case", "i", false, "capital letters and small ones are the same")
	_ = c.RegisterFlagCompletionFunc("point", a.completePointFlag) // fails for unknown flags only
	return c
}

// query reads the flags that are about files.
func (a *app) query(pattern string, o findOptions) (q catalogue.Query, err error) {
	q = catalogue.Query{Pattern: pattern, IgnoreCase: o.fold, Types: strings.ReplaceAll(o.kind, ",", ""), Under: guestPath(o.under)}
	if i := strings.IndexFunc(q.Types, func(r rune) bool { return !strings.ContainsRune("fdlbcps", r) }); i >= 0 {
		return q, usagef("--type %q: the letters are f, d, l, b, c, p and s", o.kind)
	}
	if q.MinSize, q.Below, err = parseSize(o.size); err != nil {
		return q, err
	}
	if o.size != "" && q.Types == "" {
		q.Types = "f" // nobody means folders and links
	}
	if q.Newer, err = a.parseWhen("newer", o.newer, false); err != nil {
		return q, err
	}
	q.Older, err = a.parseWhen("older", o.older, true)
	return q, err
}

// guestPath is a path as a person writes it: absolute in the guest, unless it
// names a volume. Empty stays empty.
func guestPath(p string) string {
	switch {
	case p == "":
		return ""
	case strings.HasPrefix(p, "volumes/"):
		return path.Clean(p)
	}
	return path.Clean("/" + p)
}

// pointsToAsk gives the points that a question is about.
func (q *question) pointsToAsk(ctx context.Context, vm, spec, since, until string) (asked, all []restorepoint.Summary, err error) {
	if all, err = q.cat.Points(ctx); err != nil {
		return nil, nil, err
	}
	asked = all
	if vm != "" {
		if asked, err = ofVM(all, vm); err != nil {
			return nil, nil, err
		}
	}
	if spec != "" {
		one, err := restorepoint.Select(asked, spec)
		if err != nil {
			return nil, nil, err
		}
		asked = []restorepoint.Summary{one}
	}
	from, err := q.parseWhen("since", since, false)
	if err != nil {
		return nil, nil, err
	}
	to, err := q.parseWhen("until", until, true)
	if err != nil {
		return nil, nil, err
	}
	return between(asked, from, to), all, nil
}

func (a *app) runFind(ctx context.Context, q *question, vm, pattern string, o findOptions) error {
	query, err := a.query(pattern, o)
	if err != nil {
		return err
	}
	points, all, err := q.pointsToAsk(ctx, vm, o.point, o.since, o.until)
	if err != nil {
		return err
	}
	out := &finds{question: q, all: all, widest: 2}
	vms := vmsOf(points)
	for _, name := range vms {
		out.widest = max(out.widest, len(safe(name)))
	}
	for _, name := range vms {
		mine, err := ofVM(points, name)
		if err != nil {
			return err
		}
		past, err := catalogue.NewPast(ctx, mine, q.from, nil)
		if err != nil {
			return err
		}
		q.unread(past)
		query.Problem = func(p catalogue.Problem) { q.problems(mine, []catalogue.Problem{p}) }
		err = past.Find(ctx, query, func(f catalogue.Found) error { return out.print(mine, f) })
		switch {
		case errors.Is(err, catalogue.ErrPattern):
			return usagef("%w", err)
		case err != nil:
			return err
		}
	}
	switch {
	case out.lines > 0:
		a.getBack(out.lastPoint, out.lastPath)
		return q.ended()
	case q.warned > 0:
		return q.ended()
	case len(points) == 0:
		return errors.New("there is no restore point in that time")
	}
	return errors.New("nothing found in " + countPoints(len(points)))
}

func countPoints(n int) string {
	if n == 1 {
		return "1 point"
	}
	return fmt.Sprintf("%d points", n)
}

// finds prints what is found.
type finds struct {
	*question
	all                 []restorepoint.Summary
	widest              int // VM's name
	lines               int
	lastPoint, lastPath string
}

func (o *finds) print(points []restorepoint.Summary, f catalogue.Found) error {
	for _, v := range f.Versions {
		first, last := points[v.First], points[v.Last]
		spec := pointSpec(o.all, last)
		o.lastPoint, o.lastPath = spec, f.Path
		e := &v.Entry
		if o.json {
			err := o.printJSON(foundJSON{"found", first.VM, f.Path, wire.TypeName(e.Mode), e.Size, wire.ModeString(e.Mode), e.UID, e.GID, mtimeOf(e), e.Target,
				first.ID, last.ID, v.Points, spec + ":" + f.Path})
			if err != nil {
				return err
			}
			o.lines++
			continue
		}
		if o.lines == 0 {
			if _, err := fmt.Fprintf(o.stdout, "%-*s  T %12s  %-19s  %6s  %-20s  %-20s  PATH\n", o.widest, "VM", "SIZE", "MODIFIED (UTC)", "POINTS", "FIRST", "LAST"); err != nil {
				return err
			}
		}
		o.lines++
		if _, err := fmt.Fprintf(o.stdout, "%-*s  %c %12d  %-19s  %6d  %-20s  %-20s  %s\n", o.widest, safe(first.VM), catalogue.TypeLetter(e.Mode), e.Size,
			listedTime(mtimeOf(e)), v.Points, restorepoint.DirName(first.Time), restorepoint.DirName(last.Time), safe(f.Path)); err != nil {
			return err
		}
	}
	return nil
}
