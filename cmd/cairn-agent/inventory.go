package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"cairn/guest/agent"
	"cairn/guest/object"
)

// inventoryTime is how long the collectors may take for the operator.
const inventoryTime = 2 * time.Minute

// inventoried is what `inventory --json` prints.
type inventoried struct {
	Objects  []inventoriedObject `json:"objects"`
	Mounts   []object.Mount      `json:"mounts"` // Frozen: would be
	Warnings []string            `json:"warnings"`
}

type inventoriedObject struct {
	object.Object
	Pre  bool `json:"pre"`  // it is brought to rest before the freeze
	Post bool `json:"post"` // it is let go after the thaw
}

// inventory shows what a backup would do.
func (a *app) inventory(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, inventoryTime)
	defer cancel()
	inside, _, _ := a.agent()
	defer inside.Close(ctx)
	found, warnings := inside.Inventory(ctx)
	mounts, err := inside.Look(ctx)
	if err != nil {
		warnings = append(warnings, err.Error())
	}
	out := inventoried{Objects: []inventoriedObject{}, Mounts: mounts, Warnings: warnings}
	for _, f := range found {
		out.Objects = append(out.Objects, inventoriedObject{f.Object, f.Pre != nil, f.Post != nil})
	}
	if a.json {
		err = a.printJSON(out)
	} else {
		err = a.printInventory(found, out)
	}
	if err == nil && len(warnings) > 0 {
		err = errWarnings
	}
	return err
}

func (a *app) printInventory(found []agent.Found, out inventoried) error {
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "OBJECT\tSTATE\tCONSISTENCY\tSTEPS\tPATHS")
	for _, f := range found {
		var steps, paths []string
		for _, s := range []struct {
			name string
			has  bool
		}{{"pre", f.Pre != nil}, {"frozen", f.Frozen != nil}, {"post", f.Post != nil}, {"stop", f.Stop != nil}, {"start", f.Start != nil}} {
			if s.has {
				steps = append(steps, s.name)
			}
		}
		for _, p := range f.Object.Paths {
			paths = append(paths, printable(p.Path))
		}
		const shown = 3
		if len(paths) > shown {
			paths = append(paths[:shown], fmt.Sprintf("and %d more", len(paths)-shown))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(f.Object.Name), orDash(printable(f.Object.State)), f.Object.Consistency.Level, orDash(strings.Join(steps, " ")), orDash(strings.Join(paths, " ")))
	}
	fmt.Fprintln(w, "\nFILESYSTEM\tTYPE\tFREEZE")
	for _, m := range out.Mounts {
		freeze := "yes"
		if !m.Frozen {
			freeze = "no: " + printable(m.Reason)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", printable(m.Mountpoint), printable(m.Type), freeze)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var failures []error
	for _, text := range out.Warnings {
		_, err := fmt.Fprintln(a.stderr, "warning:", printable(text))
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable keeps what others have named from commanding the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
