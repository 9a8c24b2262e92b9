package wire

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"cairn/chunkstore"
	"cairn/chunkstore/chunk"
	"cairn/chunkstore/pack"
	"cairn/cmd/internal/config"
	"cairn/index/restorepoint"
)

type noIndex struct{}

func (noIndex) Packs(context.Context, []chunk.ID) ([]chunk.PackRef, error) { return nil, nil }
func (noIndex) Add(context.Context, chunk.PackRef, []chunk.ID) error       { return nil }

// A point whose manifest the place did not give is read at the next listing; one
// whose manifest is damaged is not read again and again.
func TestAPointThatCouldNotBeReadIsReadAgain(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	where := filepath.Join(dir, "repo")
	if _, err := InitRepo(ctx, where, chunkstore.InitOptions{Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	repo, err := OpenRepo(ctx, where, Secret{}, config.Dirs{Cache: filepath.Join(dir, "cache"), State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	s, err := repo.Store.Begin(ctx, noIndex{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	body, err := json.Marshal(restorepoint.Manifest{Version: 1, ID: s.ID().String(), VM: restorepoint.VM{Name: "web01"}, Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, body); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		why  error
		want int
	}{{errors.New("read: i/o timeout"), 1}, {pack.ErrCorrupt, 0}} {
		cat := repo.NewCatalogue(ctx, 1<<20)
		defer cat.Close()
		cat.bad[s.ID()] = c.why
		points, err := cat.Points(ctx)
		if err != nil || len(points) != c.want || len(cat.Damaged()) != 1-c.want {
			t.Errorf("after %v: %d points, damaged %v, %v", c.why, len(points), cat.Damaged(), err)
		}
	}
	if err := repo.Present(ctx); err != nil {
		t.Error(err)
	}
}
