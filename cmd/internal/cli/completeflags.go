package cli

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/wire"
)

// completeFlags tells shells what the values of flags are. A flag that is not
// named here takes something that nobody can guess: no file is offered for it.
func (a *app) completeFlags(c *cobra.Command) {
	fixed := func(words ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	files := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	folders := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
	kinds := map[string]cobra.CompletionFunc{
		"repo": a.completeRepositories, "ca-file": files, "password-file": files, "new-password-file": files, "to-password-file": files,
		"recipient-file": files, "generate": files, "binary": files, "image": files, "qmp": files, "agent": files, "inside-agent": files,
		"scratch": folders, "dir": folders, "place": folders, "from": folders,
		"libvirt":      fixed("qemu:///system", "qemu:///session"),
		"restore to":   files,
		"copy to":      a.completeRepositories,
		"restore disk": a.completeDisks, "vm bitmaps disk": a.completeDisksOfVM, "vm add disk": files,
		"restore app": a.completeAppFlag, "restore format": fixed("raw\tsparse", "qcow2"),
		"find type":       fixed("f\tfile", "d\tfolder", "l\tlink", "b\tblock device", "c\tcharacter device", "p\tFIFO", "s\tsocket"),
		"check read-data": fixed("1%", "2%", "5%", "10%", "100%"),
	}
	walkCommands(c, func(c *cobra.Command) {
		register := func(f *pflag.Flag) {
			if _, has := c.GetFlagCompletionFunc(f.Name); has || f.Value.Type() == "bool" {
				return
			}
			complete := cobra.NoFileCompletions
			own := strings.TrimPrefix(c.CommandPath(), "cairn ") + " " + f.Name
			if k, ok := kinds[own]; ok {
				complete = k
			} else if k, ok := kinds[f.Name]; ok {
				complete = k
			}
			_ = c.RegisterFlagCompletionFunc(f.Name, complete) // fails for unknown flags only
		}
		c.LocalNonPersistentFlags().VisitAll(register)
		c.PersistentFlags().VisitAll(register)
	})
}

// walkCommands calls f for a command and all below it.
func walkCommands(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		walkCommands(sub, f)
	}
}

// completeRepositories completes addresses of the configuration's
// repositories, or a folder.
func (a *app) completeRepositories(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	var words []string
	if c, err := config.Load(a.dirs()); err == nil {
		for _, r := range c.Repositories {
			if strings.HasPrefix(r.Address, typed) {
				words = append(words, r.Address+"\trepository "+r.Name)
			}
		}
	}
	if len(words) > 0 {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// completeDisks completes the disks of the point that is named already.
func (a *app) completeDisks(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(argv) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	point, _, _ := splitPath(argv[0])
	return a.disksOf(c.Context(), point, typed)
}

// completeDisksOfVM completes the disks of a VM's last point.
func (a *app) completeDisksOfVM(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(argv) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.disksOf(c.Context(), argv[0]+"@latest", typed)
}

func (a *app) disksOf(ctx context.Context, point, typed string) (names []string, _ cobra.ShellCompDirective) {
	err := a.quietly(ctx, func(ctx context.Context, cat *wire.Catalogue) error {
		m, err := cat.Select(ctx, point)
		if err != nil {
			return err
		}
		for _, d := range m.Disks {
			if strings.HasPrefix(d.Name, typed) {
				names = append(names, safe(d.Name)+"\t"+bytesOf(d.Size))
			}
		}
		return nil
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeAppFlag completes a system object of the point that is named
// already.
func (a *app) completeAppFlag(c *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(argv) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completePointAndObject(c, argv[:1], typed)
}

// completeKeys completes IDs of keys, also those that hosts sign with.
func (a *app) completeKeys(c *cobra.Command, argv []string, typed string) (names []string, directive cobra.ShellCompDirective) {
	directive = cobra.ShellCompDirectiveNoFileComp
	if len(argv) > 0 {
		return nil, directive
	}
	ctx, cancel := context.WithTimeout(c.Context(), completeTimeout)
	defer cancel()
	quiet := *a
	quiet.stdin = strings.NewReader("")
	k, err := quiet.openKeys(ctx)
	if err != nil {
		if k, err = wire.ListKeys(ctx, a.repo); err != nil { // without a secret: no hosts
			return nil, cobra.ShellCompDirectiveError
		}
	}
	defer k.Close()
	rows, _, err := keyRows(ctx, k)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	for _, r := range rows {
		if strings.HasPrefix(r.ID, typed) {
			names = append(names, r.ID+"\t"+safe(strings.TrimSpace(r.Kind+" "+r.Label)))
		}
	}
	return names, directive
}

// completePlaces completes a place of the repository, and then a folder.
func (a *app) completePlaces(c *cobra.Command, argv []string, typed string) (names []string, _ cobra.ShellCompDirective) {
	if len(argv) > 0 {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	ctx, cancel := context.WithTimeout(c.Context(), completeTimeout)
	defer cancel()
	quiet := *a
	quiet.stdin = strings.NewReader("")
	err := quiet.withCatalogue(ctx, commandCache, func(repo *wire.Repo, _ *wire.Catalogue) error {
		states, _, err := repo.PlaceStates(ctx)
		for _, s := range states {
			if strings.HasPrefix(s.Spec, typed) {
				names = append(names, safe(s.Spec)+"\t"+string(s.State))
			}
		}
		return err
	})
	if err != nil || len(names) == 0 {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// pathsOf completes POINT:PATH, once its colon is there.
func (a *app) pathsOf(ctx context.Context, typed string) (names []string, directive cobra.ShellCompDirective) {
	directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	point, p, _ := strings.Cut(typed, ":")
	dir, begin := path.Split(p)
	in := dir // volumes/NAME/… is not below the root
	if !strings.HasPrefix(in, "volumes/") {
		in = path.Clean("/" + dir)
	}
	err := a.quietly(ctx, func(ctx context.Context, cat *wire.Catalogue) error {
		v, _, at, err := viewAt(ctx, cat, point, in)
		if err != nil {
			return err
		}
		list, err := wire.ListDir(ctx, v, at)
		for _, e := range list {
			if !strings.HasPrefix(e.Name, begin) || strings.ContainsAny(e.Name, "\n\t\r") {
				continue
			}
			name := point + ":" + cmp.Or(dir, "/") + e.Name
			if e.Type == "directory" {
				name += "/"
			}
			names = append(names, safe(name))
		}
		return err
	})
	if err != nil && len(names) == 0 {
		return nil, cobra.ShellCompDirectiveError
	}
	slices.Sort(names)
	return names, directive
}
