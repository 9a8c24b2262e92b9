package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/runs"
	"cairn/cmd/internal/serve"
)

// daemon is what the web page and the metrics see of cairn serve.
type daemon interface {
	Status() runs.Status
	Book() *runs.Book
}

// defaultGrace is how long runs may go on when cairn serve is to stop.
const defaultGrace = 5 * time.Minute

const serveHelp = `Do what the configuration's jobs ask for, when it is due, until it is stopped.

  cairn config example > /etc/cairn/cairn.toml     then write down your jobs
  cairn config check                               what is understood, what comes next
  systemctl enable --now cairn.service             or, at a terminal: cairn serve
  cairn serve status                               what goes on, what is late, and why

What runs when:
  backups    at the moments of a job's schedule, inside its window, and when its
             conditions ask for it; never two of one VM at once. How many at once
             say [host], [repository.NAME] and the job.
  forget     by a job's keep_ rules, when its backups are through
  gc, check, engine_check
             as [repository.NAME] says; by itself weekly, and never if it says so
  catalogue  of a point that has none (its run was killed, say), when nothing else
             is done for its repository; one at a time

What was missed while the host was off is made up for: one backup of each VM,
whatever number of them was missed (not with no_catch_up). Jobs that are due
together for one VM, in one repository, make one point. A backup that fails is
tried again after a minute, then after two, and so on up to an hour, until the
next one is due. A new job, or one with a new schedule, begins with the next moment
of its schedule.

It shows a page ([web]; cairn help monitoring), tells Prometheus at /metrics, and
people when something is wrong ([notify]).

The configuration is read again when its files change, and on SIGHUP. If it has
errors, the one before goes on to hold, and the log and the status say so. On
SIGTERM nothing is begun any more; what runs may end within --grace, and is then
interrupted, which cleans up. It can be killed at any instant: the guests are
released, and the next start finds out what was made.

Where the log goes to the journal, lines carry their priority. Each run's log, and
its reason, are in the state folder and in cairn serve status --json.

With --once it does what is due, and ends: for a timer (cairn-once.timer) instead of
the daemon. Its exit code then is 0 if all went well, 3 with warnings, 1 if something
failed, 4 if damage was found.`

func (a *app) serveCmd() *cobra.Command {
	once, grace, dav := false, defaultGrace, false
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the configuration's jobs when they are due",
		Long:  serveHelp,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if grace < 0 {
				return usagef("--grace %s: give a time from 0s on", grace)
			}
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			if dav && cfg.Web == nil {
				return usagef("--webdav shares points where the page is: write a table [web] in the configuration (cairn config example)")
			}
			return a.serve(c.Context(), cfg, once, dav, grace)
		},
	}
	c.Flags().BoolVar(&once, "once", false, "do what is due now, and end")
	c.Flags().BoolVar(&dav, "webdav", false, "share restore points below /dav/ of the page, as webdav = true in [web] does (cairn help sharing)")
	c.Flags().DurationVar(&grace, "grace", grace, "how long runs may go on when it is to stop")
	c.AddCommand(a.serveStatusCmd())
	return c
}

// serve is the daemon's life. ctx ends with SIGTERM.
func (a *app) serve(ctx context.Context, cfg *config.Config, once, dav bool, grace time.Duration) error {
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	log := serve.NewLog(a.stderr, a.json, a.getenv("JOURNAL_STREAM") != "")
	tellers := newTellers(a, dav, log)
	d, err := serve.New(serve.Options{
		Dirs: a.dirs(), Config: cfg, Version: a.version, Host: job.Hostname(), Now: a.now, After: a.after, Getenv: a.getenv, Domains: listDomains, Grace: grace, Once: once, Reload: reload,
		Process: func(repo string) *exec.Cmd { return exec.Command(a.exe, serve.WorkerCommand, repo) },
		Log:     log, Reloaded: tellers.changed,
	})
	if err != nil {
		return err
	}
	quiet := func() {}
	if !once {
		stop, err := d.AnswerStatus()
		if err != nil { // it is no reason not to back up
			a.say("warning: cairn serve status will not get an answer: %v", err)
		} else {
			defer stop()
		}
		quiet = tellers.begin(cfg, d)
	}
	r, err := d.Run(ctx)
	quiet()
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	switch {
	case !once: // stopped, as it was told
		return nil
	case r.Damage > 0:
		return codeError{exitDamage, "damage was found in a repository: see the log, and cairn check"}
	case r.Failed > 0:
		return codeError{exitFailed, fmt.Sprintf("%s failed: see the log, and cairn serve status", counted(r.Failed, "run"))}
	case r.Warned > 0:
		return errWarnings
	}
	return nil
}

func (a *app) serveStatusCmd() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Say what cairn serve does, and what it is late with", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Ask the cairn serve of this host what it does: which VMs are backed up and which
wait, and why; when each was last backed up, and comes next; what it is late with.

Exit code 3: something is late, failed, or wrong with the configuration; 1: no
cairn serve runs. With --once there is none to ask: see its log.`,
		RunE: func(*cobra.Command, []string) error {
			s, err := serve.AskStatus(a.dirs())
			if errors.Is(err, os.ErrNotExist) {
				return errors.New("no cairn serve runs on this host, or none that this user may ask: systemctl status cairn.service")
			}
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(s)
			} else {
				err = a.printStatus(s)
			}
			if err == nil && troubled(s) {
				err = errWarnings
			}
			return err
		}}
}

// troubled says whether somebody should look.
func troubled(s runs.Status) bool {
	bad := s.Problem != "" || len(s.Troubles) > 0
	for _, v := range s.VMs {
		bad = bad || v.Late || v.Failures > 0
	}
	for _, r := range s.Repositories {
		bad = bad || r.Problem != "" || r.Findings > 0 || len(r.Away) > 0
	}
	for _, j := range s.Jobs {
		bad = bad || j.Problem != ""
	}
	return bad
}

func (a *app) printStatus(s runs.Status) error {
	if s.Problem != "" {
		fmt.Fprintf(a.stdout, "PROBLEM: %s\n", safe(s.Problem))
	}
	for _, t := range s.Troubles {
		fmt.Fprintf(a.stdout, "PROBLEM: %s\n", safe(t.Text))
	}
	for _, r := range s.Running {
		name := r.VM
		if name == "" {
			name = strings.TrimSpace(r.Job + " " + r.Repository)
		}
		at := ""
		if r.Total > 0 {
			at = fmt.Sprintf(", %d%%", 100*min(r.Done, r.Total)/r.Total)
		}
		fmt.Fprintf(a.stdout, "running: %s of %s for %s%s: %s\n", r.Kind, safe(name), since(s.Now, r.Started), at, safe(r.Step))
	}
	for _, r := range s.Waiting {
		fmt.Fprintf(a.stdout, "waiting: %s of %s, due %s: %s\n", r.Kind, safe(strings.TrimSpace(r.VM+" "+r.Job)), r.Due.Local().Format(runTime), safe(r.Reason))
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "VM\tJOBS\tLAST GOOD\tNEXT\tSTATE")
	for _, v := range s.VMs {
		good, next, state := "never", "-", "ok"
		if v.LastGood != nil {
			good = since(s.Now, v.LastGood.Ended) + " ago"
			if s.Now.Sub(v.LastGood.Ended) < time.Second {
				good = "just now"
			}
		}
		if !v.Next.IsZero() {
			next = v.Next.Local().Format(runTime)
		}
		switch {
		case !v.Protected():
			state = "not protected: in no job"
		case v.Failures > 0 && v.Last != nil:
			state = fmt.Sprintf("failed %d times: %s", v.Failures, safe(v.Last.Reason))
		case v.Late:
			state = "late"
		case v.LastGood == nil:
			state = "new"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Name, strings.Join(v.Jobs, " "), good, next, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range s.Repositories {
		state := "no gc yet"
		if r.LastGC != nil {
			state = fmt.Sprintf("gc %s, %s ago, freed %s", r.LastGC.Outcome, since(s.Now, r.LastGC.Ended), bytesOf(r.LastGC.Freed))
		}
		if c := r.LastCheck; c != nil {
			state += fmt.Sprintf("; check %s ago: ", since(s.Now, c.Ended))
			if !c.Good() && c.Findings == 0 { // it says nothing of the repository
				state += string(c.Outcome) + ", before that "
			}
			state += counted(r.Findings, "finding")
		}
		if len(r.Away) > 0 {
			state += "; away: " + safe(strings.Join(r.Away, ", "))
		}
		if r.Problem != "" {
			state += "; PROBLEM: " + safe(r.Problem)
		}
		fmt.Fprintf(a.stdout, "repository %s (%s): %s\n", r.Name, safe(r.Address), state)
	}
	for _, j := range s.Jobs {
		if j.Problem != "" {
			fmt.Fprintf(a.stdout, "job %s: PROBLEM: %s\n", j.Name, safe(j.Problem))
		}
	}
	return nil
}

// since says how long ago something was.
func since(now, then time.Time) string {
	if now.Sub(then) < time.Second {
		return "a moment"
	}
	return strings.TrimSpace(humanize.RelTime(then, now, "", ""))
}

// unlessServedCmd is what the units of single commands ask first (ExecCondition):
// it fails where cairn serve does the same.
func (a *app) unlessServedCmd() *cobra.Command {
	return &cobra.Command{Use: "unless-served [backup VM | check | gc]", Hidden: true, Args: args(0, 2), RunE: func(_ *cobra.Command, argv []string) error {
		s, err := serve.AskStatus(a.dirs())
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err // it runs, and what it does is not known
		}
		covered := len(argv) == 0
		switch {
		case covered:
		case argv[0] == "backup" && len(argv) == 2:
			for _, v := range s.VMs {
				covered = covered || v.Name == argv[1] && v.Protected()
			}
		default:
			for _, r := range s.Repositories {
				covered = covered || r.Address == a.repo
			}
		}
		if covered {
			return codeError{exitFailed, "left to cairn serve, which runs on this host and does it"}
		}
		return nil
	}}
}
