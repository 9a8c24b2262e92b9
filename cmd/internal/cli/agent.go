package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
)

func (a *app) agentCmd() *cobra.Command {
	c := group(&cobra.Command{Use: "agent", Short: "Install cairn-agent in a guest, and ask it how it is"})
	c.AddCommand(a.agentInstallCmd(), a.agentStatusCmd())
	return c
}

func (a *app) agentInstallCmd() *cobra.Command {
	var binary string
	c := &cobra.Command{
		Use:   "install VM",
		Short: "Install cairn-agent in a running Linux guest, through its qemu-guest-agent",
		Long: `Install cairn-agent in a running Linux guest, through its qemu-guest-agent: no
guest network and no guest password are needed. The binary is copied to
/usr/sbin/cairn-agent, made a systemd service, and started; one that is there is
replaced. If the VM has no virtio-serial port for it, one is plugged in; what to
add to the VM's configuration, so that it is there at the next start, is printed.

With cairn-agent a backup tells the guest's applications (PostgreSQL, MySQL,
Redis, and those of /etc/cairn-agent/*.toml), the mount shows them as
apps/, and files go back into the running guest: cairn restore … --into VM

Where qemu-guest-agent may not run programs (RHEL and its kin forbid it), or the
guest has no systemd: install the package cairn-agent in the guest, or copy the
binary there; "cairn-agent unit" prints its service.`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.completeVMs),
		RunE: func(c *cobra.Command, argv []string) error {
			vm, err := a.vm(c.Context(), argv[0])
			if err != nil {
				return err
			}
			if binary == "" {
				binary = a.findAgentBinary()
			}
			i := job.AgentInstall{VM: vm, Binary: binary, Version: a.version, Progress: a.reporter().Work,
				Step: func(format string, args ...any) { a.say(vm.Name+": "+format, args...) }}
			done, err := i.Run(c.Context())
			if err != nil {
				return fmt.Errorf("%s: %w", vm.Name, err)
			}
			if a.json {
				return a.printJSON(map[string]string{"vm": vm.Name, "agent": done.Agent, "hostname": done.Hostname, "add_to_vm": done.Channel})
			}
			fmt.Fprintf(a.stdout, "%s: cairn-agent %s answers from %s\n", vm.Name, safe(done.Agent), safe(done.Hostname))
			if done.Channel != "" {
				fmt.Fprintf(a.stdout, "  its port is gone when the VM is powered off; add to the VM's command line:\n  %s\n", done.Channel)
			}
			return nil
		},
	}
	c.Flags().StringVar(&binary, "binary", "", "cairn-agent for the guest (default: beside cairn, or in /usr/lib/cairn)")
	return c
}

// findAgentBinary gives the first place where there is one, else the first.
func (a *app) findAgentBinary() string {
	beside := filepath.Join(filepath.Dir(a.exe), "cairn-agent")
	for _, name := range []string{beside, "/usr/lib/cairn/cairn-agent"} {
		if _, err := os.Stat(name); err == nil {
			return name
		}
	}
	return beside
}

func (a *app) agentStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "status VM",
		Short:             "Ask a guest's cairn-agent for its version and what it is doing",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.completeVMs),
		RunE: func(c *cobra.Command, argv []string) error {
			vm, err := a.vm(c.Context(), argv[0])
			if err != nil {
				return err
			}
			is, err := job.AskInside(c.Context(), vm, a.version)
			if err != nil {
				return fmt.Errorf("%s: %w; install it with: cairn agent install %s", vm.Name, err, vm.Name)
			}
			if a.json {
				return a.printJSON(is)
			}
			fmt.Fprintf(a.stdout, "%s: cairn-agent %s on %s (%s), up %d s, %s of memory, %d ms of processor time\n", vm.Name, safe(is.Agent), safe(is.Hostname), safe(is.OS),
				is.Status.UptimeS, bytesOf(is.Status.RSS), is.Status.CPUMS)
			if is.Status.Frozen {
				fmt.Fprintln(a.stdout, "  the guest's filesystems are frozen for point", safe(is.Status.Point))
			}
			if is.Status.Owed > 0 {
				fmt.Fprintf(a.stdout, "  %d post steps of an earlier backup are still to be done\n", is.Status.Owed)
			}
			return nil
		},
	}
}
