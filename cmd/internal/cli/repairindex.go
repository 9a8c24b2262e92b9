package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/wire"
	"cairn/index"
)

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
	c := group(&cobra.Command{Use: "repair", Short: "Mend what can be mended"})
	c.AddCommand(ix, a.repairPlacesCmd())
	return c
}
