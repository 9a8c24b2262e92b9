package chunkstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/spread"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/chunkstore/seal"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrNoRepository: the place holds none.
	ErrNoRepository = errors.New("no repository")
	// ErrRepositoryExists: init found one.
	ErrRepositoryExists = errors.New("a repository exists already")
)

// Names of objects. Part of the on-disk format, do not change.
const (
	// ConfigName is the object that makes a place a repository. It never changes.
	ConfigName       = "config"
	configName       = ConfigName
	keysPrefix       = "keys/"
	packsPrefix      = "packs/"
	intentsPrefix    = "sessions/"
	pointsPrefix     = "points/"
	dropsPrefix      = "drops/"
	pinsPrefix       = "pins/"
	gcPrefix         = "gc/"
	repairPrefix     = "repair/"
	mendedPrefix     = "mended/" // of good copies of bad objects, by the objects' names
	forwardsPrefix   = "forwards/"
	collectorsPrefix = "collectors/"
	beatsPrefix      = "beats/"
	hostsPrefix      = "hosts/"
	revokedPrefix    = "revoked/"
	refillsPrefix    = "refills/"
	placesPrefix     = "places/"
	placeName        = "place" // package spread's
)

// FeatureSpread: the repository lies in several places, or has parity.
const FeatureSpread = "spread1"

// formatVersion of a repository. Part of the on-disk format.
const formatVersion = 2

// limits of small objects in bytes.
const (
	maxConfig = 64 << 10
	maxSlots  = 1024
)

// Values of Config.Protection.
const (
	ProtectionSecret = "secret" // key slots need a passphrase or a key
	ProtectionNone   = "none"   // the keys lie open in a slot
)

// Config is a repository's fixed properties, stored in the clear. Part of the
// on-disk format: fields are only added, and a cairn that does not know a
// feature named in Features refuses the repository.
type Config struct {
	Version    int       `json:"version"`
	ID         string    `json:"id"` // 32 hexadecimal digits
	Created    time.Time `json:"created"`
	ChunkSize  int       `json:"chunk_size"`
	Protection string    `json:"protection"`
	Features   []string  `json:"features,omitempty"`
	// Sum is BLAKE3-256 of the object with 64 zeros in the sum's place. Those
	// made before there were sums have none.
	Sum string `json:"sum,omitempty"`

	// With FeatureSpread: where the repository lay at first, and its parity.
	Places []spread.Place `json:"places,omitempty"`
	Shards *spread.Shards `json:"shards,omitempty"`
}

// Layout is generation 0 of the repository's places; nil when it has no
// parity.
func (c *Config) Layout() *spread.Layout {
	if c.Shards == nil {
		return nil
	}
	return &spread.Layout{Repository: c.ID, Shards: *c.Shards, Places: c.Places}
}

// InitOptions says how a repository is protected.
type InitOptions struct {
	// Secrets opens the repository: each gets a key slot. None: the keys lie
	// open in the repository and whoever can read it can read everything.
	Secrets []string
	// Recovery is one more secret, to be kept away from every host; "" for none.
	Recovery string
	Now      func() time.Time
	// Layout is where the repository will lie when that is more than one
	// folder without parity; it gives the repository's ID, too.
	Layout *spread.Layout
}

// Init makes a repository in an empty place.
func Init(ctx context.Context, b backend.Backend, o InitOptions) (*Config, error) {
	if _, err := b.Size(ctx, configName); err == nil {
		return nil, ErrRepositoryExists
	} else if !errors.Is(err, backend.ErrNotExist) {
		return nil, err
	}
	keys, err := seal.NewKeyring()
	if err != nil {
		return nil, err
	}
	c := &Config{Version: formatVersion, ID: randomHex(16), Created: o.Now().UTC().Truncate(time.Second),
		ChunkSize: chunk.Size, Protection: ProtectionSecret}
	if l := o.Layout; l != nil {
		c.ID, c.Features, c.Places, c.Shards = l.Repository, []string{FeatureSpread}, l.Places, &l.Shards
	}
	if len(o.Secrets) == 0 && o.Recovery == "" {
		c.Protection = ProtectionNone
	}
	slots, err := addFirstSlots(ctx, b, keys, o)
	if err != nil {
		return nil, err
	}
	body, err := encodeConfig(*c)
	if err != nil {
		return nil, err
	}
	// The config makes the repository: it comes last, and one of two racing
	// inits wins.
	if err := b.Put(ctx, configName, body); errors.Is(err, backend.ErrExist) {
		for _, id := range slots { // they hold other roots than the winner's
			if err := RemoveSlot(ctx, b, id); err != nil {
				return nil, errors.Join(ErrRepositoryExists, err)
			}
		}
		return nil, ErrRepositoryExists
	} else if err != nil {
		return nil, fmt.Errorf("store config: %w", err)
	}
	return c, nil
}

// ReadConfig gives the configuration of the repository in the place, or
// ErrNoRepository.
func ReadConfig(ctx context.Context, b backend.Backend) (*Config, error) {
	body, err := backend.Get(ctx, b, configName, maxConfig)
	if errors.Is(err, backend.ErrNotExist) {
		return nil, ErrNoRepository
	}
	if err != nil {
		return nil, err
	}
	damaged := verifyConfig(body) // of no concern while all that counts can be read; check tells
	if damaged != nil {
		if copied, err := backend.Get(ctx, b, mendedPrefix+configName, maxConfig); err == nil && verifyConfig(copied) == nil {
			body, damaged = copied, nil
		}
	}
	c := new(Config)
	if err := json.Unmarshal(body, c); err != nil {
		return nil, fmt.Errorf("repository config: %w: %w; copy the file config from a mirror, it holds no secret", pack.ErrCorrupt, err)
	}
	unknown := slices.DeleteFunc(slices.Clone(c.Features), func(f string) bool { return f == FeatureSpread })
	if damaged == nil && c.Version < formatVersion {
		return nil, fmt.Errorf("repository of format %d, made by a cairn from before its first release: this cairn knows format %d alone: read it with the cairn that made it, and begin a new one in another place", c.Version, formatVersion)
	}
	if c.Version != formatVersion || c.ChunkSize != chunk.Size || len(unknown) > 0 {
		if damaged != nil {
			return nil, fmt.Errorf("repository config: %w", damaged)
		}
		return nil, fmt.Errorf("repository of format %d with features %q: this cairn knows format %d and %q: use a newer one",
			c.Version, c.Features, formatVersion, FeatureSpread)
	}
	if slices.Contains(c.Features, FeatureSpread) != (c.Shards != nil) {
		return nil, errors.New("repository config: places without shards, or shards without the feature")
	}
	if l := c.Layout(); l != nil {
		if err := l.Check(); err != nil {
			return nil, fmt.Errorf("repository config: %w", err)
		}
	}
	if id, err := hex.DecodeString(c.ID); err != nil || len(id) != 16 {
		return nil, fmt.Errorf("repository config: %w: malformed id", pack.ErrCorrupt)
	}
	return c, nil
}

// NewID gives a repository's id.
func NewID() string { return randomHex(16) }

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
