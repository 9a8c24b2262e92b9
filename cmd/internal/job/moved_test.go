package job

import (
	"bytes"
	"strings"
	"testing"

	"cairn/chunkstore"
	"cairn/chunkstore/gc"
)

// What gc copied, and where it is needed through a forward alone, is looked at
// as all else is: that it is damaged or gone is found, with the points that
// suffer, and it is mended.
func TestCheckFollowsForwards(t *testing.T) {
	r, points := smallRepository(t)
	var images [][]byte
	for _, m := range points {
		images = append(images, r.image(t, m))
	}
	before := objectsOf(t, r.place)
	id, err := chunkstore.ParseSessionID(points[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Drop(t.Context(), id, chunkstore.Note{}); err != nil {
		t.Fatal(err)
	}
	result, err := GC(t.Context(), r.store, r, nil, gc.Options{RewriteBelow: 1}, func(s string) { t.Error(s) })
	if err != nil || result.PacksCopied == 0 {
		t.Fatalf("%+v, %v", result, err)
	}
	if rep := r.check(t, CheckOptions{}); rep.Err() != nil {
		t.Fatalf("%+v", rep.Findings)
	}
	after := objectsOf(t, r.place)
	copies := 0
	for name := range after {
		if !strings.HasPrefix(name, "packs/") || before[name] != nil {
			continue
		}
		copies++
		for _, what := range []string{"lost", "damaged"} {
			hurt := r.copyOf(t)
			if what == "lost" {
				_ = hurt.place.Delete(t.Context(), name)
			} else {
				hurt.place.Damage(name, func(b []byte) []byte { clear(b[len(b)/4 : len(b)/2]); return b })
			}
			rep := hurt.check(t, CheckOptions{ReadData: what == "damaged"})
			if rep.Err() == nil || !told(rep, name) || len(suffering(rep)) == 0 {
				t.Errorf("%s %s: %+v", name, what, rep.Findings)
			}
			rep = hurt.check(t, CheckOptions{ReadData: true, Repair: true, From: &Mirror{Place: r.place, Name: "the mirror", Repository: r.store.Config.ID}})
			if rep.Err() != nil || len(rep.Repaired) != 1 {
				t.Errorf("%s %s: repaired %+v; left %+v", name, what, rep.Repaired, rep.Findings)
			}
			for i, m := range points[1:] {
				if !bytes.Equal(hurt.image(t, m), images[i+1]) {
					t.Errorf("%s %s: a point is not what it was", name, what)
				}
			}
		}
	}
	if copies == 0 {
		t.Error("gc copied nothing")
	}
}
