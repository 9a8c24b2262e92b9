package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/chunkstore/backend/spread"
	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
)

// parseShards reads "4+2".
func parseShards(s string) (spread.Shards, error) {
	var out spread.Shards
	var rest string
	if n, _ := fmt.Sscanf(s, "%d+%d%s", &out.K, &out.M, &rest); n != 2 {
		return out, usagef("--shards %q: write pieces of data and of parity, like 4+2", s)
	}
	if err := out.Check(); err != nil {
		return out, usagef("--shards: %w", err)
	}
	return out, nil
}

// placesOf reads the two flags of init.
func placesOf(places []string, shards string) (spread.Shards, error) {
	if shards == "" {
		return spread.Shards{}, usagef("--place: say with --shards K+M how many of the %d places hold data, and how many may be lost", len(places))
	}
	s, err := parseShards(shards)
	if err != nil {
		return s, err
	}
	if n := len(places); n != 0 && n != 1 && n != s.Total() {
		return s, usagef("--shards %s needs %d places, one for each shard, or one for all: %d are named", s, s.Total(), n)
	}
	return s, apart(places)
}

// apart refuses places of which one is, or lies in, another: they are lost together.
func apart(places []string) error {
	for i, p := range places {
		for _, q := range places[:i] {
			a, err := wire.AbsolutePlace(p)
			b, berr := wire.AbsolutePlace(q)
			switch {
			case err != nil || berr != nil:
				return errors.Join(err, berr)
			case a == b:
				return usagef("--place: %s is named twice", p)
			case strings.HasPrefix(a, b+"/"), strings.HasPrefix(b, a+"/"):
				return usagef("--place: of %s and %s one lies in the other: they would be lost together", q, p)
			}
		}
	}
	return nil
}

// warned remembers what was said of a repository's places.
func (a *app) warnPlaces(r *wire.Repo) {
	for _, w := range r.Warnings() {
		if a.said[w] {
			continue
		}
		if a.said == nil {
			a.said = map[string]bool{}
		}
		a.said[w] = true
		if a.json {
			_ = json.NewEncoder(a.stderr).Encode(map[string]any{"message_type": "warning", "message": w}) // stderr gone: nobody listens
		} else {
			fmt.Fprintf(a.stderr, "cairn: warning: %s\n", safe(w))
		}
	}
}

// opened keeps a repository so that what happened to its places is told at
// the end.
func (a *app) opened(r *wire.Repo, err error) (*wire.Repo, error) {
	if err == nil {
		a.repos = append(a.repos, r)
		a.warnPlaces(r)
	}
	return r, err
}

// closing tells what happened to the places. Something that is stored on
// fewer of them than it should be is a warning of the command.
func (a *app) closing(err error) error {
	for _, r := range a.repos {
		a.warnPlaces(r)
		if err == nil && r.Degraded() {
			err = errWarnings
		}
	}
	return err
}

// checkPlaces looks at each place by itself, and mends what it can before if
// it shall. job.ErrDamage when something is missing or wrong, errWarnings when
// places are away or all that was wrong is mended.
func (a *app) checkPlaces(ctx context.Context, repo *wire.Repo, o job.CheckOptions) error {
	var mended error
	if o.Repair {
		r, err := repo.RepairPlaces(ctx, o.ReadData, partOf(o), a.reporter().Items)
		if errors.Is(err, wire.ErrNoPlaces) {
			a.say("%v; there is nothing to mend it from", err)
		} else if err != nil {
			return err
		} else if err := a.printRepair(r); err != nil && !errors.Is(err, job.ErrDamage) && !errors.Is(err, errWarnings) {
			return err
		} else if r.Copied+r.Rebuilt+r.Replaced > 0 {
			mended = errWarnings
		}
	}
	found, err := repo.Audit(ctx, o.ReadData, partOf(o), a.reporter().Items)
	if err != nil {
		return err
	}
	return cmp.Or(a.tellAudit(found), mended)
}

// partOf is what a check reads of the packs in their places: its share, at its rate.
func partOf(o job.CheckOptions) spread.Part { return spread.Part{Has: o.Has, Pace: o.Pace()} }

// tellAudit prints what places miss. job.ErrDamage when something is missing
// or wrong, errWarnings when places are away.
func (a *app) tellAudit(found []spread.Finding) error {
	if len(found) == 0 {
		return nil
	}
	if a.json {
		if err := a.printJSON(map[string]any{"message_type": "places", "findings": found}); err != nil {
			return err
		}
	}
	damaged := 0
	for _, f := range found {
		if f.Object != "" {
			damaged++
		}
		switch {
		case a.json:
		case f.Object == "":
			fmt.Fprintf(a.stdout, "away: place %s: %s\n", safe(f.Place), safe(f.Error))
		default:
			fmt.Fprintf(a.stdout, "DAMAGE: place %s: %s: %s\n", safe(f.Place), safe(f.Object), safe(f.Error))
		}
	}
	if damaged == 0 {
		return errWarnings
	}
	return fmt.Errorf("%w: %d objects are missing or wrong in their places; whether they can still be read from the others is said above; mend them with: cairn repair places --read-data", job.ErrDamage, damaged)
}

func (a *app) repairPlacesCmd() *cobra.Command {
	var readData bool
	c := &cobra.Command{
		Use:   "places",
		Short: "Bring all places of the repository up to date",
		Long: `Bring all places of the repository up to date: what one of them missed while it was
away is copied or made from the others' parity, and with --read-data every stored
byte is read and what is damaged is made anew. Backups may run meanwhile.

Run it when a place is back, when a command warned of reads served from parity,
and with --read-data every month. It can be stopped and run again at any time.
For a place that is lost for good: cairn place replace OLD NEW.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, _ *wire.Catalogue) error {
				r, err := repo.RepairPlaces(c.Context(), readData, spread.Part{}, a.reporter().Items)
				if err != nil {
					return err
				}
				return a.printRepair(r)
			})
		},
	}
	c.Flags().BoolVar(&readData, "read-data", false, "read every byte of every shard, too")
	return c
}

// printRepair tells what a repair did, and gives an error for what it could
// not.
func (a *app) printRepair(r *spread.RepairReport) error {
	if a.json {
		if err := a.printJSON(struct {
			Type string `json:"message_type"`
			*spread.RepairReport
		}{"summary", r}); err != nil {
			return err
		}
	} else {
		a.tellRepair(r)
	}
	switch {
	case len(r.Incomplete) > 0:
		return fmt.Errorf("%w: %d packs have too few shards left; bring every place back that can be, then: cairn repair places; which points suffer says: cairn check", job.ErrDamage, len(r.Incomplete))
	case !r.Whole():
		return errWarnings
	}
	return nil
}

func (a *app) tellRepair(r *spread.RepairReport) {
	for _, s := range r.Away {
		fmt.Fprintf(a.stdout, "away: %s\n", safe(s))
	}
	for _, s := range r.Incomplete {
		fmt.Fprintf(a.stdout, "DAMAGE: %s\n", safe(strings.ReplaceAll(s, "\n", " · ")))
	}
	for _, s := range r.Undecided {
		fmt.Fprintf(a.stdout, "not decided until all places are there: %s\n", safe(s))
	}
	for _, f := range r.Failed {
		fmt.Fprintf(a.stdout, "not mended: place %s: %s: %s\n", safe(f.Place), safe(f.Object), safe(f.Error))
	}
	verdict := "all places are up to date"
	if !r.Whole() {
		verdict = "NOT all is up to date: see above"
	}
	if r.Leftover > 0 {
		fmt.Fprintf(a.stdout, "%d packs of runs that died, or are not at their end, have too few shards; if a restore point rested on one, cairn check would name it; cairn gc removes the others when all places are there\n", r.Leftover)
	}
	fmt.Fprintf(a.stdout, "looked at %d packs; copied %d objects, made %d shards, replaced %d damaged ones, removed %d of deleted packs, wrote %s: %s\n",
		r.Packs, r.Copied, r.Rebuilt, r.Replaced, r.Removed, bytesOf(r.Bytes), verdict)
}

func (a *app) placeCmd() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "place",
		Short: "List and replace the places of a repository",
		Long: `List and replace the places of a repository that was made with --shards.

A place that was away and is back is brought up to date by: cairn repair places`,
	})
	c.AddCommand(a.placeLsCmd(), a.placeReplaceCmd())
	return c
}

func (a *app) placeLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the places, and what each of them misses",
		Long: `List the places, and what each of them misses:

  ok         it is there, takes writes, and has all that it should
  behind     it misses objects: cairn repair places
  read-only  it takes no writes: reads are right, backups go on without it
  away       it cannot be reached; the reason is beside it`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, _ *wire.Catalogue) error {
				states, shards, err := repo.PlaceStates(c.Context())
				if err != nil {
					return err
				}
				return a.printPlaces(states, shards)
			})
		},
	}
}

func (a *app) printPlaces(states []spread.PlaceState, shards spread.Shards) error {
	bad := 0
	for _, s := range states {
		if s.State != "ok" {
			bad++
		}
	}
	if a.json {
		if err := a.printJSON(map[string]any{"message_type": "places", "shards": shards, "places": states}); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "PLACE\tID\tSTATE\tOBJECTS\tMISSING\t")
		for _, s := range states {
			fmt.Fprintf(w, "%s\t%.8s\t%s\t%d\t%d\t%s\n", safe(s.Spec), s.ID, s.State, s.Held, s.Missing, safe(s.Why))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		switch {
		case len(states) > 1 && bad > 0:
			fmt.Fprintf(a.stdout, "%s shards: any %d of the %d places may be lost; of objects that a place misses now, fewer\n", shards, shards.M, len(states))
		case len(states) > 1:
			fmt.Fprintf(a.stdout, "%s shards: any %d of the %d places may be lost\n", shards, shards.M, len(states))
		default:
			fmt.Fprintf(a.stdout, "%s shards in one place: of each pack any %d may be damaged\n", shards, shards.M)
		}
	}
	if bad > 0 {
		return errWarnings
	}
	return nil
}

func (a *app) placeReplaceCmd() *cobra.Command {
	var lost bool
	c := &cobra.Command{
		Use:               "replace OLD NEW",
		ValidArgsFunction: a.completePlaces,
		Short:             "Put a new place where an old or lost one was",
		Long: `Put a new place, an empty folder, where an old or lost one was, and make what it
should hold from the others. OLD is a place as cairn place ls shows it, or the
beginning of its ID; it may be gone. When the same folder has a new, empty disk
now, name it twice:

  cairn place replace /mnt/d3 /mnt/d7     another folder takes over
  cairn place replace /mnt/d3 /mnt/d3     a new disk is mounted there

Backups that run meanwhile may end with an error that says so: run them again.
Nothing is deleted in OLD. Interrupted, run it again with NEW NEW, or, if the
list of places was stored already and only shards are missing: cairn repair places`,
		Args: args(2, 2),
		RunE: func(c *cobra.Command, argv []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, _ *wire.Catalogue) error {
				r, err := repo.ReplacePlace(c.Context(), argv[0], argv[1], lost, a.now(), a.reporter().Items)
				if err != nil {
					return err
				}
				return a.printRepair(r)
			})
		},
	}
	c.Flags().BoolVar(&lost, "others-lost", false, "all other places that are away are lost for good, too: do not wait for them")
	return c
}
