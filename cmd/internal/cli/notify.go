package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/job"
	"cairn/cmd/internal/notify"
)

func (a *app) notifyTestCmd() *cobra.Command {
	return &cobra.Command{Use: "notify-test", Short: "Send a test message to whom [notify] names", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Send a test message to whom [notify] in the configuration names: by its webhook,
by its mail program, or both. What a mail program took is not yet delivered: look
into the mailbox.`,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			if cfg.Notify == nil {
				return usagef("nobody is told: the configuration has no table [notify] (see: cairn config example)")
			}
			results := notify.Test(c.Context(), cfg.Notify, job.Hostname(), a.version, a.now())
			var failed []error
			sent := []string{}
			for _, way := range slices.Sorted(maps.Keys(results)) {
				if err := results[way]; err != nil {
					failed = append(failed, err)
					continue
				}
				sent = append(sent, way)
				if !a.json {
					a.say("a test message was sent by %s", way)
				}
			}
			if a.json {
				failed = append(failed, a.printJSON(map[string]any{"message_type": "notify_test", "sent": sent}))
			}
			if err := errors.Join(failed...); err != nil {
				return fmt.Errorf("the test message was not sent by all ways: %w", err)
			}
			return nil
		}}
}
