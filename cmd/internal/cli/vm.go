package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/config"
)

func (a *app) vmCmd() *cobra.Command {
	c := group(&cobra.Command{Use: "vm", Short: "Register the VMs of this host"})
	c.AddCommand(a.vmAddCmd(), a.vmDiscoverCmd(), a.vmLsCmd(), a.vmRmCmd(), a.vmBitmapsCmd())
	return c
}

// completeVMs completes the names of registered VMs.
func (a *app) completeVMs(_ *cobra.Command, argv []string, typed string) ([]string, cobra.ShellCompDirective) {
	vms, err := a.dirs().VMs()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, v := range vms {
		names = append(names, v.Name)
	}
	if c, err := config.Load(a.dirs()); err == nil { // also those with a table
		names = nil
		for _, m := range c.VMs {
			names = append(names, m.Name)
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, typed) || slices.Contains(argv, name) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) vmAddCmd() *cobra.Command {
	var v config.VM
	var replace bool
	var disks []string
	c := &cobra.Command{
		Use:   "add NAME --qmp SOCKET [--disk NAME=FILE]… | --libvirt URI",
		Short: "Register a VM by its QEMU monitor's socket, or by libvirt",
		Long: `Register a VM by its QEMU monitor's socket, or by libvirt.

A VM that libvirt runs is registered with --libvirt qemu:///system, and with
--domain if libvirt knows it by another name; see also: cairn vm discover.

A monitor serves one client at a time: give Cairn one of its own by starting
QEMU with -qmp unix:/run/NAME.qmp,server=on,wait=off . The guest agents' sockets
are found by themselves; --agent and --inside-agent name others.

A VM that is off is backed up from its image files. Where they are is known
from its last restore point; --disk NAME=FILE[,format=qcow2|raw][,serial=S]
says so for a VM that has none yet, or whose images have moved. Give disks the
names that they have while the VM runs (cairn doctor), and serials too: else
the first backup after its start reads them whole.`,
		Args:              args(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions, // a new name
		RunE: func(c *cobra.Command, argv []string) error {
			v.Name = argv[0]
			var err error
			if v.Disks, err = parseDisks(disks); err != nil {
				return err
			}
			if err := checkDoor(&v); err != nil {
				return err
			}
			if err := config.CheckName(v.Name); err != nil {
				return usagef("%v", err)
			}
			for _, p := range []*string{&v.QMP, &v.Agent, &v.Inside} { // both "" with libvirt
				if *p == "" {
					continue
				}
				abs, err := filepath.Abs(*p)
				if err != nil {
					return err
				}
				*p = abs
			}
			if err := a.dirs().SaveVM(v, replace); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(v)
			}
			a.say("registered %s; see what works with: cairn doctor %s", v.Name, v.Name)
			return nil
		},
	}
	c.Flags().StringVar(&v.QMP, "qmp", "", "QEMU monitor's unix socket")
	c.Flags().StringVar(&v.Libvirt, "libvirt", "", "instead of --qmp: libvirt's connection URI, qemu:///system")
	c.Flags().StringVar(&v.Domain, "domain", "", "libvirt's name or UUID of the VM (default: NAME)")
	c.Flags().StringVar(&v.Agent, "agent", "", "qemu-guest-agent's unix socket, if QEMU cannot tell it")
	c.Flags().StringVar(&v.Inside, "inside-agent", "", "cairn-agent's unix socket, if QEMU cannot tell it")
	c.Flags().StringSliceVar(&v.Exclude, "exclude", nil, "names of disks to leave out")
	c.Flags().StringSliceVar(&v.Tags, "tag", nil, "tags by which jobs of the configuration choose it (tag:NAME)")
	c.Flags().StringArrayVar(&disks, "disk", nil, "image file of a disk, for when the VM is off: NAME=FILE[,format=qcow2|raw][,serial=S]")
	c.Flags().BoolVar(&replace, "replace", false, "change a VM that is registered already")
	return c
}

// checkDoor refuses what names no way to a VM, or two.
func checkDoor(v *config.VM) error {
	switch {
	case v.QMP == "" && v.Libvirt == "" && len(v.Disks) == 0:
		return usagef("name the monitor's socket: --qmp SOCKET, or libvirt's connection: --libvirt qemu:///system (or, of a VM that Cairn sees only while it is off, its images: --disk NAME=FILE)")
	case v.QMP != "" && v.Libvirt != "":
		return usagef("--qmp and --libvirt are two ways to one VM: choose one; under libvirt it is --libvirt")
	case v.Libvirt == "" && v.Domain != "":
		return usagef("--domain is for --libvirt")
	case v.Libvirt == "":
		return nil
	case v.Agent != "":
		return usagef("--agent is for --qmp: under libvirt the agent's channel is libvirt's")
	}
	if v.Domain == "" {
		v.Domain = v.Name
	}
	return checkURI(v.Libvirt)
}

func (a *app) vmLsCmd() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List the registered VMs", Args: noArgs, RunE: func(*cobra.Command, []string) error {
		vms, err := a.dirs().VMs()
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"vms": append([]config.VM{}, vms...)})
		}
		if len(vms) == 0 {
			a.say("no VM is registered on this host yet: cairn vm add NAME --qmp SOCKET")
			return nil
		}
		w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tQMP OR LIBVIRT\tAGENT\tEXCLUDED DISKS\tIMAGES")
		for _, v := range vms {
			agent := v.Agent
			if agent == "" {
				agent = "as QEMU says"
			}
			images, door := "as its last point says", v.QMP
			for i, d := range v.Disks {
				if i == 0 {
					images = ""
				}
				images += d.Name + "=" + d.File + " "
			}
			if v.Libvirt != "" {
				door, agent = v.Libvirt+" "+v.Domain, "through libvirt"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Name, door, agent, strings.Join(v.Exclude, " "), strings.TrimSpace(images))
		}
		return w.Flush()
	}}
}

func (a *app) vmRmCmd() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Forget a VM; its restore points stay", Args: args(1, 1), ValidArgsFunction: a.completeFirst(a.completeVMs), RunE: func(_ *cobra.Command, argv []string) error {
		if err := a.dirs().RemoveVM(argv[0]); err != nil {
			return err
		}
		a.say("forgot %s; its restore points stay in the repository", argv[0])
		return nil
	}}
}
