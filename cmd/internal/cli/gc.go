package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/gc"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
)

// gcMessage is what `cairn gc --json` prints.
type gcMessage struct {
	Type          string  `json:"message_type"` // "summary"
	DryRun        bool    `json:"dry_run"`
	Points        int     `json:"points"`
	Packs         int     `json:"packs"`
	BytesStored   int64   `json:"bytes_stored"`
	PacksRemoved  int     `json:"packs_removed"`
	BytesRemoved  int64   `json:"bytes_removed"`
	RestsRemoved  int     `json:"rests_removed"` // of packs that had too few shards to be read
	PacksCopied   int     `json:"packs_copied"`
	BytesCopied   int64   `json:"bytes_copied"`
	PacksSparse   int     `json:"packs_sparse"`
	PacksKept     int     `json:"packs_kept"` // of backups that failed, for the next try
	BytesKept     int64   `json:"bytes_kept"`
	PointsRemoved int     `json:"points_removed"`
	Fenced        int     `json:"sessions_ended"`
	Finished      int     `json:"runs_finished"`
	Unfinished    bool    `json:"unfinished"`
	Seconds       float64 `json:"seconds"`
}

// usualGC is what gc does when nothing else is asked for.
func usualGC() gc.Options {
	return gc.Options{RewriteBelow: 0.5, Wait: time.Hour, FenceAfter: 24 * time.Hour, KeepFailed: 7 * 24 * time.Hour}
}

func (a *app) gcCmd() *cobra.Command {
	o := usualGC()
	rewrite, alone := 50, false
	c := &cobra.Command{
		Use:   "gc",
		Short: "Give back the space of what no restore point needs",
		Long: `Give back the space of what no restore point needs: of points that were
forgotten, and of backups that did not come to their end.

It may run at any time, beside backups, restores and mounts, on any host that
may delete in the repository, on several at once, and can be stopped at any
instant: the next run goes on. First it says what it means to remove, so that new
backups leave that alone; then it waits for the backups that run already (--wait);
what they need stays. A backup that was killed gets its end from the next one of
its VM. Else one that gave no sign of life for --fence-after, by the repository's
clock, is taken for dead and can not be committed any more.

What a backup stored that did not come to its end is kept for --keep-failed from
then on: the next one, on whatever host, finds it and goes on from there.

Packs of which less than --rewrite percent is needed are copied and then removed;
that reads and writes guest data, so it needs a key that can read it.

Nothing is removed while a point cannot be read whole: see cairn check. In a
bucket whose engine did not pass its last check (cairn engine check) nothing is
removed at all, but for --alone. Of several places all must be there, or what was
removed would come back with one (cairn place ls).`,
		Example: `  cairn gc --dry-run      what there is to gain
  cairn gc                and do it`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if rewrite < 0 || rewrite > 95 {
				return usagef("--rewrite %d: give 0 (never) to 95 percent", rewrite)
			}
			if o.KeepFailed < 0 {
				return usagef("--keep-failed: give a time, or 0 to keep nothing of backups that failed")
			}
			if o.Wait < 0 {
				return usagef("--wait %s: a time from 0s on", o.Wait)
			}
			if o.FenceAfter < time.Hour {
				return usagef("--fence-after is at least 1h, or a backup that only waits for its turn would be ended")
			}
			o.RewriteBelow = float64(rewrite) / 100
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
				if !alone && !o.DryRun {
					if err := repo.MayCollect(c.Context()); err != nil {
						return fmt.Errorf("nothing is removed: %w", err)
					}
				}
				return a.gc(c.Context(), repo, cat, o)
			})
		},
	}
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what there is to gain")
	c.Flags().BoolVar(&alone, "alone", false, "you see to it that no backup and no other cairn writes to the repository meanwhile, on any host: then an engine that did not pass its check will do")
	c.Flags().DurationVar(&o.Wait, "wait", o.Wait, "how long to wait for backups that run")
	c.Flags().DurationVar(&o.FenceAfter, "fence-after", o.FenceAfter, "how long a backup may give no sign of life before it is taken for dead: 1h or more")
	c.Flags().DurationVar(&o.KeepFailed, "keep-failed", o.KeepFailed, "how long to keep what a backup stored that failed")
	c.Flags().IntVar(&rewrite, "rewrite", rewrite, "copy what is needed of packs of which less than so many percent is; 0: never")
	return c
}

func (a *app) gc(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue, o gc.Options) error {
	_, err := a.collect(ctx, repo, cat, o)
	return err
}

// collect is gc, with what it did.
func (a *app) collect(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue, o gc.Options) (*gc.Result, error) {
	host, _ := os.Hostname() // only a label
	o.About = "cairn gc on " + host
	o.Progress = a.reporter().Items
	o.Waiting = func(n int) {
		a.say("waiting up to %s for %d backups without an end (--wait); one that died counts until its VM is backed up again, or it gave no sign of life for %s (--fence-after)", o.Wait, n, o.FenceAfter)
	}
	start := a.now()
	if err := repo.RolledBack(); err != nil && !o.DryRun { // what the gone ones need may be garbage to those that are left
		return nil, fmt.Errorf("nothing is removed: %w", err)
	}
	if away, of := repo.Away(); len(away) > 0 && !o.DryRun {
		return nil, fmt.Errorf("nothing is removed: %w: %s: what gc deletes must be deleted in all %d places, or it would come back with one; bring it back, or if it is lost: cairn place replace; then run cairn gc again",
			backend.ErrAway, strings.Join(away, ", "), of)
	}
	r, err := job.GC(ctx, repo.Store, cat, cat.Known(ctx), o, func(s string) { a.say("warning: %s", s) })
	if err == nil && !o.DryRun {
		_, err = repo.Sweep(a.now())
	}
	if err != nil && !errors.Is(err, gc.ErrRunning) {
		return r, err
	}
	if perr := a.printGC(r, o.DryRun, err != nil, a.now().Sub(start)); perr != nil {
		return r, perr
	}
	if err != nil {
		return r, fmt.Errorf("%w: %w", errWarnings, err)
	}
	return r, nil
}

func (a *app) printGC(r *gc.Result, dry, unfinished bool, took time.Duration) error {
	if a.json {
		return a.printJSON(gcMessage{Type: "summary", DryRun: dry, Points: r.Points, Packs: r.Packs, BytesStored: r.BytesStored,
			PacksRemoved: r.PacksRemoved, BytesRemoved: r.BytesRemoved, RestsRemoved: r.RestsRemoved, PacksCopied: r.PacksCopied, BytesCopied: r.BytesCopied, PacksSparse: r.Sparse, PacksKept: r.PacksKept, BytesKept: r.BytesKept,
			PointsRemoved: r.PointsRemoved, Fenced: r.Fenced, Finished: r.Taken, Unfinished: unfinished, Seconds: took.Seconds()})
	}
	verb, copied := "removed", fmt.Sprintf("was copied (%s)", bytesOf(r.BytesCopied))
	if dry {
		verb, copied = "would remove", "would be copied before"
	}
	fmt.Fprintf(a.stdout, "%d points need %s packs (%s stored)\n", r.Points, humanize.Comma(int64(r.Packs)), bytesOf(r.BytesStored))
	fmt.Fprintf(a.stdout, "%s %s packs: %s", verb, humanize.Comma(int64(r.PacksRemoved)), bytesOf(r.BytesRemoved))
	if r.PacksCopied > 0 {
		fmt.Fprintf(a.stdout, "; what is needed of %d of them %s", r.PacksCopied, copied)
	}
	fmt.Fprintf(a.stdout, ", in %.1f s\n", took.Seconds())
	if r.RestsRemoved > 0 {
		fmt.Fprintf(a.stdout, "%s what was left of %s packs that had too few shards to be read\n", verb, humanize.Comma(int64(r.RestsRemoved)))
	}
	if r.PacksKept > 0 {
		fmt.Fprintf(a.stdout, "%s packs (%s) of backups that failed are kept for the next try (--keep-failed)\n", humanize.Comma(int64(r.PacksKept)), bytesOf(r.BytesKept))
	}
	if r.Fenced > 0 {
		fmt.Fprintf(a.stdout, "%d backups without a sign of life were ended\n", r.Fenced)
	}
	if r.Full {
		fmt.Fprintln(a.stdout, "the repository is full: nearly empty packs could not be copied; there is more to gain with another run of cairn gc")
	}
	if r.Sparse > 0 {
		fmt.Fprintf(a.stdout, "%d packs are nearly empty, but this key cannot read guest data to copy the rest: run cairn gc with a key that can\n", r.Sparse)
	}
	for _, ref := range r.Damaged {
		fmt.Fprintf(a.stdout, "%s is damaged and was left as it is: see cairn check --read-data\n", ref)
	}
	return nil
}
