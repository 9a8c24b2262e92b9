package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"cairn/chunkstore"
	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/local"
	"cairn/cmd/internal/config"
	"cairn/cmd/internal/job"
	"cairn/index"
	"cairn/index/restorepoint"
)

// Known gives the points that this host's index had seen when it was used
// last, whatever the repository says now.
func (c *Catalogue) Known(ctx context.Context) []restorepoint.Summary {
	list, _ := index.ReadPoints(ctx, c.repo.IndexDir(), c.repo.Store) // none: nobody knows better
	return list
}

// checkPosition is where the next check of a share of the packs begins. It is
// a hint: when it is lost a check begins anywhere.
type checkPosition struct {
	Next float64 `json:"next"`
}

func checkPositionFile(d config.Dirs, repository string) string {
	return filepath.Join(d.Cache, repository, "check-position.json")
}

// CheckStart gives where the next check of a share of a repository's packs
// begins, from 0 to 1: behind the last one of this host, or anywhere.
func CheckStart(d config.Dirs, repository string) (start float64, goesOn bool) {
	var p checkPosition
	b, err := os.ReadFile(checkPositionFile(d, repository))
	if err != nil || json.Unmarshal(b, &p) != nil || p.Next < 0 || p.Next >= 1 {
		return rand.Float64(), false
	}
	return p.Next, true
}

// SaveCheckStart keeps where the next check of a share shall begin.
func SaveCheckStart(d config.Dirs, repository string, next float64) error {
	b, err := json.Marshal(checkPosition{next})
	if err != nil {
		return err
	}
	name := checkPositionFile(d, repository)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o600)
}

// OpenMirror opens a place that may have the objects of a repository. It needs
// no key. Whoever opened it closes the place.
func OpenMirror(ctx context.Context, spec string) (*job.Mirror, Place, error) {
	place, err := OpenPlace(ctx, spec)
	if err != nil {
		return nil, nil, err
	}
	m := &job.Mirror{Place: place, Name: spec}
	c, err := chunkstore.ReadConfig(ctx, place)
	if err == nil {
		m.Repository = c.ID
	} else if ctx.Err() != nil {
		return nil, nil, errors.Join(err, place.Close())
	}
	return m, place, nil
}

// OpenKeyless opens the place of a repository, and looks no further than its
// configuration, for the repository's id; of a damaged one that is "damaged".
func OpenKeyless(ctx context.Context, path string) (place Place, id string, err error) {
	place, err = OpenPlace(ctx, path)
	if errors.Is(err, backend.ErrNotExist) {
		return nil, "", noRepository(path)
	}
	if err != nil {
		return nil, "", fmt.Errorf("open repository %s: %w", path, err)
	}
	c, err := chunkstore.ReadConfig(ctx, place)
	if errors.Is(err, chunkstore.ErrNoRepository) {
		return nil, "", errors.Join(noRepository(path), place.Close())
	}
	if err != nil {
		return place, "damaged", nil // a finding
	}
	if d, ok := place.(*local.Dir); ok {
		if err := d.KnowBy(ctx, chunkstore.ConfigName); err != nil {
			return nil, "", errors.Join(fmt.Errorf("open repository %s: %w", path, err), place.Close())
		}
	}
	return place, c.ID, nil
}
