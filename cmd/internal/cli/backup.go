package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index"
	"cairn/index/restorepoint"
)

// summaryMessage ends `cairn backup --json`, once for each VM.
type summaryMessage struct {
	Type        string   `json:"message_type"`
	VM          string   `json:"vm"`
	Point       string   `json:"point"`
	Time        string   `json:"time"`
	Read        string   `json:"read"`
	Reason      string   `json:"reason"`
	BytesDisk   int64    `json:"bytes_disk"`
	BytesDirty  int64    `json:"bytes_dirty"`
	BytesRead   int64    `json:"bytes_read"`
	BytesStored int64    `json:"bytes_stored"`
	ChunksNew   int64    `json:"chunks_new"`
	FrozenMS    int64    `json:"frozen_ms"`
	PausedUS    int64    `json:"paused_us"`
	Consistency string   `json:"consistency"`
	Why         string   `json:"consistency_reason"`
	Warnings    []string `json:"warnings"`
	DurationMS  int64    `json:"duration_ms"`
}

func (a *app) backupCmd() *cobra.Command {
	var full, noFreeze bool
	var tags []string
	var scratch string
	var wait time.Duration
	c := &cobra.Command{
		Use:   "backup VM…",
		Short: "Make a restore point of running VMs",
		Long: `Make a restore point of each VM named. The first one reads the disks whole;
the next ones read what the VM's dirty bitmaps mark. When the bitmaps cannot be
trusted, the disk is read whole again (what is stored already is not stored
twice), and the output says why.`,
		Args:              args(1, -1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, names []string) error {
			for _, name := range names { // refuse a misspelt one before work begins
				if _, err := a.dirs().VM(name); err != nil {
					return err
				}
			}
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
				ix, err := index.Open(c.Context(), repo.IndexDir(), repo.Store, a.indexOptions(wait))
				if err != nil {
					return err
				}
				if points, err := ix.Points(c.Context()); err == nil { // else they are read from the repository
					cat.Seed(points)
				}
				if n, err := repo.Sweep(a.now()); err != nil {
					a.say("warning: old temporary files in the repository: %v", err)
				} else if n > 0 {
					a.say("removed %d files that killed backups left half-written", n)
				}
				b := job.Backup{Store: repo.Store, State: repo.Dirs.State, Catalogue: cat, Index: ix, Exe: a.exe, FullRead: full, NoFreeze: noFreeze, Tags: tags, Scratch: scratch}
				err = a.backupAll(c.Context(), b, names)
				if cerr := ix.Close(); cerr != nil {
					a.say("the index on this host could not be closed cleanly and will be rebuilt: %v", cerr)
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&full, "full-read", false, "read the disks whole even if the bitmaps are good")
	c.Flags().BoolVar(&noFreeze, "no-freeze", false, "do not freeze the guest: the point is crash-consistent")
	c.Flags().StringSliceVar(&tags, "tag", nil, "tags of the new points")
	c.Flags().StringVar(&scratch, "scratch", "", "folder for scratch files on this host (default: in CAIRN_STATE_DIR)")
	c.Flags().DurationVar(&wait, "index-wait", 5*time.Minute, "how long to wait for another cairn that uses this host's index")
	return c
}

func (a *app) indexOptions(wait time.Duration) index.Options {
	return index.Options{
		Wait:    wait,
		Waiting: func() { a.say("another cairn on this host uses the index of this repository: waiting up to %s", wait) },
		Log:     slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// backupAll backs up one VM after the other; one that fails does not keep the
// others from being tried.
func (a *app) backupAll(ctx context.Context, b job.Backup, names []string) error {
	var errs []error
	warned := false
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		m, err := a.backupOne(ctx, b, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: no restore point was made: %w", name, err))
			continue
		}
		warned = warned || len(m.Warnings) > 0
		if err := a.printSummary(m); err != nil {
			errs = append(errs, err)
		}
	}
	switch err := errors.Join(errs...); {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case warned:
		return errWarnings
	}
	return nil
}

func (a *app) backupOne(ctx context.Context, run job.Backup, name string) (*restorepoint.Manifest, error) {
	v, err := a.dirs().VM(name)
	if err != nil {
		return nil, err
	}
	run.VM = job.VM{Name: v.Name, QMP: v.QMP, Libvirt: v.Libvirt, Domain: v.Domain, Agent: v.Agent, Exclude: v.Exclude}
	run.Step = func(format string, args ...any) { a.say(name+": "+format, args...) }
	run.Progress, run.Now = a.reporter().Work, a.now
	return run.Run(ctx)
}

func (a *app) printSummary(m *restorepoint.Manifest) error {
	s := m.Statistics
	if a.json {
		return a.printJSON(summaryMessage{
			Type: "summary", VM: m.VM.Name, Point: m.ID, Time: restorepoint.DirName(m.Time), Read: m.Read, Reason: m.Reason,
			BytesDisk: s.BytesDisk, BytesDirty: s.BytesDirty, BytesRead: s.BytesRead, BytesStored: s.BytesStored, ChunksNew: s.ChunksNew,
			FrozenMS: s.FrozenMS, PausedUS: s.PausedUS, Consistency: m.Consistency.Level, Why: m.Consistency.Reason,
			Warnings: append([]string{}, m.Warnings...), DurationMS: s.DurationMS,
		})
	}
	fmt.Fprintf(a.stdout, "%s@%s  %s\n", m.VM.Name, restorepoint.DirName(m.Time), m.ID[:8])
	fmt.Fprintf(a.stdout, "  %s: read %s of %s, stored %s (%s new chunks) in %.1f s\n", m.Read, bytesOf(s.BytesRead),
		bytesOf(s.BytesDisk), bytesOf(s.BytesStored), humanize.Comma(s.ChunksNew), float64(s.DurationMS)/1000)
	fmt.Fprintf(a.stdout, "  why: %s\n", m.Reason)
	fmt.Fprintf(a.stdout, "  %s-consistent: %s\n", m.Consistency.Level, m.Consistency.Reason)
	if s.FrozenMS > 0 || s.PausedUS > 0 {
		fmt.Fprintf(a.stdout, "  guest frozen %d ms, paused %.1f ms\n", s.FrozenMS, float64(s.PausedUS)/1000)
	}
	return nil
}

// bytesOf writes a size for people.
func bytesOf(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func (a *app) guardianCmd() *cobra.Command {
	return &cobra.Command{Use: job.GuardianCommand + " QMP AGENT DOMAIN", Hidden: true, Args: args(3, 3), RunE: func(c *cobra.Command, argv []string) error {
		return job.RunGuardian(context.WithoutCancel(c.Context()), a.stdin, argv[0], argv[1], argv[2], a.stderr)
	}}
}
