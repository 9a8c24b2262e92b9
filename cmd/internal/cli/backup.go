package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index"
	"cairn/index/restorepoint"
	"cairn/qmp"
)

// summaryMessage is in `cairn backup --json` once for each VM. A catalogueMessage
// for each point comes behind them all.
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
	BytesFree   int64    `json:"bytes_free"`
	BytesSwap   int64    `json:"bytes_swap"`
	ChunksNew   int64    `json:"chunks_new"`
	FrozenMS    int64    `json:"frozen_ms"`
	PausedUS    int64    `json:"paused_us"`
	Audited     int64    `json:"chunks_audited"`
	Wrong       int64    `json:"chunks_wrong"`
	Pace        string   `json:"pace"`
	Consistency string   `json:"consistency"`
	Why         string   `json:"consistency_reason"`
	Warnings    []string `json:"warnings"`
	DurationMS  int64    `json:"duration_ms"`
}

func (a *app) backupCmd() *cobra.Command {
	var full, noFreeze, everyBlock, noCatalogue bool
	catalogueTime := defaultCatalogueTime
	var tags, objects []string
	var scratch string
	wait, agentTimeout := 5*time.Minute, job.DefaultAgentTimeout
	var readLimit, writeLimit, scratchLimit string
	audit, auditPercent := job.DefaultAudit, 100*job.DefaultAudit.Share
	c := &cobra.Command{
		Use:   "backup VM…",
		Short: "Make a restore point of VMs, running or off",
		Long: `Make a restore point of each VM named. The first one reads the disks whole;
the next ones read what the VM's dirty bitmaps mark. When the bitmaps cannot be
trusted, the disk is read whole again (what is stored already is not stored
twice), and the output says why.

A disk that is read whole is read without what nobody will miss: the blocks that
the guest's mounted filesystems have free, by their own maps at the instant of
the point, and the contents of swap space. Both are zeros in the point; no file
is different, and the disk boots. What was left out is counted in the summary.
Filesystems that were not frozen are read whole, and so is all of a guest that
hibernates. For a disk image to the last bit (deleted files, forensics) use
--every-block; it reads the disk whole if the last point left something out.

VMs are those of cairn vm ls, of tables [vm.NAME] of the configuration, and those
that its [discover.NAME] find now.

A VM that is off, with nobody at its monitor's socket, is backed up from its
image files: those that its last point names, or cairn vm add … --disk. It may
be started meanwhile; the run then begins once more, with the running VM.

If cairn-agent runs in the guest (cairn agent install --help), it is told of the
backup first: it lists the guest's applications, containers and users, brings
the applications into a state to be copied, and freezes the filesystems; each
step is printed. What fails there lowers what the point claims, is printed with
its reason, and ends in exit code 3. Without it the stock qemu-guest-agent
freezes the filesystems.

When a point is committed and the VM is as it was, the point's catalogue of files
is made from the repository (cairn catalogue --help), while the next VM is backed
up. If that fails or is interrupted, the point is whole all the same, exit code 3
says so, and cairn catalogue makes it later. With a write key (cairn key --help)
it is left out: it is made from guest data, which that key cannot read.`,
		Args:              args(1, -1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, names []string) error {
			vms, err := a.vms(c.Context(), names...) // a misspelt one is refused before work begins
			if err != nil {
				return err
			}
			if auditPercent < 0 || auditPercent > 100 {
				return usagef("--audit %g: a share in percent, 0 to 100", auditPercent)
			}
			audit.Share = auditPercent / 100
			var limits [3]int64
			for i, f := range []struct{ flag, value string }{{"read-limit", readLimit}, {"write-limit", writeLimit}, {"scratch-limit", scratchLimit}} {
				var err error
				if limits[i], err = parseBytes(f.flag, f.value); err != nil {
					return err
				}
			}
			a.writeLimit = limits[1]
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
				if err := repo.Store.MayBackUp(); err != nil {
					return err
				}
				ix, err := index.Open(c.Context(), repo.IndexDir(), repo.Store, a.indexOptions(wait))
				if err != nil {
					return err
				}
				if points, err := ix.Points(c.Context()); err == nil { // else they are read from the repository
					cat.Seed(points)
				}
				if warning := a.engineWarning(c.Context(), repo); warning != "" {
					a.say("warning: %s", warning)
				}
				if n, err := repo.Sweep(a.now()); err != nil {
					a.say("warning: old temporary files in the repository: %v", err)
				} else if n > 0 {
					a.say("removed %d files that killed backups left half-written", n)
				}
				b := job.Backup{Store: repo.Store, State: repo.Dirs.State, Catalogue: cat, Index: ix, Exe: a.exe, FullRead: full, NoFreeze: noFreeze, Tags: tags,
					Objects: objects, AgentTimeout: agentTimeout, Version: a.version,
					Scratch: scratch, ScratchLimit: limits[2], Audit: audit, ReadLimit: limits[0], WriteLimit: limits[1]}
				if !everyBlock {
					b.Spare = wire.Spare
				}
				files := a.catalogueAfter(c.Context(), cat, !noCatalogue && a.canCatalogue(repo), catalogueTime, len(vms))
				err = a.backupAll(c.Context(), b, vms, files)
				if cerr := ix.Close(); cerr != nil {
					a.say("the index on this host could not be closed cleanly and will be rebuilt: %v", cerr)
				}
				// Others may use the index now.
				if ferr := files.finish(); err == nil {
					err = ferr
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&full, "full-read", false, "read the disks whole even if the bitmaps are good")
	c.Flags().BoolVar(&everyBlock, "every-block", false, "read also what the guest's filesystems have free, and contents of swap space")
	c.Flags().BoolVar(&noFreeze, "no-freeze", false, "do not freeze the guest: the point is crash-consistent")
	c.Flags().StringSliceVar(&objects, "object", nil, "system objects of the guest to tell of the backup, like 'postgresql*' or users/anna (default: all that cairn-agent finds)")
	c.Flags().DurationVar(&agentTimeout, "agent-timeout", agentTimeout, "how long cairn-agent may take to list the guest's objects, and to quiesce them; then the backup goes on without it")
	c.Flags().StringSliceVar(&tags, "tag", nil, "tags of the new points")
	c.Flags().StringVar(&scratch, "scratch", "", "folder for scratch files on this host (default: in CAIRN_STATE_DIR)")
	c.Flags().StringVar(&scratchLimit, "scratch-limit", "", "most that the scratch files of one VM may take, like 20GiB; more breaks the backup, never the guest (default: all but a tenth of the free space)")
	c.Flags().StringVar(&readLimit, "read-limit", "", "read at most so much a second from the VM's disks, like 100MiB")
	c.Flags().StringVar(&writeLimit, "write-limit", "", "write at most so much a second to the repository, like 20MiB")
	c.Flags().Float64Var(&auditPercent, "audit", auditPercent, "percent of the chunks that the bitmaps call unchanged to read and compare all the same (at least 256; 0: none)")
	c.Flags().DurationVar(&audit.Time, "audit-time", audit.Time, "when to stop the audit of a disk")
	c.Flags().BoolVar(&noCatalogue, "no-catalogue", false, "do not make the point's catalogue of files")
	c.Flags().DurationVar(&catalogueTime, "catalogue-time", catalogueTime, "how long making a point's catalogue may take; then it is left out (0: no limit)")
	c.Flags().DurationVar(&wait, "index-wait", wait, "how long to wait for another cairn that uses this host's index")
	return c
}

// parseBytes reads a size like 20GiB; "" is 0.
func parseBytes(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > 1<<62 {
		return 0, usagef("--%s %q: write a size like 500MiB or 20GiB", flag, s)
	}
	return int64(n), nil
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
func (a *app) backupAll(ctx context.Context, b job.Backup, vms []config.VM, files *cataloguer) error {
	var errs []error
	warned := false
	for _, vm := range vms {
		if ctx.Err() != nil {
			break
		}
		m, err := a.backupOne(ctx, b, vm)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: no restore point was made: %w", vm.Name, err))
			continue
		}
		warned = warned || len(m.Warnings) > 0
		files.add(m)
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

func (a *app) backupOne(ctx context.Context, run job.Backup, vm config.VM) (*restorepoint.Manifest, error) {
	run.VM = jobVM(vm)
	run.Step = func(format string, args ...any) { a.say(vm.Name+": "+format, args...) }
	run.Progress, run.Now = a.reporter().Work, a.now
	again := run
	m, err := run.Run(ctx)
	if errors.Is(err, qmp.ErrVMStarted) && ctx.Err() == nil {
		run.Step("%v: trying once more", err)
		m, err = again.Run(ctx)
	}
	return m, err
}

func (a *app) printSummary(m *restorepoint.Manifest) error {
	s := m.Statistics
	if a.json {
		return a.printJSON(summaryMessage{
			Type: "summary", VM: m.VM.Name, Point: m.ID, Time: restorepoint.DirName(m.Time), Read: m.Read, Reason: m.Reason,
			BytesDisk: s.BytesDisk, BytesDirty: s.BytesDirty, BytesRead: s.BytesRead, BytesStored: s.BytesStored, BytesFree: s.BytesFree, BytesSwap: s.BytesSwap, ChunksNew: s.ChunksNew,
			FrozenMS: s.FrozenMS, PausedUS: s.PausedUS, Audited: s.ChunksAudited, Wrong: s.ChunksWrong, Pace: m.Pace, Consistency: m.Consistency.Level, Why: m.Consistency.Reason,
			Warnings: append([]string{}, m.Warnings...), DurationMS: s.DurationMS,
		})
	}
	fmt.Fprintf(a.stdout, "%s@%s  %s\n", m.VM.Name, restorepoint.DirName(m.Time), m.ID[:8])
	fmt.Fprintf(a.stdout, "  %s: read %s of %s, stored %s (%s new chunks) in %.1f s\n", m.Read, bytesOf(s.BytesRead),
		bytesOf(s.BytesDisk), bytesOf(s.BytesStored), humanize.Comma(s.ChunksNew), float64(s.DurationMS)/1000)
	if s.BytesFree > 0 || s.BytesSwap > 0 {
		fmt.Fprintf(a.stdout, "  left out: %s free in the guest's filesystems, %s of swap space (--every-block reads them)\n", bytesOf(s.BytesFree), bytesOf(s.BytesSwap))
	}
	fmt.Fprintf(a.stdout, "  why: %s\n", m.Reason)
	fmt.Fprintf(a.stdout, "  %s-consistent: %s\n", m.Consistency.Level, m.Consistency.Reason)
	if s.ChunksAudited > 0 {
		fmt.Fprintf(a.stdout, "  audit: %s chunks that the bitmaps call unchanged were compared, %s had changed\n", humanize.Comma(s.ChunksAudited), humanize.Comma(s.ChunksWrong))
	}
	fmt.Fprintf(a.stdout, "  time: %s\n", m.Pace)
	if s.FrozenMS > 0 || s.PausedUS > 0 {
		fmt.Fprintf(a.stdout, "  guest frozen %d ms, paused %.1f ms\n", s.FrozenMS, float64(s.PausedUS)/1000)
	}
	return nil
}

// bytesOf writes a size for people.
func bytesOf(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func (a *app) guardianCmd() *cobra.Command {
	return &cobra.Command{Use: job.GuardianCommand + " CHARGE", Hidden: true, Args: args(1, 1), RunE: func(c *cobra.Command, argv []string) error {
		var charge job.Charge
		if err := json.Unmarshal([]byte(argv[0]), &charge); err != nil {
			return usagef("the guardian's charge: %v", err)
		}
		return job.RunGuardian(context.WithoutCancel(c.Context()), a.stdin, charge, a.stderr)
	}}
}
