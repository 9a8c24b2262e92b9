package cli

import (
	"github.com/spf13/cobra"

	"cairn/cmd/internal/man"
	"cairn/cmd/internal/topics"
)

// environment is the part of cairn(1) about variables.
var environment = []man.Entry{
	{Name: "CAIRN_REPOSITORY", Text: "The repository, for --repo."},
	{Name: "CAIRN_PASSWORD_FILE", Text: "The file with its passphrase or key, for --password-file."},
	{Name: "CAIRN_CA_FILE", Text: "Certificates to trust for object storage, for --ca-file."},
	{Name: "CAIRN_CONFIG_DIR", Text: "The VMs of this host, in vms.d. Of root: /etc/cairn; else in XDG_CONFIG_HOME."},
	{Name: "CAIRN_CACHE_DIR", Text: "The index, which is made anew when it is lost. Of root: /var/cache/cairn; else in XDG_CACHE_HOME."},
	{Name: "CAIRN_STATE_DIR", Text: "Journals, scratch files, and the key that this host signs its points with. Of root: /var/lib/cairn; else in XDG_STATE_HOME."},
	{Name: "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION", Text: "Credentials and region of a repository in a bucket."},
	{Name: "GOMEMLIMIT", Text: "Where the garbage collector begins to work harder, like 300MiB. Without it: 150 MiB."},
}

// manualCmd is for who builds a package.
func (a *app) manualCmd() *cobra.Command {
	var about bool
	c := &cobra.Command{
		Use: "manual FOLDER", Short: "Write the manual pages of all commands into a folder", Hidden: true, Args: args(1, 1),
		RunE: func(c *cobra.Command, argv []string) error {
			root := c.Root()
			root.InitDefaultCompletionCmd()
			root.InitDefaultHelpCmd()
			date, err := man.Date(a.getenv("SOURCE_DATE_EPOCH"), a.now())
			if err != nil {
				return err
			}
			book := man.Book{Source: "cairn " + a.version, Date: date, Exit: exitTable, Environment: environment}
			for _, g := range topics.Groups() {
				for _, t := range g.Topics {
					page := man.Topic{Name: "cairn-" + t.Name, Title: t.Title}
					for _, s := range t.Sections() {
						page.Sections = append(page.Sections, man.Section(s))
					}
					book.Topics = append(book.Topics, page)
				}
			}
			if about {
				return man.WriteTopics(argv[0], book)
			}
			return man.Write(argv[0], root, book)
		},
	}
	c.Flags().BoolVar(&about, "topics", false, "those of the topics of cairn help instead, for section 7")
	return c
}
