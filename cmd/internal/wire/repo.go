package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/limit"
	"cairn/chunkstore/backend/local"
	"cairn/chunkstore/seal"
	"cairn/cmd/internal/config"
)

// ErrSecret: a secret is needed and none, or no usable one, was given.
var ErrSecret = seal.ErrSecret

// Repo is an opened repository.
type Repo struct {
	Path  string
	Store *chunkstore.Store
	Dirs  config.Dirs

	place   Place
	through backend.Backend // the place, limited
	keys    *seal.Keyring
	witness *witness
}

// OpenRepo opens the repository at path.
func OpenRepo(ctx context.Context, path string, secret Secret, dirs config.Dirs) (*Repo, error) {
	return OpenLimited(ctx, path, secret, dirs, 0)
}

// OpenLimited is OpenRepo with at most writeLimit bytes a second written to
// the repository; 0 is no limit.
func OpenLimited(ctx context.Context, path string, secret Secret, dirs config.Dirs, writeLimit int64) (*Repo, error) {
	return OpenShared(ctx, path, secret, dirs, writeLimit, nil)
}

// OpenShared is OpenLimited with a limiter that other repositories may share.
func OpenShared(ctx context.Context, path string, secret Secret, dirs config.Dirs, writeLimit int64, shared *limit.Limiter) (*Repo, error) {
	place, c, err := openPlace(ctx, path)
	if err != nil {
		return nil, err
	}
	var s string
	if c.Protection != chunkstore.ProtectionNone {
		if s, err = secret.Read("Passphrase of " + path + ": "); err != nil {
			return nil, err
		}
	}
	keys, err := unlock(ctx, place, c, s)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", path, err)
	}
	through := limit.Through(limit.New(place, writeLimit), shared)
	store := chunkstore.NewStore(through, c, keys)
	trust(place, store)
	return &Repo{Path: path, Store: store, Dirs: dirs, place: place, through: through, keys: keys, witness: bearWitness(ctx, store, dirs)}, nil
}

// Limited gives a store of the repository that writes at most so many bytes a
// second, beside what limits the repository; 0: the repository's own store.
func (r *Repo) Limited(writeLimit int64) *chunkstore.Store {
	if writeLimit <= 0 {
		return r.Store
	}
	s := chunkstore.NewStore(limit.New(r.through, writeLimit), r.Store.Config, r.keys)
	s.SignAs(r.witness.host)
	return s
}

// openPlace opens a repository's place and reads what needs no key.
func openPlace(ctx context.Context, path string) (Place, *chunkstore.Config, error) {
	place, err := OpenPlace(ctx, path)
	if errors.Is(err, backend.ErrNotExist) {
		return nil, nil, noRepository(path)
	}
	if err != nil && IsBucket(path) {
		return nil, nil, fmt.Errorf("open repository: %w", err) // it names the place
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open repository %s: %w", path, err)
	}
	c, err := chunkstore.ReadConfig(ctx, place)
	if d, ok := place.(*local.Dir); ok && err == nil { // several places know themselves
		err = d.KnowBy(ctx, chunkstore.ConfigName)
	}
	if err == nil {
		return place, c, nil
	}
	_ = place.Close() // only looked at
	if errors.Is(err, chunkstore.ErrNoRepository) {
		return nil, nil, noRepository(path)
	}
	return nil, nil, fmt.Errorf("open repository %s: %w", path, err)
}

// noRepository says that there is none, and what that means: to make a new one in
// the folder on which a disk is not mounted is the last thing to do.
func noRepository(path string) error {
	begin := "make one with: cairn init " + path
	if IsBucket(path) {
		return fmt.Errorf("%w at %s: %s", chunkstore.ErrNoRepository, path, begin)
	}
	entries, err := os.ReadDir(path)
	what := "the folder holds other things"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		what = "there is no such folder"
	case err == nil && len(entries) == 0:
		what = "the folder is empty"
	}
	return fmt.Errorf("%w at %s: %s. If there was one, its disk is not mounted (findmnt -T %s; mount it, and run again); if there never was, %s", chunkstore.ErrNoRepository, path, what, path, begin)
}

// BitmapTag gives a repository's name in bitmaps. It needs no key.
func BitmapTag(ctx context.Context, path string) (string, error) {
	place, c, err := openPlace(ctx, path)
	if err != nil {
		return "", err
	}
	return c.ID[:8], place.Close()
}

// unlock opens the keys. What a passphrase opened once stays in the kernel's
// keyring for a while: its derivation is slow on purpose, and a mount should
// answer at once.
func unlock(ctx context.Context, place backend.Backend, c *chunkstore.Config, secret string) (*seal.Keyring, error) {
	name := rememberedAs(c)
	slow := c.Protection == chunkstore.ProtectionSecret && seal.IsSlow(secret)
	if slow {
		if keys, ok := seal.Recall(name, secret); ok {
			return keys, nil
		}
	}
	keys, err := chunkstore.Unlock(ctx, place, c, secret)
	if err == nil && slow {
		keys.Remember(name, secret)
	}
	return keys, err
}

// rememberedAs names a repository's keys in the kernel's keyring.
func rememberedAs(c *chunkstore.Config) string { return "cairn:" + c.ID }

// sweepAge is how old a temporary file in the repository must be to be a dead
// writer's: none takes that long for 16 MiB.
const sweepAge = 24 * time.Hour

// Sweep removes what killed writers left half-written in the place.
func (r *Repo) Sweep(now time.Time) (int, error) {
	if s, ok := r.place.(sweeper); ok {
		return s.Sweep(now, sweepAge)
	}
	return 0, nil
}

// Close gives back what the repository holds, and keeps what was seen of it.
func (r *Repo) Close() error { return errors.Join(r.witness.remember(r.Store), r.place.Close()) }

// Leave is Close without keeping what was seen: for whoever had it open for hours,
// and knows less than those who opened it since.
func (r *Repo) Leave() error { return r.place.Close() }

// Present is nil while the place shows this repository. A folder whose disk is not
// mounted any more shows nothing, and that is no repository without points.
func (r *Repo) Present(ctx context.Context) error {
	c, err := chunkstore.ReadConfig(ctx, r.place)
	if err == nil && c.ID != r.Store.Config.ID {
		err = errors.New("another repository is there now")
	}
	if err != nil {
		return fmt.Errorf("repository %s: %w", r.Path, err)
	}
	return nil
}

// Watch gives what later says whether the place has shown the repository all the time
// since, and of several places whether as many as it takes to read do: nil, or
// backend.ErrAway.
func (r *Repo) Watch() func(context.Context) error {
	dir, one := r.place.(*local.Dir)
	before := 0
	if one {
		before = dir.Absences()
	}
	return func(ctx context.Context) error {
		if one && dir.Absences() != before {
			return fmt.Errorf("%w, or was for a while: repository %s: its file system was not mounted; see that it stays, and run again", backend.ErrAway, r.Path)
		}
		if away, of := r.Away(); of > 1 && len(away) > r.Store.Config.Layout().Shards.M {
			return fmt.Errorf("%w: %d of the %d places are away, and no more than %d may be: %s; what is stored cannot be judged without them; bring them back, and run again",
				backend.ErrAway, len(away), of, r.Store.Config.Layout().Shards.M, strings.Join(away, ", "))
		}
		return r.Present(ctx)
	}
}

// IndexDir is where this host's index of the repository lies.
func (r *Repo) IndexDir() string { return filepath.Join(r.Dirs.Cache, r.Store.Config.ID, "index") }

// InitRepo makes a repository in a new or empty folder, or in a bucket whose
// engine is good (InitBucket). With secrets empty it is not encrypted.
func InitRepo(ctx context.Context, path string, o chunkstore.InitOptions) (*chunkstore.Config, error) {
	if IsBucket(path) {
		return InitBucket(ctx, path, o, NewBucket{})
	}
	if err := mustBeEmpty(path); err != nil {
		return nil, err
	}
	place, err := local.Create(path)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	return chunkstore.Init(ctx, place, o)
}

// mustBeEmpty makes sure that a repository can be made in a folder.
func mustBeEmpty(path string) error {
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) == 0:
		return nil
	}
	if _, err := os.Stat(filepath.Join(path, "config")); err == nil {
		return fmt.Errorf("%w at %s", chunkstore.ErrRepositoryExists, path)
	}
	return fmt.Errorf("%s is not empty and holds no repository: name a new folder", path)
}
