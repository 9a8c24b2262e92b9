package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/chunkstore/backend/engine"
	"cairn/chunkstore/backend/s3"
	"cairn/cmd/internal/wire"
)

// verdictAge is when the last check of an engine is too old: engines are
// updated, and buckets' settings changed.
const verdictAge = 7 * 24 * time.Hour

func (a *app) engineCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "engine",
		Short: "Look at the storage engine that holds the repository",
	})
	c.AddCommand(&cobra.Command{
		Use:   "check",
		Short: "Measure whether the engine keeps what a repository needs of it",
		Long: `Measure whether the place of the repository keeps what a repository needs of
it, and store the verdict there. Run it weekly and after each update of the
engine; doctor and backup warn when it is old or bad. No passphrase is needed.

  create-only       of 16 writers of one name exactly one wins, 20 times, also in
                    a bucket with versions. Without it several hosts lose data.
  list after put    what was put is listed at once, 200 times
  ranges            pieces of objects are read right
  read after delete a deleted object is gone
  delete, overwrite what a thief could do with these credentials
  versions, object lock   whether the bucket has them, and whether they hold
  clock             how far the engine's is from this host's

The check writes some hundred small objects below engine/ and removes them. It
says how many it could not remove: with append-only credentials or object lock
those stay (some 50 small ones, or 250).`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.repo == "" {
				return usagef("no repository named: use -r REPOSITORY or CAIRN_REPOSITORY")
			}
			bad, err := a.checkEngines(c.Context(), a.repo)
			return errors.Join(append(bad, err)...)
		},
	})
	c.AddCommand(a.undeleteCmd())
	return c
}

// checkEngines checks the object storage of a repository and shows what was
// found; bad are those that did not pass.
func (a *app) checkEngines(ctx context.Context, spec string) (bad []error, err error) {
	err = wire.CheckEngines(ctx, spec, a.now(), func(e wire.Engine, v *engine.Verdict) error {
		if !v.Good() {
			bad = append(bad, fmt.Errorf("%w: %s: %s", wire.ErrEngine, e.Spec, v.Reasons()))
		}
		if a.json {
			return a.printJSON(map[string]any{"message_type": "engine", "place": e.Spec, "good": v.Good(), "verdict": v})
		}
		if e.Spec != spec && !(a.quiet && v.Good()) {
			fmt.Fprintf(a.stdout, "%s\n", e.Spec)
		}
		a.printVerdict(a.stdout, v)
		return nil
	})
	return bad, err
}

// undeleteCmd undoes what a thief of a host's credentials did.
func (a *app) undeleteCmd() *cobra.Command {
	var since string
	var yes bool
	c := &cobra.Command{
		Use:   "undelete",
		Short: "Show, or undo, what deleted or overwrote objects in a bucket with versions",
		Long: `Show the objects of the repository that somebody deleted or overwrote since a
time, in a bucket with versions or object lock, and with --yes bring each back as
it was created. Cairn creates objects once: whatever is newer is a thief's, or
gc's work. Name the time of the break-in with --since: without it, all that gc
deleted comes back too, as space for the next gc to free.

` + whenHelp + `

It needs credentials that may list and delete versions: those of the gc host
(chunkstore/backend/s3/POLICIES.md). Where a thief's version is locked as well,
the true bytes are put over it once more.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.repo == "" {
				return usagef("no repository named: use -r REPOSITORY or CAIRN_REPOSITORY")
			}
			from, err := a.parseWhen("since", since, false)
			if err != nil {
				return err
			}
			n := 0
			err = wire.Uncover(c.Context(), a.repo, from, func(o s3.Covered) (bool, error) {
				n++
				if a.json {
					return yes, a.printJSON(map[string]any{"message_type": "covered", "name": o.Name, "since": o.Since.UTC(), "markers": o.Markers, "newer_versions": o.Newer, "undone": yes})
				}
				what := "deleted"
				if o.Newer > 0 {
					what = "overwritten"
				}
				_, err := fmt.Fprintf(a.stdout, "%s  %-11s  %s\n", o.Since.UTC().Format(time.RFC3339), what, o.Name)
				return yes, err
			})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"message_type": "summary", "objects": n, "undone": yes && n > 0})
			}
			switch {
			case n == 0:
				a.say("nothing was deleted or overwritten")
			case yes:
				a.say("%d objects are back as they were created; now: cairn check --read-data", n)
			default:
				a.say("%d objects; --yes brings them back", n)
			}
			return nil
		},
	}
	c.Flags().StringVar(&since, "since", "", "only what was deleted or overwritten since this time")
	c.Flags().BoolVar(&yes, "yes", false, "bring them back")
	return c
}

func (a *app) printVerdict(w io.Writer, v *engine.Verdict) {
	if a.quiet && v.Good() {
		return
	}
	for _, f := range v.Findings {
		state := string(f.State)
		if f.State == engine.Bad {
			state = stateBad
		}
		fmt.Fprintf(w, "%-5s %s: %s\n", state, f.Name, safe(f.Text))
	}
	if v.Left > 0 {
		fmt.Fprintf(w, "%d small objects below engine/ could not be removed: they are locked, or these credentials may not\n", v.Left)
	}
}

// engineWarning says what is wrong with the last check of a bucket's engine;
// "" if nothing is, or the repository is a folder.
func (a *app) engineWarning(ctx context.Context, repo *wire.Repo) string {
	var list []string
	for _, e := range repo.Engines() {
		if w := a.warningOf(ctx, repo, e); w != "" {
			list = append(list, w)
		}
	}
	return strings.Join(list, "; ")
}

func (a *app) warningOf(ctx context.Context, repo *wire.Repo, e wire.Engine) string {
	what := "the engine"
	if e.Spec != repo.Path {
		what = "the engine of " + e.Spec
	}
	switch v, err := repo.LastVerdict(ctx, e); {
	case errors.Is(err, engine.ErrNoVerdict):
		return what + " was never checked: cairn engine check"
	case err != nil:
		return fmt.Sprintf("the last check of %s cannot be read: %v", what, err)
	case !v.Good():
		return what + " did not pass its last check (" + safe(v.Reasons()) + "): only one host may write to it; cairn engine check"
	case a.now().Sub(v.Time) > verdictAge:
		return fmt.Sprintf("%s's last check is %d days old: cairn engine check", what, int(a.now().Sub(v.Time).Hours()/24))
	}
	return ""
}

func (a *app) examineEngine(ctx context.Context, d *doctor, repo *wire.Repo) {
	if warning := a.engineWarning(ctx, repo); warning != "" {
		d.add(stateNote, "engine", "cairn engine check", "%s", warning)
		return
	}
	d.add(stateGood, "engine", "", "the object storage passed its last check")
}
