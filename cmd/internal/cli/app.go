package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/progress"
	"cairn/cmd/internal/push"
	"cairn/cmd/internal/wire"
)

// app is one call of cairn.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	exe            string
	version        string
	// inside begins a session with a VM's inside agent.
	inside func(ctx context.Context, vm job.VM) (push.Session, error)
	find   wire.Finder // of system objects, in points that no agent has described

	lines        *sync.Mutex // say is called by several goroutines; nil: by one
	repo         string
	passwordFile string
	caFile       string
	json         bool
	quiet        bool
	writeLimit   int64 // bytes a second into the repository; 0: none

	after func(time.Duration) <-chan time.Time // waits by the clock of now
	tell  progress.Tell                        // hears of progress; nil: nobody

	repos []*wire.Repo    // that were opened
	said  map[string]bool // warnings of their places
}

// Clock is what the time is, and how it is waited for.
type Clock struct {
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
}

// Run is the program: it gives the exit code.
func Run(ctx context.Context, version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return RunBy(ctx, Clock{time.Now, time.After}, version, args, stdin, stdout, stderr)
}

// RunBy is Run by a clock: the program of tests that let a day go by in minutes.
func RunBy(ctx context.Context, clock Clock, version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	exe, err := os.Executable()
	if err != nil {
		exe = "/proc/self/exe"
	}
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, getenv: os.Getenv, now: clock.Now, after: clock.After, exe: exe, version: version, find: wire.Find, lines: new(sync.Mutex)}
	a.inside = func(ctx context.Context, vm job.VM) (push.Session, error) {
		s, err := job.DialInside(ctx, vm, version)
		if err != nil {
			return nil, err // not a nil *guest.Inside, which is no nil Session
		}
		return s, nil
	}
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := a.closing(root.ExecuteContext(ctx))
	if err != nil && !errors.Is(err, errWarnings) {
		if ctx.Err() != nil && !errors.Is(err, job.ErrNotReleased) {
			err = errors.New("interrupted: stopped before the end; run the command again") // the inner errors are only echoes
		}
		a.printError(err)
	}
	return exitCode(ctx, err)
}

func (a *app) printError(err error) {
	text := strings.TrimPrefix(err.Error(), errUsage.Error()+": ")
	if a.json {
		_ = json.NewEncoder(a.stderr).Encode(map[string]any{"message_type": "error", "message": text}) // stderr gone: nobody listens
		return
	}
	fmt.Fprintf(a.stderr, "cairn: %s\n", strings.ReplaceAll(text, "\n", "\n  "))
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "cairn",
		Short: "Back up running QEMU/KVM virtual machines; every restore point is a directory tree",
		Long: `Cairn backs up running QEMU/KVM virtual machines from their dirty bitmaps and
shows every restore point as a directory tree.

A first backup, step by step:
  cairn init /backup/repo                          make a repository
  export CAIRN_REPOSITORY=/backup/repo
  cairn vm add web01 --qmp /run/web01.qmp          name the VM and its monitor
  cairn doctor web01                               what works, what does not, why
  cairn backup web01                               the first reads all, the next what changed
  cairn mount /mnt/cairn                           browse every point
  cairn apps web01@latest                          applications, containers, users in it
  cairn find web01 '*.conf'                        every version of a file, in all points
  cairn restore web01@latest:/etc/fstab --to /tmp  copy a file out
  cairn boot web01@latest                          run the VM from the point, at once
  cairn forget --keep-daily 7 --dry-run            what a rule would drop, and why
  cairn gc                                         and give back the space

A point is written web01@latest, web01@latest~2, web01@2026-10-12, or by the
beginning of its ID. More, also what to do on the worst day: cairn help

` + exitTable,
		SilenceErrors: true, SilenceUsage: true, Version: a.version,
		Args: func(c *cobra.Command, got []string) error {
			if len(got) > 0 {
				return usagef("unknown command %q\nSee: cairn --help", got[0])
			}
			return nil
		},
		PersistentPreRun: func(c *cobra.Command, _ []string) { c.SetContext(wire.WithCAFile(c.Context(), a.caFile)) },
		RunE:             func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.SetOut(a.stdout)
	c.SetErr(a.stderr)
	c.SetIn(a.stdin)
	f := c.PersistentFlags()
	f.StringVarP(&a.repo, "repo", "r", a.getenv("CAIRN_REPOSITORY"), "repository: a folder, any of its places, or s3:https://HOST/BUCKET[/PREFIX] (or CAIRN_REPOSITORY)")
	f.StringVar(&a.caFile, "ca-file", a.getenv("CAIRN_CA_FILE"), "certificates, in PEM, to trust beside the system's for object storage (or CAIRN_CA_FILE)")
	f.StringVar(&a.passwordFile, "password-file", a.getenv("CAIRN_PASSWORD_FILE"), "file whose first line is the passphrase or age identity, or an SSH private key (or CAIRN_PASSWORD_FILE)")
	f.BoolVar(&a.json, "json", false, "print JSON: one object, or a line per message")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print results and errors only")
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%v\nSee: %s --help", err, c.CommandPath())
	})
	c.AddCommand(
		a.initCmd(),
		a.keyCmd(),
		a.vmCmd(),
		a.configCmd(),
		a.doctorCmd(),
		a.freezeTestCmd(),
		a.agentCmd(),
		a.backupCmd(),
		a.pointsCmd(),
		a.showCmd(),
		a.appsCmd(),
		a.mountCmd(),
		a.lsCmd(),
		a.catCmd(),
		a.findCmd(),
		a.logCmd(),
		a.diffCmd(),
		a.restoreCmd(),
		a.bootCmd(),
		a.catalogueCmd(),
		a.gcCmd(),
		a.forgetCmd(),
		a.pinCmd(),
		a.unpinCmd(),
		a.checkCmd(),
		a.copyCmd(),
		a.engineCmd(),
		a.repairCmd(),
		a.placeCmd(),
		a.serveCmd(),
		a.serveWorkerCmd(),
		a.unlessServedCmd(),
		a.demoCmd(),
		a.guardianCmd(),
		a.manualCmd(),
		a.versionCmd(),
	)
	c.SetHelpCommand(a.helpCmd())
	completeNothing(c)
	a.completeFlags(c)
	return c
}

// usagef makes an error of the caller's words.
func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errUsage, fmt.Errorf(format, args...))
}

func noArgs(c *cobra.Command, got []string) error { return args(0, 0)(c, got) }

// args asks for at least lo and at most hi arguments; hi < 0: any number. A
// wrong number is a usage error.
func args(lo, hi int) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) < lo || hi >= 0 && len(got) > hi {
			return usagef("write: %s\nSee: %s --help", c.UseLine(), c.CommandPath())
		}
		return nil
	}
}

// group makes c a command that only holds others: alone it shows its help, and
// a word that none of them is named by is a usage error.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, got []string) error {
		if len(got) > 0 {
			return usagef("unknown command %q\nSee: %s --help", got[0], c.CommandPath())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

func (a *app) dirs() config.Dirs { return config.Find(a.getenv) }

// open opens the repository that the flags name.
func (a *app) open(ctx context.Context) (*wire.Repo, error) {
	if a.repo == "" {
		return nil, usagef("no repository named: use -r REPOSITORY or CAIRN_REPOSITORY")
	}
	return a.opened(wire.OpenLimited(ctx, a.repo, a.secret(), a.dirs(), a.writeLimit))
}

func (a *app) secret() wire.Secret {
	s := wire.Secret{File: a.passwordFile}
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.Prompt = func(question string) (string, error) {
			fmt.Fprint(a.stderr, question)
			b, err := term.ReadPassword(int(f.Fd()))
			fmt.Fprintln(a.stderr)
			return string(b), err
		}
	}
	return s
}

// say prints a step for a person.
func (a *app) say(format string, args ...any) {
	if !a.quiet && !a.json {
		if a.lines != nil {
			a.lines.Lock()
			defer a.lines.Unlock()
		}
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// reporter draws progress where somebody can see it.
func (a *app) reporter() progress.Reporter {
	r := progress.Reporter{Tell: a.tell}
	if a.json {
		if !a.quiet {
			r.JSON = a.stdout
		}
	} else if f, ok := a.stderr.(*os.File); ok && !a.quiet && term.IsTerminal(int(f.Fd())) {
		r.Terminal = a.stderr
	}
	return r
}

func (a *app) printJSON(v any) error { return json.NewEncoder(a.stdout).Encode(v) }

// Bytes of decoded frames that commands and the mount keep.
const (
	commandCache = 24 << 20
	mountCache   = 64 << 20
)

// withGuestData is withCatalogue for an f that reads guest data: without a key
// for that, it is not called.
func (a *app) withGuestData(ctx context.Context, cache int64, f func(*wire.Repo, *wire.Catalogue) error) error {
	return a.withCatalogue(ctx, cache, func(repo *wire.Repo, cat *wire.Catalogue) error {
		if err := repo.Store.MayRead(); err != nil {
			return err
		}
		return f(repo, cat)
	})
}

// withCatalogue opens the repository and its catalogue for f.
func (a *app) withCatalogue(ctx context.Context, cache int64, f func(*wire.Repo, *wire.Catalogue) error) error {
	repo, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	cat := repo.NewCatalogue(ctx, cache)
	defer cat.Close()
	return f(repo, cat)
}
