package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/guest/object"
	"cairn/index/restorepoint"
)

// appsJSON is `cairn apps --json`; with a name Object is there in place of
// Objects.
type appsJSON struct {
	Point    string           `json:"point"`
	VM       string           `json:"vm"`
	Time     time.Time        `json:"time"`
	Source   string           `json:"source"`
	Derived  bool             `json:"derived"` // found in the point's files: what ran, and in what state, is not known
	Taken    time.Time        `json:"taken"`
	Hostname string           `json:"hostname,omitempty"`
	OS       *object.OS       `json:"os,omitempty"`
	Objects  *[]object.Object `json:"objects,omitempty"`
	Object   *object.Object   `json:"object,omitempty"`
	Warnings []string         `json:"warnings,omitempty"`
}

func (a *app) appsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "apps POINT [NAME]",
		Short: "List the applications, containers and users in a restore point, or describe one",
		Long: `List the system objects in a restore point: applications, containers, users and
what the guest's operator has named, with the state that each was in. With NAME,
describe one: its paths, what was done to it for the point, its own facts.

  cairn apps web01@latest
  cairn apps web01@latest postgresql@15-main

The inside agent (cairn-agent) tells of them at the instant of the point. In a
point that was made without it they are derived from the guest's files: what is
installed and configured is then known, and not whether it ran, nor whether its
files were whole at that instant.

Their files: cairn ls POINT:PATH, or in a mount apps/NAME/.`,
		Args:              args(1, 2),
		ValidArgsFunction: a.completePointAndObject,
		RunE: func(c *cobra.Command, argv []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error {
				m, d, err := a.systemObjects(c.Context(), cat, argv[0])
				if err != nil {
					return err
				}
				if len(argv) == 2 {
					return a.printObject(m, d, argv[1])
				}
				return a.printObjects(m, d)
			})
		},
	}
}

// pointName is a point as a person would write it.
func pointName(m *restorepoint.Manifest) string {
	return m.VM.Name + "@" + restorepoint.DirName(m.Time)
}

// systemObjects gives a point and what is known of its system objects.
func (a *app) systemObjects(ctx context.Context, cat *wire.Catalogue, point string) (*restorepoint.Manifest, *object.Document, error) {
	m, err := cat.Select(ctx, point)
	if err != nil {
		return nil, nil, err
	}
	d, err := cat.Document(ctx, m, wire.Derive(a.find))
	switch {
	case errors.Is(err, restorepoint.ErrMetadata):
		return nil, nil, fmt.Errorf("point %s: %w; its files can be read all the same", pointName(m), err)
	case err != nil:
		return nil, nil, fmt.Errorf("point %s: no inside agent has described its guest, and its files do not tell: %w", pointName(m), err)
	}
	return m, d, nil
}

func (a *app) about(m *restorepoint.Manifest, d *object.Document) appsJSON {
	return appsJSON{Point: m.ID, VM: m.VM.Name, Time: m.Time.UTC(), Source: d.Source, Derived: derived(d), Taken: d.Taken, Hostname: d.Hostname}
}

func derived(d *object.Document) bool { return d.Source != object.SourceAgent }

// told says what the source of the objects means. What could not be read is a
// warning of this command; what an agent warned of was one of its run.
func (a *app) told(m *restorepoint.Manifest, d *object.Document) error {
	if !derived(d) {
		return nil
	}
	a.say("%s: no inside agent has described this guest: what follows was derived from its files.\nWhether it ran, and whether its files were whole at that instant, is not known.", pointName(m))
	for _, w := range d.Warnings {
		a.say("warning: %s", safe(w))
	}
	if len(d.Warnings) > 0 {
		return errWarnings
	}
	return nil
}

func (a *app) printObjects(m *restorepoint.Manifest, d *object.Document) error {
	warned := a.told(m, d)
	if a.json {
		about := a.about(m, d)
		objects := append([]object.Object{}, d.Objects...)
		about.OS, about.Objects, about.Warnings = &d.OS, &objects, d.Warnings
		return cmp.Or(a.printJSON(about), warned)
	}
	if len(d.Objects) == 0 {
		a.say("no system objects were found in %s", pointName(m))
		return warned
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tKIND\tVERSION\tSTATE\tCONSISTENT\tPATHS")
	for _, o := range d.Objects {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", safe(o.Name), orDash(o.Kind), orDash(o.Version), orDash(o.State), o.Consistency.Level, pathsOf(o))
	}
	return cmp.Or(w.Flush(), warned)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return safe(s)
}

// pathsOf names an object's first paths.
func pathsOf(o object.Object) string {
	const most = 2
	var list []string
	for i, p := range o.Paths {
		if i == most {
			list = append(list, fmt.Sprintf("and %d more", len(o.Paths)-most))
			break
		}
		list = append(list, safe(p.Role)+" "+safe(p.Path))
	}
	return orDash(strings.Join(list, ", "))
}

// findObject finds an object by its name.
func findObject(m *restorepoint.Manifest, d *object.Document, name string) (*object.Object, error) {
	const most = 12
	var names []string
	for i := range d.Objects {
		if d.Objects[i].Name == name {
			return &d.Objects[i], nil
		}
		names = append(names, safe(d.Objects[i].Name))
	}
	if len(names) == 0 {
		return nil, usagef("%s has no system objects", pointName(m))
	}
	if more := len(names) - most; more > 0 {
		names = append(names[:most:most], fmt.Sprintf("and %d more: cairn apps %s", more, pointName(m)))
	}
	return nil, usagef("%s has no object %q; it has: %s", pointName(m), name, strings.Join(names, ", "))
}

func (a *app) printObject(m *restorepoint.Manifest, d *object.Document, name string) error {
	o, err := findObject(m, d, name)
	if err != nil {
		return err
	}
	warned := a.told(m, d)
	if a.json {
		about := a.about(m, d)
		about.Object = o
		return cmp.Or(a.printJSON(about), warned)
	}
	return cmp.Or(describeObject(a.stdout, m, d, o), warned)
}

// maxDetail is as much of one of an object's own facts as a line shows, bytes.
const maxDetail = 200

func describeObject(out io.Writer, m *restorepoint.Manifest, d *object.Document, o *object.Object) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(w, "%s\t%s\n", safe(name), safe(text))
		}
	}
	row("object", o.Name)
	row("title", o.Title)
	row("kind", o.Kind)
	row("version", o.Version)
	row("state", o.State)
	row("service", o.Service)
	row("point", pointName(m))
	source := "the inside agent on " + d.Hostname + ", " + d.Taken.UTC().Format(time.RFC3339Nano) + " by the guest's clock"
	if derived(d) {
		source = "derived from the point's files"
	}
	row("told by", source)
	row("consistency", o.Consistency.Level+": "+o.Consistency.Reason)
	for _, p := range o.Paths {
		size := ""
		if p.Size > 0 {
			size = " (" + bytesOf(p.Size) + ")"
		}
		row("path "+p.Role, p.Path+size)
	}
	for _, s := range o.Steps {
		text := fmt.Sprintf("%s, %d ms", s.What, s.TookMS)
		if s.Error != "" {
			text += ": FAILED: " + strings.TrimSpace(s.Error+" "+s.Output)
		}
		row("step "+s.Phase, text)
	}
	for _, key := range slices.Sorted(maps.Keys(o.Details)) {
		text, ok := o.Details[key].(string)
		if !ok {
			b, err := json.Marshal(o.Details[key])
			if err != nil {
				return err
			}
			text = string(b)
		}
		if len(text) > maxDetail {
			text = strings.ToValidUTF8(text[:maxDetail], "") + "… (all of it: --json)"
		}
		row("detail "+key, text)
	}
	return w.Flush()
}
