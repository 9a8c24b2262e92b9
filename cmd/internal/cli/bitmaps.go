package cli

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
)

// bitmapsFlags are what `cairn vm bitmaps` is told.
type bitmapsFlags struct {
	remove, all bool
	disk        string
	images      []string
}

func (a *app) vmBitmapsCmd() *cobra.Command {
	var f bitmapsFlags
	c := &cobra.Command{
		Use:   "bitmaps VM | bitmaps --image FILE",
		Short: "List, or remove, the dirty bitmaps that backups keep on a VM's disks",
		Long: `List the dirty bitmaps that backups keep on a VM's disks, with what they have
recorded, or remove them.

QEMU refuses to revert a disk to an internal snapshot while it has bitmaps
("Device has active dirty bitmaps"). Remove them before, with --disk or of all
disks:

  cairn vm bitmaps web01 --remove            those of the repository in use (-r)
  cairn vm bitmaps web01 --remove --all      those of every repository
  cairn vm bitmaps --image vda.qcow2 --remove --all      while the VM is off

Nothing in a repository changes. The next backup reads the disks whole, stores
only what is new, and the one after it is incremental again.`,
		Args:              args(0, 1),
		ValidArgsFunction: a.completeFirst(a.completeVMs),
		RunE:              func(c *cobra.Command, argv []string) error { return a.vmBitmaps(c, argv, f) },
	}
	c.Flags().BoolVar(&f.remove, "remove", false, "remove those of the repository named by -r, or all of Cairn's with --all")
	c.Flags().BoolVar(&f.all, "all", false, "those of every repository")
	c.Flags().StringVar(&f.disk, "disk", "", "only those of this disk")
	c.Flags().StringSliceVar(&f.images, "image", nil, "image file of a VM that is off, in place of VM (needs qemu-img)")
	return c
}

func (a *app) vmBitmaps(c *cobra.Command, argv []string, f bitmapsFlags) error {
	if (len(argv) == 1) == (len(f.images) > 0) {
		return usagef("name a VM, or the image files of one that is off with --image")
	}
	if f.remove && !f.all && a.repo == "" {
		return usagef("whose bitmaps? name the repository with -r, or remove those of every repository with --all")
	}
	repo := ""
	if !f.all && a.repo != "" {
		var err error
		if repo, err = wire.BitmapTag(c.Context(), a.repo); err != nil {
			return err
		}
	}
	var list []job.DiskBitmap
	var err error
	if len(f.images) > 0 {
		list, err = imageBitmaps(c, f, repo)
	} else {
		list, err = a.runningBitmaps(c, argv[0], f, repo)
	}
	if err != nil {
		return err
	}
	return a.printBitmaps(list, f.remove)
}

func (a *app) runningBitmaps(c *cobra.Command, name string, f bitmapsFlags, repo string) ([]job.DiskBitmap, error) {
	vm, err := a.vm(c.Context(), name)
	if err != nil {
		return nil, err
	}
	b := job.Bitmaps{VM: vm, State: a.dirs().State, Repo: repo, Disk: f.disk}
	if f.remove {
		return b.Remove(c.Context())
	}
	return b.List(c.Context())
}

func imageBitmaps(c *cobra.Command, f bitmapsFlags, repo string) ([]job.DiskBitmap, error) {
	do := job.ImageBitmaps
	if f.remove {
		do = job.RemoveImageBitmaps
	}
	var all []job.DiskBitmap
	for _, file := range f.images {
		list, err := do(c.Context(), file, repo)
		all = append(all, list...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

func (a *app) printBitmaps(list []job.DiskBitmap, removed bool) error {
	if a.json {
		return a.printJSON(map[string]any{"bitmaps": append([]job.DiskBitmap{}, list...), "removed": removed})
	}
	switch {
	case len(list) == 0:
		a.say("there are no bitmaps of Cairn's")
		return nil
	case removed:
		for _, b := range list {
			fmt.Fprintf(a.stdout, "removed %s of %s\n", b.Name, safe(b.Disk))
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "DISK\tBITMAP\tREPOSITORY\tSTATE\tDIRTY")
	for _, b := range list {
		dirty := "?"
		if b.BytesDirty >= 0 {
			dirty = bytesOf(b.BytesDirty)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", safe(b.Disk), b.Name, b.Repository, b.State, dirty)
	}
	return w.Flush()
}
