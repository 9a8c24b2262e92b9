package job

import (
	"context"
	"errors"
	"strings"
	"testing"

	"cairn/chunkstore/chunk"
	"cairn/index/restorepoint"
)

var errMap = errors.New("the map is damaged")

// damagedMap is a place that cannot give any node.
type damagedMap struct{ restorepoint.Source }

func (damagedMap) ReadRecord(context.Context, chunk.PackRef, int) ([]byte, error) { return nil, errMap }

// mapAlone is a catalogue of one disk map.
type mapAlone struct {
	Catalogue
	m   *restorepoint.Map
	err error
}

func (c mapAlone) Map(*restorepoint.Manifest, string) (*restorepoint.Map, error) { return c.m, c.err }

// A damaged map of the last point must not keep a VM from ever being backed
// up again: a full read does without it and warns. An incremental one cannot.
func TestFullReadNeedsNoParentMap(t *testing.T) {
	ctx := context.Background()
	name := restorepoint.PackName{Session: strings.Repeat("0", 32), Hash: strings.Repeat("1", 64)}
	damaged, err := restorepoint.OpenMap(damagedMap{}, restorepoint.MapRoot{Packs: []restorepoint.PackName{name}, Nodes: [][3]int{{0, 0, 0}}}, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	good, err := restorepoint.OpenMap(damagedMap{}, restorepoint.MapRoot{}, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		cat      mapAlone
		full     bool
		want     *restorepoint.Map
		err      error
		warnings int
	}{
		{name: "good", cat: mapAlone{m: good}, full: true, want: good},
		{name: "root damaged", cat: mapAlone{err: errMap}, full: true, warnings: 1},
		{name: "node damaged", cat: mapAlone{m: damaged}, full: true, warnings: 1},
		{name: "incremental, root damaged", cat: mapAlone{err: errMap}, err: errMap},
	} {
		b := Backup{Catalogue: c.cat, Step: t.Logf}
		got, err := b.parentMap(ctx, "vda", c.full)
		if got != c.want || !errors.Is(err, c.err) || len(b.manifest.Warnings) != c.warnings {
			t.Errorf("%s: got %v, %v, %q", c.name, got, err, b.manifest.Warnings)
		}
	}
}
