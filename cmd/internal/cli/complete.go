package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/index/restorepoint"
)

// completeTimeout is how long a shell waits for names.
const completeTimeout = 3 * time.Second

// quietly opens the catalogue for a completion: it asks for no passphrase, and
// gives up soon.
func (a *app) quietly(ctx context.Context, f func(context.Context, *wire.Catalogue) error) error {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	quiet := *a
	quiet.stdin = strings.NewReader("")
	return quiet.withCatalogue(ctx, commandCache, func(_ *wire.Repo, cat *wire.Catalogue) error { return f(ctx, cat) })
}

// completePoints completes names of points: VM@latest, VM@TIME, and IDs.
func (a *app) completePoints(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(argv) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	err := a.quietly(c.Context(), func(ctx context.Context, cat *wire.Catalogue) error {
		points, err := cat.Points(ctx)
		names = namesOfPoints(points, typed)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// namesOfPoints gives names that begin as typed, newest points first.
func namesOfPoints(points []restorepoint.Summary, typed string) (names []string) {
	seen := map[string]bool{}
	add := func(name string) {
		if strings.HasPrefix(name, typed) && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		add(points[i].VM + "@latest")
	}
	for i := len(points) - 1; i >= 0; i-- {
		p := points[i]
		add(p.VM + "@" + restorepoint.DirName(p.Time))
		if typed != "" && len(p.ID) >= 8 {
			add(p.ID[:8])
		}
	}
	return names
}

// completePointAndObject completes a point, and then an object's name in it.
func (a *app) completePointAndObject(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(argv) != 1 {
		return a.completePoints(c, argv, typed)
	}
	var names []string
	err := a.quietly(c.Context(), func(ctx context.Context, cat *wire.Catalogue) error {
		_, d, err := a.systemObjects(ctx, cat, argv[0])
		if err != nil {
			return err
		}
		for _, o := range d.Objects {
			if strings.HasPrefix(o.Name, typed) {
				names = append(names, o.Name+"\t"+safe(o.Kind))
			}
		}
		return nil
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeFirst completes the first argument only.
func (a *app) completeFirst(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(argv) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(c, argv, typed)
	}
}

// completeVMPath completes a VM, with the colon that a path follows.
func (a *app) completeVMPath(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	names, directive := a.completeVMs(c, argv, typed)
	var list []string
	for _, name := range names {
		list = append(list, name+":")
	}
	return list, directive | cobra.ShellCompDirectiveNoSpace
}

// completePointPath completes a point that a colon and a path may follow.
func (a *app) completePointPath(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(argv) == 0 && strings.Contains(typed, ":") {
		return a.pathsOf(c.Context(), typed)
	}
	names, directive := a.completePoints(c, argv, typed)
	return names, directive | cobra.ShellCompDirectiveNoSpace
}

// completeFolder completes one folder.
func completeFolder(_ *cobra.Command, argv []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(argv) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// completeNothing keeps shells from offering files to the commands, below one,
// that take no argument.
func completeNothing(c *cobra.Command) {
	words := strings.Fields(c.Use)
	if c.ValidArgsFunction == nil && (len(words) == 1 || strings.HasPrefix(words[1], "--")) {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range c.Commands() {
		completeNothing(sub)
	}
}

// completePointFlag completes a flag that names a point.
func (a *app) completePointFlag(c *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.completePoints(c, nil, typed)
}

// completeTwoPoints completes two points.
func (a *app) completeTwoPoints(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(argv) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completePoints(c, nil, typed)
}

// completeEveryPoint completes any number of points.
func (a *app) completeEveryPoint(c *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.completePoints(c, nil, typed)
}

// completeVMsOrPoints completes any number of VMs or points.
func (a *app) completeVMsOrPoints(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	vms, _ := a.completeVMs(c, argv, typed)
	points, directive := a.completePoints(c, nil, typed)
	return append(vms, points...), directive
}
