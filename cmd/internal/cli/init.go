package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/chunkstore"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/wire"
)

func (a *app) initCmd() *cobra.Command {
	var plain, noRecovery bool
	c := &cobra.Command{
		Use:   "init [FOLDER]",
		Short: "Make a repository",
		Long: `Make a repository in a new or empty folder.

It is encrypted: with a passphrase (--password-file, CAIRN_PASSWORD_FILE, or
asked for), or with a key: a file with an age identity ("AGE-SECRET-KEY-1…",
from age-keygen), or an SSH private key of the type ed25519, opens without the
slow derivation that a passphrase needs. A recovery key is printed once: keep it
away from this host. Without the passphrase and the recovery key nothing can be
read again. More keys, also such that cannot read guests' files: cairn key --help

--no-encryption leaves the keys in the repository: whoever can read the folder
can read every guest's files, and can change them unseen.`,
		Args: args(0, 1),
		RunE: func(c *cobra.Command, argv []string) error {
			path := a.repo
			if len(argv) == 1 {
				path = argv[0]
			}
			if path == "" {
				return usagef("name the folder: cairn init FOLDER")
			}
			o := chunkstore.InitOptions{Now: a.now}
			recovery := ""
			if !plain {
				secret, err := a.newSecret(path)
				if err != nil {
					return err
				}
				o.Secrets = []string{secret}
				if !noRecovery {
					if recovery, err = seal.NewRecoveryKey(); err != nil {
						return err
					}
					o.Recovery = recovery
				}
			}
			cfg, err := wire.InitRepo(c.Context(), path, o)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"message_type": "initialized", "id": cfg.ID, "repository": path, "protection": cfg.Protection, "recovery_key": recovery})
			}
			fmt.Fprintf(a.stdout, "made repository %s at %s\n", cfg.ID[:8], path)
			if plain {
				fmt.Fprintln(a.stdout, "It is NOT encrypted: whoever can read this folder can read every guest's files.")
			}
			if recovery != "" {
				fmt.Fprintf(a.stdout, "\nRecovery key, shown only now (print it, keep it away from this host):\n\n    %s\n\n", recovery)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&plain, "no-encryption", false, "leave the keys in the repository, readable for everybody who can read it")
	c.Flags().BoolVar(&noRecovery, "no-recovery-key", false, "make no recovery key: a lost passphrase then is a lost repository")
	return c
}

// newSecret gives the new repository's secret; a typed one is asked twice.
func (a *app) newSecret(path string) (string, error) {
	s := a.secret()
	var secret string
	var err error
	if s.File != "" || s.Prompt == nil {
		secret, err = s.Read("")
	} else {
		secret, err = a.typedTwice("New passphrase of " + path + ": ")
	}
	if err == nil {
		_, err = seal.For(secret) // before anything is made
	}
	return secret, err
}

// typedTwice asks for a new passphrase.
func (a *app) typedTwice(question string) (string, error) {
	ask := a.secret().Prompt
	if ask == nil {
		return "", usagef("there is no terminal to ask for a new passphrase on: name a file, see --help")
	}
	one, err := ask(question)
	if err != nil {
		return "", err
	}
	two, err := ask("Once more: ")
	if err != nil {
		return "", err
	}
	if one != two {
		return "", errors.New("the two passphrases differ; nothing was made")
	}
	if one == "" {
		return "", errors.New("an empty passphrase protects nothing")
	}
	return one, nil
}
