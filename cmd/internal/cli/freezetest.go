package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
)

func (a *app) freezeTestCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "freeze-test VM",
		Short: "Freeze a guest's filesystems, thaw them at once, and report the times",
		Long: `Freeze a guest's filesystems by its agent and thaw them at once: what a backup
does to the guest, without a backup. The times are what applications in the
guest will notice at each backup. If cairn is killed in between, its guardian
process thaws the guest, as in a backup.`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.completeVMs),
		RunE: func(c *cobra.Command, argv []string) error {
			vm, err := a.vm(c.Context(), argv[0])
			if err != nil {
				return err
			}
			f := job.FreezeTest{VM: vm, State: a.dirs().State, Exe: a.exe, Now: a.now,
				Step: func(format string, args ...any) { a.say(vm.Name+": "+format, args...) }}
			t, err := f.Run(c.Context())
			if err != nil {
				return fmt.Errorf("%s: %w", vm.Name, err)
			}
			if a.json {
				return a.printJSON(map[string]any{"vm": vm.Name, "filesystems": t.Filesystems, "freeze_ms": t.Freeze.Milliseconds(),
					"frozen_ms": t.Frozen.Milliseconds(), "thaw_attempts": t.Attempts})
			}
			_, err = fmt.Fprintf(a.stdout, "%s: froze %d filesystems in %d ms (flushing included); they stood still for at most %d ms, and are thawed\n",
				vm.Name, t.Filesystems, t.Freeze.Milliseconds(), t.Frozen.Milliseconds())
			return err
		},
	}
}

// vms gives VMs that are registered, or that the configuration discovers.
func (a *app) vms(ctx context.Context, names ...string) ([]config.VM, error) {
	return a.dirs().FindVMs(ctx, names, listDomains)
}

// vm gives one as a job wants it.
func (a *app) vm(ctx context.Context, name string) (job.VM, error) {
	list, err := a.vms(ctx, name)
	if err != nil {
		return job.VM{}, err
	}
	return jobVM(list[0]), nil
}
