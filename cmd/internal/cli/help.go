package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/topics"
)

// helpCmd is cobra's help, which knows the topics, too.
func (a *app) helpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND…|TOPIC]",
		Short: "Help about any command, and about topics",
		Long: `Help about a command, as its --help, or about a topic. Without either: the
commands and the topics.`,
		ValidArgsFunction: completeHelp,
		RunE: func(c *cobra.Command, argv []string) error {
			if len(argv) == 0 {
				if err := c.Root().Help(); err != nil {
					return err
				}
				return a.listTopics()
			}
			if t, ok := topics.Find(argv[0]); ok && len(argv) == 1 {
				_, err := fmt.Fprint(a.stdout, t.Text())
				return err
			}
			about, rest, err := c.Root().Find(argv)
			if err != nil || about == c.Root() || len(rest) > 0 {
				return usagef("neither a command nor a topic: %q\nWhat there is: cairn help", strings.Join(argv, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

func (a *app) listTopics() error {
	fmt.Fprintln(a.stdout, "\nTopics, for cairn help TOPIC:")
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, g := range topics.Groups() {
		fmt.Fprintf(w, "%s\n", g.Title)
		for _, t := range g.Topics {
			fmt.Fprintf(w, "  %s\t%s\n", t.Name, t.Title)
		}
	}
	return w.Flush()
}

// completeHelp completes a topic, or the words of a command.
func completeHelp(c *cobra.Command, argv []string, typed string) (words []string, directive cobra.ShellCompDirective) {
	directive = cobra.ShellCompDirectiveNoFileComp
	above, rest, err := c.Root().Find(argv)
	if err != nil || len(rest) > 0 {
		return nil, directive
	}
	for _, sub := range above.Commands() {
		if (sub.IsAvailableCommand() || sub.Name() == "help") && strings.HasPrefix(sub.Name(), typed) {
			words = append(words, sub.Name()+"\t"+sub.Short)
		}
	}
	if len(argv) > 0 {
		return words, directive
	}
	for _, g := range topics.Groups() {
		for _, t := range g.Topics {
			if strings.HasPrefix(t.Name, typed) {
				words = append(words, t.Name+"\t"+t.Title)
			}
		}
	}
	return words, directive
}
