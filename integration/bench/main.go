package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := exitCode(measure(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr)
	stop()
	os.Exit(code)
}

// errUsage is a command line that makes no sense.
var errUsage = errors.New("usage")

// exitCode is 0 measured, 1 failed or a check did not hold, 2 usage. A missed target is no failure.
func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	default:
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
}

// options are the command line.
type options struct {
	work, corpus, script, cache, cairn, json string
	rows                                     map[string]bool
	peers                                    []peer
	rounds, points                           int
}

// allRows are what -only chooses from.
func allRows() []string {
	return []string{"full", "day", "lost", "second", "parity", "restore", "mount", "copy", "idle", "disks", "nbd", "guest", "push", "tree"}
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.work, "work", "/var/tmp/cairn/bench", "`directory` for repositories, disks and mounts; about 20 GiB")
	flags.StringVar(&o.corpus, "corpus", "/var/tmp/cairn/corpus", "`directory` of the corpus; made when absent, about 14 GiB")
	flags.StringVar(&o.script, "mkcorpus", "", "the `script` that makes the corpus (default ../shared/bench/mkcorpus.sh beside the module)")
	flags.StringVar(&o.cache, "cache", "/var/cache/cairn-bench", "`directory` that keeps the peers' programs")
	flags.StringVar(&o.cairn, "cairn", "", "cairn's `program` (default: built from this module); \"none\" measures only peers")
	flags.StringVar(&o.json, "json", "", "also write every sample to this `file`")
	flags.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	flags.IntVar(&o.points, "points", 100, "restore points for the mount with many points; 0 leaves it out")
	only := flags.String("only", strings.Join(allRows(), ","), "`rows` to measure")
	names := flags.String("peers", "restic,kopia", "`programs` to compare with")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 || o.rounds < 1 || o.points < 0 {
		return o, fmt.Errorf("%w: no arguments, at least one round, no negative number of points", errUsage)
	}
	o.rows = make(map[string]bool)
	for _, row := range fields(*only) {
		if !slices.Contains(allRows(), row) {
			return o, fmt.Errorf("%w: no row called %q; there are %s", errUsage, row, strings.Join(allRows(), ", "))
		}
		o.rows[row] = true
	}
	for _, name := range fields(*names) {
		p, err := findPeer(name)
		if err != nil {
			return o, fmt.Errorf("%w: %w", errUsage, err)
		}
		o.peers = append(o.peers, p)
	}
	return o, nil
}

// fields splits a list at its commas; an empty list has none.
func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// measure does what the command line asks, and prints what was measured even when something failed later.
func measure(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("this needs root: it mounts, and drops the page cache")
	}
	if err := os.MkdirAll(o.work, 0o700); err != nil {
		return err
	}
	work, err := os.MkdirTemp(o.work, "b")
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, os.RemoveAll(work)) }()
	b := &bench{rows: o.rows, work: work, points: o.points, log: log.New(stderr, "", log.Ltime), out: &outcome{}}
	if err := b.equip(ctx, o); err != nil {
		return err
	}
	failure := b.run(ctx, o.rounds)
	b.out.OwnRSS = ownRSS()
	b.out.judge()
	if o.json != "" {
		failure = errors.Join(failure, b.out.save(o.json))
	}
	if err := b.out.print(stdout); err != nil {
		return errors.Join(failure, err)
	}
	if n := b.out.failed(); n > 0 {
		failure = errors.Join(failure, fmt.Errorf("%d checks failed: their numbers count for nothing", n))
	}
	return failure
}

// equip finds or makes the corpus and the programs.
func (b *bench) equip(ctx context.Context, o options) (err error) {
	script := o.script
	if script == "" {
		if script, err = findScript(); err != nil {
			return err
		}
	}
	if len(b.steps()) > 0 || b.rows["parity"] { // the other rows make their own disks
		if b.corpus, err = openCorpus(ctx, o.corpus, script); err != nil {
			return err
		}
	}
	b.out.Machine = machineText(o)
	program := o.cairn
	if program == "" {
		program = filepath.Join(b.work, "cairn")
		if _, err := run(ctx, command{path: "go", args: []string{"build", "-o", program, "cairn/cmd/cairn"}}); err != nil {
			return err
		}
	}
	if program != "none" {
		b.cairn = &cairn{program: program, corpus: b.corpus, report: b.check}
		b.tools = append(b.tools, b.cairn)
	}
	for _, p := range o.peers {
		program, err := p.build(ctx, o.cache)
		if err != nil {
			return err
		}
		switch p.name {
		case "restic":
			b.tools = append(b.tools, &restic{program: program, corpus: b.corpus})
		case "kopia":
			b.tools = append(b.tools, &kopia{program: program, corpus: b.corpus})
		}
	}
	return nil
}

// findScript looks for mkcorpus.sh in the folder that lies beside the module's; "" when there is none.
func findScript() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	script := filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), "../shared/bench/mkcorpus.sh")
	if _, err := os.Stat(script); err != nil {
		return "", nil
	}
	return script, nil
}

func machineText(o options) string {
	text := fmt.Sprintf("%d CPUs, load %.1f before, %s", runtime.NumCPU(), load(), runtime.Version())
	for _, p := range o.peers {
		text += fmt.Sprintf(", %s %s", p.name, p.version)
	}
	if out, err := exec.Command("qemu-system-x86_64", "--version").Output(); err == nil {
		first, _, _ := strings.Cut(string(out), "\n")
		text += ", " + strings.TrimSpace(first)
	}
	return text
}

// ownRSS is the bench's own peak, in bytes.
func ownRSS() int64 {
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return ru.Maxrss << 10
}

// firstError is the first that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
