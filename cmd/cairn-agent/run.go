package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/man"
	"cairn/guest/agent/unit"
)

// Exit codes. Scripts depend on them: codes are only added.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitWarnings = 3
)

const exitTable = `Exit codes:
    0  done
    1  failed
    2  wrong usage
    3  done, with warnings`

var (
	errUsage    = errors.New("usage")
	errWarnings = errors.New("done with warnings")
)

// Where the agent finds and keeps things, unless flags say otherwise.
const (
	defaultPort   = "/dev/virtio-ports/org.cairn.agent.0"
	defaultConfig = "/etc/cairn-agent"
	defaultRun    = "/run/cairn-agent"
	defaultState  = "/var/lib/cairn-agent"
)

// app is one invocation.
type app struct {
	stdout, stderr io.Writer

	port, socket             string
	config, runDir, stateDir string
	below                    string
	json                     bool
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// A log that nobody reads any more must not end the agent.
	signal.Ignore(syscall.SIGPIPE)
	a := &app{stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errWarnings):
		return exitWarnings
	}
	fmt.Fprintf(stderr, "cairn-agent: %s\n", strings.ReplaceAll(strings.TrimPrefix(err.Error(), errUsage.Error()+": "), "\n", "\n  "))
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errUsage, fmt.Errorf(format, args...))
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "cairn-agent [PORT]",
		Short: "Bring this guest to rest for backups that cairn makes on its host",
		Long: `cairn-agent runs in a guest and answers cairn on the host, over a virtio-serial
port: it finds the guest's applications, brings them to rest, freezes the
filesystems for the instant of a restore point, tells what is there, and writes
files that are put back. It needs no network and no password.

It thaws by itself when the host does not: after 30 seconds, or freeze_limit in
/etc/cairn-agent/agent.toml. What applications it does not know you can write
down in /etc/cairn-agent/*.toml, with commands of your own before the freeze and
after the thaw.

  cairn-agent unit >/etc/systemd/system/cairn-agent.service    install it
  cairn-agent inventory         what a backup will find, freeze, and leave out
  cairn-agent config check      is the configuration right?
  cairn-agent status            does it run, and is something frozen or owed?
  cairn-agent thaw              in an emergency: thaw everything

` + exitTable,
		SilenceErrors: true, SilenceUsage: true, Version: version,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && !strings.Contains(args[0], "/") {
				return usagef("%q is no command, and not the path of a port\nSee: cairn-agent --help", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				a.port = args[0]
			}
			return a.serve(c.Context())
		},
	}
	c.CompletionOptions.DisableDefaultCmd = true
	c.Flags().StringVar(&a.port, "port", defaultPort, "virtio-serial port to the host")
	c.Flags().StringVar(&a.socket, "socket", "", "listen on a unix socket instead")
	f := c.PersistentFlags()
	f.StringVar(&a.config, "config", defaultConfig, "folder of the operator's configuration")
	f.StringVar(&a.runDir, "run-dir", defaultRun, "folder for what is forgotten with the boot")
	f.StringVar(&a.stateDir, "state-dir", defaultState, "folder for what is not")
	f.StringVar(&a.below, "below", "", "freeze and thaw only filesystems mounted below this folder (for tests)")
	f.BoolVar(&a.json, "json", false, "print JSON")
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%v\nSee: %s --help", err, c.CommandPath())
	})
	configure := &cobra.Command{Use: "config", Short: "The operator's configuration", Args: noArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	configure.AddCommand(&cobra.Command{Use: "check", Short: "Read the configuration and tell what is wrong with it", Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.checkConfig() }})
	c.AddCommand(
		configure,
		&cobra.Command{Use: "inventory", Short: "Show what a backup would find, freeze, and leave out", Args: noArgs,
			RunE: func(c *cobra.Command, _ []string) error { return a.inventory(c.Context()) }},
		&cobra.Command{Use: "status", Short: "Show whether the agent runs, and what is frozen or owed", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { return a.status() }},
		&cobra.Command{Use: "thaw", Short: "Thaw every filesystem, whoever froze it", Args: noArgs,
			RunE: func(c *cobra.Command, _ []string) error { return a.thaw(c.Context()) }},
		&cobra.Command{Use: "unit", Short: "Print the systemd unit", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { _, err := io.WriteString(a.stdout, unit.Service()); return err }},
		&cobra.Command{Use: "manual FOLDER", Short: "Write the manual pages of all commands into a folder", Hidden: true,
			Args: func(c *cobra.Command, args []string) error {
				if len(args) != 1 {
					return usagef("write: %s", c.UseLine())
				}
				return nil
			},
			RunE: func(c *cobra.Command, args []string) error {
				date, err := man.Date(os.Getenv("SOURCE_DATE_EPOCH"), time.Now())
				if err != nil {
					return err
				}
				return man.Write(args[0], c.Root(), man.Book{Source: "cairn-agent " + version, Date: date, Exit: exitTable})
			}},
		&cobra.Command{Use: "version", Short: "Print the version", Args: noArgs,
			RunE: func(*cobra.Command, []string) error {
				if a.json {
					return a.printJSON(map[string]string{"version": version})
				}
				_, err := fmt.Fprintln(a.stdout, "cairn-agent", version)
				return err
			}},
	)
	return c
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument\nSee: %s --help", c.CommandPath(), c.CommandPath())
	}
	return nil
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
