package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/metrics"
	"cairn/cmd/internal/serve"
	"cairn/qmp/libvirt"
)

// listTimeout bounds how long a libvirt may take to list its domains.
const listTimeout = 20 * time.Second

// runTime is how times of runs are written.
const runTime = "Mon 2006-01-02 15:04 MST"

// configMessage is what `cairn config check --json` prints.
type configMessage struct {
	Type     string           `json:"message_type"` // "config_check"
	Files    []string         `json:"files"`
	Jobs     []jobMessage     `json:"jobs"`
	Warnings []config.Problem `json:"warnings"`
	Errors   []config.Problem `json:"errors"`
}

type jobMessage struct {
	Name       string      `json:"name"`
	VMs        []string    `json:"vms"`
	Repository string      `json:"repository"`
	Schedule   []string    `json:"schedule"`
	When       string      `json:"when"`      // in words
	NextRuns   []time.Time `json:"next_runs"` // three at most
	Keep       string      `json:"keep"`      // in words; "" is everything
}

func (a *app) configCmd() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check and show this host's configuration: repositories, VMs, jobs", Args: noArgs, Long: `Check and show this host's configuration.

Which VMs are backed up when, to where, and what stays of their points is written
in /etc/cairn/cairn.toml and /etc/cairn/cairn.d/*.toml (CAIRN_CONFIG_DIR). All
files count as one. Nothing of it is needed for the commands: they go on to take
their repository from -r or CAIRN_REPOSITORY, and their VMs from cairn vm add.

  cairn config example > /etc/cairn/cairn.toml      every setting, with comments
  cairn config check                                what is wrong, what comes next
  cairn config show                                 all files as one`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(a.configCheckCmd(), a.configShowCmd(), a.configExampleCmd(), a.notifyTestCmd())
	return c
}

func (a *app) configExampleCmd() *cobra.Command {
	var alerts, dashboard bool
	c := &cobra.Command{Use: "example", Short: "Print a configuration with every setting, and comments", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions, RunE: func(*cobra.Command, []string) error {
		text := config.Example()
		switch {
		case alerts && dashboard:
			return usagef("one of --alerts and --dashboard at a time")
		case alerts:
			text = metrics.Rules()
		case dashboard:
			text = metrics.Dashboard()
		}
		_, err := fmt.Fprint(a.stdout, text)
		return err
	}}
	c.Flags().BoolVar(&alerts, "alerts", false, "print alert rules for Prometheus instead")
	c.Flags().BoolVar(&dashboard, "dashboard", false, "print a dashboard for Grafana instead")
	return c
}

func (a *app) configShowCmd() *cobra.Command {
	return &cobra.Command{Use: "show", Short: "Print all files of the configuration as one", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Print all files of the configuration as one that means the same, with the place
that each part is from, and for each job when it comes next. VMs that are only
discovered are in cairn config check.`,
		RunE: func(*cobra.Command, []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(c)
			}
			return c.Write(a.stdout, a.now())
		}}
}

func (a *app) configCheckCmd() *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Say what is wrong in the configuration, and what Cairn understood", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Say what is wrong in the configuration: file, line, column, and what to write.
If nothing is, each job is printed in a line: its VMs as they are now, when it
comes next, what it keeps. Warnings are about what is allowed and probably not
meant: a VM in no job, a pattern that matches none.

Exit code 2: the configuration has errors; 3: it has warnings.`,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig()
			out := configMessage{Type: "config_check", Files: []string{}, Jobs: []jobMessage{}, Warnings: []config.Problem{}, Errors: []config.Problem{}}
			var problems config.Problems
			if err != nil {
				if errors.As(err, &problems) && a.json {
					out.Errors = problems
					return errors.Join(a.printJSON(out), err)
				}
				return err
			}
			if len(cfg.Files) == 0 && !a.json {
				a.say("no configuration in %s: none is needed for the commands; for jobs see: cairn config example", a.dirs().Config)
				return nil
			}
			all, warnings := cfg.Inspect(c.Context(), listDomains, a.now())
			out.Files, out.Warnings = append(out.Files, cfg.Files...), append(out.Warnings, warnings...)
			for _, j := range cfg.Jobs {
				out.Jobs = append(out.Jobs, a.jobMessage(j, all))
			}
			if err := a.printConfig(out, len(all)); err != nil {
				return err
			}
			if len(warnings) > 0 {
				return errWarnings
			}
			return nil
		}}
}

// loadConfig loads the configuration. What is wrong in it is the caller's error.
func (a *app) loadConfig() (*config.Config, error) {
	c, err := config.Load(a.dirs())
	var problems config.Problems
	if errors.As(err, &problems) {
		return nil, usagef("the configuration has %s, and is not used:\n%w", counted(len(problems), "error"), problems)
	}
	return c, err
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// listDomains asks a libvirt for its domains.
func listDomains(ctx context.Context, uri string) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	found, err := libvirt.Discover(ctx, uri)
	for _, f := range found {
		names = append(names, f.Name)
	}
	return names, err
}

func (a *app) jobMessage(j config.Job, all []config.Machine) jobMessage {
	m := jobMessage{Name: j.Name, VMs: []string{}, Repository: j.Repository, Schedule: []string{}, When: serve.When(j), Keep: j.KeepText, NextRuns: append([]time.Time{}, j.Coming(a.now(), 3)...)}
	for _, vm := range j.Machines(all) {
		m.VMs = append(m.VMs, vm.Name)
	}
	for _, s := range j.Schedules {
		m.Schedule = append(m.Schedule, s.String())
	}
	return m
}

// printConfig shows what was understood.
func (a *app) printConfig(out configMessage, vms int) error {
	if a.json {
		return a.printJSON(out)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	if len(out.Jobs) > 0 {
		fmt.Fprintln(w, "JOB\tVMS\tTO\tWHEN\tNEXT\tKEEPS")
	}
	for _, j := range out.Jobs {
		next, keep := "-", j.Keep
		if len(j.NextRuns) > 0 {
			next = j.NextRuns[0].Format(runTime)
		}
		if keep == "" {
			keep = "all"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", j.Name, someOf(j.VMs, 4), j.Repository, j.When, next, keep)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range out.Warnings {
		fmt.Fprintf(a.stdout, "warning: %s\n", safe(p.String()))
	}
	verdict := "no error"
	if len(out.Warnings) > 0 {
		verdict += ", " + counted(len(out.Warnings), "warning")
	}
	_, err := fmt.Fprintf(a.stdout, "%s in %s: %s, %s\n", verdict, counted(len(out.Files), "file"), counted(len(out.Jobs), "job"), counted(vms, "VM"))
	return err
}

// someOf lists a few names, and how many more there are.
func someOf(names []string, n int) string {
	switch {
	case len(names) == 0:
		return "none now"
	case len(names) > n:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:n-1], ", "), len(names)-n+1)
	}
	return strings.Join(names, ", ")
}
