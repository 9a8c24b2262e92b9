package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"cairn/chunkstore"
	"cairn/chunkstore/backend/engine"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/wire"
)

func (a *app) initCmd() *cobra.Command {
	var plain, noRecovery bool
	var places []string
	var shards string
	var bucket wire.NewBucket
	c := &cobra.Command{
		Use:               "init [FOLDER|s3:https://HOST/BUCKET[/PREFIX]]",
		ValidArgsFunction: completeFolder,
		Short:             "Make a repository",
		Long: `Make a repository in a new or empty folder, or in object storage, where many
hosts share one.

It is encrypted: with a passphrase (--password-file, CAIRN_PASSWORD_FILE, or
asked for), or with a key: a file with an age identity ("AGE-SECRET-KEY-1…",
from age-keygen), or an SSH private key of the type ed25519, opens without the
slow derivation that a passphrase needs. A recovery key is printed once: keep it
away from this host. Without the passphrase and the recovery key nothing can be
read again. More keys, also such that cannot read guests' files: cairn key --help

--no-encryption leaves the keys in the repository: whoever can read the folder
can read every guest's files, and can change them unseen.

--shards K+M cuts everything that is stored into K pieces and M of parity: any K of
them give it back. With one --place for each of them (folders on different disks or
machines) any M places may be lost, read-only or wrong, and backups and restores go
on. FOLDER is then a small folder that knows them; each of the places opens the
repository as well. Without --place all pieces lie in FOLDER: against bits that rot,
not against a disk that dies.

  cairn init /backup/repo --shards 4+2 --place /mnt/d1 --place /mnt/d2 --place /mnt/d3 \
      --place /mnt/d4 --place /mnt/d5 --place /mnt/d6
  cairn init /backup/repo --shards 1+1 --place /mnt/d1 --place /mnt/d2      a mirror
  cairn init /backup/repo --shards 1+1 --place /mnt/d1 \
      --place s3:https://s3.example.com/bucket/cairn        a mirror in object storage

See then: cairn place ls

Object storage is any that speaks S3: s3:https://HOST[:PORT]/BUCKET[/PREFIX], or
s3:http://…. Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
from MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or from a profile (AWS_PROFILE) of
~/.aws/credentials; the region, if it matters, from AWS_REGION; --ca-file names
an authority of your own. The engine is checked first (cairn engine check
--help): one on which two writers can both create one object would lose data,
and is refused. --force takes it all the same, for one host alone.`,
		Args: args(0, 1),
		RunE: func(c *cobra.Command, argv []string) error {
			path := a.repo
			if len(argv) == 1 {
				path = argv[0]
			}
			if path == "" {
				return usagef("name the folder or bucket: cairn init FOLDER")
			}
			var parity spread.Shards
			if shards != "" || len(places) > 0 {
				var err error
				if parity, err = placesOf(places, shards); err != nil {
					return err
				}
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
			var cfg *chunkstore.Config
			var err error
			if parity != (spread.Shards{}) {
				cfg, err = a.initSpread(c.Context(), path, places, parity, o, bucket)
			} else {
				cfg, err = a.initPlace(c.Context(), path, o, bucket)
			}
			if err != nil {
				return err
			}
			var risks []string
			for _, g := range wire.Together(places) {
				risks = append(risks, wire.Risk(g, parity))
			}
			if a.json {
				return a.printJSON(map[string]any{"message_type": "initialized", "id": cfg.ID, "repository": path, "protection": cfg.Protection, "recovery_key": recovery, "shards": cfg.Shards, "places": cfg.Places, "warnings": risks})
			}
			fmt.Fprintf(a.stdout, "made repository %s at %s\n", cfg.ID[:8], path)
			if cfg.Shards != nil && len(cfg.Places) > 1 {
				fmt.Fprintf(a.stdout, "%s shards in %d places: any %d of them may be lost.\n", cfg.Shards, len(cfg.Places), cfg.Shards.M)
			} else if cfg.Shards != nil {
				fmt.Fprintf(a.stdout, "%s shards in one place: of each pack any %d may be damaged.\n", cfg.Shards, cfg.Shards.M)
			}
			for _, risk := range risks {
				fmt.Fprintf(a.stdout, "But %s.\n", risk)
			}
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
	c.Flags().StringArrayVar(&places, "place", nil, "a folder or bucket that holds a part of the repository; once for each shard (needs --shards)")
	c.Flags().StringVar(&shards, "shards", "", "keep parity: K+M, like 4+2")
	c.Flags().BoolVar(&noRecovery, "no-recovery-key", false, "make no recovery key: a lost passphrase then is a lost repository")
	c.Flags().BoolVar(&bucket.Make, "make-bucket", false, "make the bucket if there is none")
	c.Flags().BoolVar(&bucket.Force, "force", false, "take object storage that did not pass the check: only one host may ever write to it")
	return c
}

// initSpread makes the repository in several places.
func (a *app) initSpread(ctx context.Context, path string, places []string, parity spread.Shards, o chunkstore.InitOptions, bucket wire.NewBucket) (*chunkstore.Config, error) {
	buckets := slices.ContainsFunc(append(places, path), wire.IsBucket)
	if !buckets && (bucket.Make || bucket.Force) {
		return nil, usagef("--make-bucket and --force are for object storage: s3:https://HOST/BUCKET")
	}
	if buckets {
		a.say("checking whether each engine keeps what a repository needs …")
	}
	bucket.Checked = a.checkedEngine
	return wire.InitSpread(ctx, path, places, parity, o, bucket)
}

// checkedEngine shows what was found of a new repository's engine.
func (a *app) checkedEngine(v *engine.Verdict) {
	if !a.json {
		a.printVerdict(a.stderr, v)
	}
}

// initPlace makes the repository in a folder or a bucket.
func (a *app) initPlace(ctx context.Context, path string, o chunkstore.InitOptions, bucket wire.NewBucket) (*chunkstore.Config, error) {
	if !wire.IsBucket(path) {
		if bucket.Make || bucket.Force {
			return nil, usagef("--make-bucket and --force are for object storage: s3:https://HOST/BUCKET")
		}
		return wire.InitRepo(ctx, path, o)
	}
	a.say("checking whether the engine keeps what a repository needs …")
	bucket.Checked = a.checkedEngine
	return wire.InitBucket(ctx, path, o, bucket)
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
