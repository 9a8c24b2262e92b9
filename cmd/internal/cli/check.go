package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/wire"
	"cairn/index"
)

func (a *app) checkCmd() *cobra.Command {
	var readData bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Look whether all that the restore points need is there and whole",
		Long: `Look whether every restore point's manifest and disk maps can be read, every pack
they need is there, and what the inside agent said is as it said it; and whether
the catalogues of files are whole: of a damaged one the point does not suffer, and
cairn catalogue --rebuild makes it anew. With --read-data every stored byte is read, too: each
pack against its name, each frame against its seal, each chunk against its ID.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, cat *wire.Catalogue) error {
				start := a.now()
				r, err := job.Check(c.Context(), repo.Store, cat, readData, a.reporter().Work)
				if err != nil {
					return err
				}
				if err := a.printReport(r, a.now().Sub(start)); err != nil {
					return err
				}
				if readData && repo.Store.MayRead() != nil {
					a.say("note: guests' data was read as it is stored, each pack against its name; this key cannot open it and hold each chunk against its ID: one of kind restore or all can")
				}
				return r.Err()
			})
		},
	}
	c.Flags().BoolVar(&readData, "read-data", false, "read every stored byte")
	return c
}

func (a *app) printReport(r *job.Report, took time.Duration) error {
	if a.json {
		return a.printJSON(r)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(a.stdout, "DAMAGE: %s: %s\n", strings.TrimSpace(f.Kind+" "+f.Name+" "+f.Disk), f.Error)
	}
	for _, u := range r.Unknown {
		fmt.Fprintf(a.stdout, "unknown object (not Cairn's): %s\n", safe(u))
	}
	verdict := "no damage found"
	if len(r.Findings) > 0 {
		verdict = fmt.Sprintf("%d findings", len(r.Findings))
	}
	_, err := fmt.Fprintf(a.stdout, "checked %d points, %d catalogues and %d packs, read %s of data, in %.1f s: %s\n", r.Points, r.Catalogues, r.Packs, bytesOf(r.BytesRead), took.Seconds(), verdict)
	return err
}

func (a *app) repairCmd() *cobra.Command {
	var wait time.Duration
	ix := &cobra.Command{
		Use:   "index",
		Short: "Rebuild this host's index from the repository alone",
		Long: `Rebuild this host's index from the repository alone. The index only makes
backups find what is stored already; a lost one costs time, never data.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCatalogue(c.Context(), commandCache, func(repo *wire.Repo, _ *wire.Catalogue) error {
				o := a.indexOptions(wait)
				objects := 0
				o.Progress = func(_, total int) { objects = total }
				x, err := index.Rebuild(c.Context(), repo.IndexDir(), repo.Store, o)
				if err != nil {
					return err
				}
				points, err := x.Points(c.Context())
				if cerr := x.Close(); err == nil {
					err = cerr
				}
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]any{"message_type": "summary", "objects": objects, "points": len(points)})
				}
				_, err = fmt.Fprintf(a.stdout, "rebuilt the index from %d objects: %d points\n", objects, len(points))
				return err
			})
		},
	}
	ix.Flags().DurationVar(&wait, "index-wait", 5*time.Minute, "how long to wait for another cairn that uses the index")
	c := &cobra.Command{Use: "repair", Short: "Mend what can be mended"}
	c.AddCommand(ix)
	return c
}
