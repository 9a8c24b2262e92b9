package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index"
	"cairn/index/restorepoint"
)

// copyMessage is in `cairn copy --json` once for each point.
type copyMessage struct {
	Type       string `json:"message_type"`
	VM         string `json:"vm"`
	Time       string `json:"time"`
	Source     string `json:"source_point"`
	Point      string `json:"point"` // in the target
	There      bool   `json:"was_there"`
	Parent     string `json:"parent,omitempty"`
	Read       string `json:"read,omitempty"`
	BytesRead  int64  `json:"bytes_read"`
	BytesSent  int64  `json:"bytes_sent"`
	BytesKnown int64  `json:"bytes_known"`
	Compared   int64  `json:"bytes_compared"`
	DurationMS int64  `json:"duration_ms"`
}

func (a *app) copyCmd() *cobra.Command {
	var to, passwordFile, writeLimit string
	var all, compare bool
	wait := 5 * time.Minute
	c := &cobra.Command{
		Use:   "copy POINT… --to REPOSITORY",
		Short: "Copy restore points into another repository, which has keys of its own",
		Long: `Copy restore points into another repository: another disk, another site, another
secret. The copy is a point like any other there, with the VM, the time, the
consistency, the guest's metadata and the tags of the original, and with where it
came from; it needs nothing of the first repository any more.

  cairn copy web01@latest --to /mnt/offsite/repo --to-password-file ~/offsite.pass
  cairn copy --all web01 db01 --to …    every point of these VMs
  cairn copy --all --to …               every point

Only what is missing is moved. A point that was copied before is passed over, so
the same line may run after every backup. When a neighbour in time of the same VM
was copied, only what differs is read; and what the other repository has already,
from whichever VM, is not sent again. An interrupted run leaves no point, and the
next one finds what it had stored.

The copy's maps and packs are looked at before the point is made, as cairn check
does; --compare reads back and compares all that was copied as well.

The original's catalogue of files is not copied: cairn catalogue makes it there.`,
		ValidArgsFunction: a.completeEveryPoint,
		RunE: func(c *cobra.Command, argv []string) error {
			switch {
			case to == "":
				return usagef("--to REPOSITORY: where to copy to")
			case len(argv) == 0 && !all:
				return usagef("name points (cairn points lists them), or write --all")
			}
			limit, err := parseBytes("write-limit", writeLimit)
			if err != nil {
				return err
			}
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
				points, err := a.pointsToCopy(c.Context(), cat, argv, all)
				if err != nil {
					return err
				}
				secret := a.secret()
				secret.File = passwordFile
				target, err := wire.OpenLimited(c.Context(), to, secret, a.dirs(), limit)
				if errors.Is(err, wire.ErrSecret) {
					return fmt.Errorf("--to %s: %w (of the target: --to-password-file, or CAIRN_TO_PASSWORD_FILE)", to, err)
				}
				if err != nil {
					return err
				}
				defer target.Close()
				if target.Store.Config.ID == repo.Store.Config.ID {
					return usagef("--to %s is the same repository, or a copy of its files: make another one with cairn init", to)
				}
				return a.copyPoints(c.Context(), repo, cat, target, points, compare, wait)
			})
		},
	}
	c.Flags().StringVar(&to, "to", "", "the repository to copy to")
	c.Flags().StringVar(&passwordFile, "to-password-file", a.getenv("CAIRN_TO_PASSWORD_FILE"), "file whose first line is the target's passphrase or key (or CAIRN_TO_PASSWORD_FILE)")
	c.Flags().StringVar(&writeLimit, "write-limit", "", "write at most so much a second to the target, like 20MiB")
	c.Flags().BoolVar(&all, "all", false, "every point of the VMs named, or of all")
	c.Flags().BoolVar(&compare, "compare", false, "read back and compare all that was copied")
	c.Flags().DurationVar(&wait, "index-wait", wait, "how long to wait for another cairn that uses this host's index of the target")
	return c
}

// pointsToCopy gives the points, oldest first: each is copied as a change of
// the one before.
func (a *app) pointsToCopy(ctx context.Context, cat *wire.Catalogue, argv []string, all bool) ([]*restorepoint.Manifest, error) {
	var out []*restorepoint.Manifest
	if !all {
		for _, spec := range argv {
			m, err := cat.Select(ctx, spec)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(out, func(o *restorepoint.Manifest) bool { return o.ID == m.ID }) {
				out = append(out, m)
			}
		}
		slices.SortStableFunc(out, func(x, y *restorepoint.Manifest) int { return x.Time.Compare(y.Time) })
		return out, nil
	}
	list, err := cat.Points(ctx)
	if err != nil {
		return nil, err
	}
	for _, vm := range argv {
		if !slices.ContainsFunc(list, func(s restorepoint.Summary) bool { return s.VM == vm }) {
			return nil, fmt.Errorf("%w: %q has none", restorepoint.ErrNoPoint, vm)
		}
	}
	for _, s := range list {
		if len(argv) > 0 && !slices.Contains(argv, s.VM) {
			continue
		}
		m, err := cat.Manifest(ctx, s.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func (a *app) copyPoints(ctx context.Context, repo *wire.Repo, cat *wire.Catalogue, target *wire.Repo, points []*restorepoint.Manifest, compare bool, wait time.Duration) (err error) {
	ix, err := index.Open(ctx, target.IndexDir(), target.Store, a.indexOptions(wait))
	if err != nil {
		return err
	}
	defer func() {
		if cerr := ix.Close(); cerr != nil {
			a.say("the target's index on this host could not be closed cleanly and will be rebuilt: %v", cerr)
		}
	}()
	targets := target.NewCatalogue(ctx, commandCache)
	defer targets.Close()
	if known, err := ix.Points(ctx); err == nil { // else they are read from the repository
		targets.Seed(known)
	}
	c := job.Copy{Source: repo.Store, Target: target.Store, From: cat, To: targets, Index: ix, Compare: compare,
		Host: job.Hostname(), Step: a.say, Progress: a.reporter().Work, Now: a.now}
	var errs []error
	for _, m := range points {
		if ctx.Err() != nil {
			break
		}
		done, err := c.Run(ctx, m)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s was not copied: %w", pointName(m), err))
			continue
		}
		if err := a.printCopiedPoint(m, done); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

func (a *app) printCopiedPoint(m *restorepoint.Manifest, d *job.Copied) error {
	n := d.Manifest
	if a.json {
		return a.printJSON(copyMessage{Type: "summary", VM: n.VM.Name, Time: restorepoint.DirName(n.Time), Source: m.ID, Point: n.ID, There: d.There, Parent: n.Parent, Read: n.Read,
			BytesRead: d.BytesRead, BytesSent: d.BytesSent, BytesKnown: d.BytesKnown, Compared: d.Compared, DurationMS: d.Took.Milliseconds()})
	}
	if d.There {
		_, err := fmt.Fprintf(a.stdout, "%s is there already, as %s\n", pointName(m), n.ID[:8])
		return err
	}
	fmt.Fprintf(a.stdout, "%s copied, as %s, in %.1f s\n", pointName(m), n.ID[:8], d.Took.Seconds())
	_, err := fmt.Fprintf(a.stdout, "  %s: read %s of %s, of which %s were there or came twice, sent %s\n", n.Reason, bytesOf(d.BytesRead), bytesOf(n.Statistics.BytesDisk), bytesOf(d.BytesKnown), bytesOf(d.BytesSent))
	if err == nil && d.Compared > 0 {
		_, err = fmt.Fprintf(a.stdout, "  %s read back and compared: equal\n", bytesOf(d.Compared))
	}
	return err
}
