package cli

import "github.com/spf13/cobra"

func (a *app) demoCmd() *cobra.Command {
	return &cobra.Command{Use: "demo", Short: "Show the whole job on a real guest that is made for it", Args: noArgs, RunE: func(c *cobra.Command, _ []string) error {
		return usagef("not built yet")
	}}
}
