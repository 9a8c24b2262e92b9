package spread

import (
	"strings"
	"testing"

	"cairn/chunkstore/backend"
)

// A place that is gone first answers no read and then takes no object: the
// warning of what it missed names an object that it missed.
func TestWarningNamesWhatWasMissed(t *testing.T) {
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	old, fresh := random(1, 70_000), random(2, 70_000)
	if err := c.Put(ctx, hashName(old), old); err != nil {
		t.Fatal(err)
	}
	c.down.Store(0b000011)
	if b, err := backend.Get(ctx, c, hashName(old), 1<<20); err != nil || len(b) != len(old) {
		t.Fatal(err)
	}
	if said := strings.Join(c.Warnings(), "\n"); !strings.Contains(said, "from parity; the first: "+hashName(old)) {
		t.Errorf("after a read: %s", said)
	}
	if err := c.Put(ctx, hashName(fresh), fresh); err != nil {
		t.Fatal(err)
	}
	all := c.Warnings()
	for _, said := range all {
		if !strings.Contains(said, "missed 1 objects") || !strings.Contains(said, "the first: "+hashName(fresh)) {
			t.Error(said)
		}
	}
	if len(all) != 2 {
		t.Errorf("%q", all)
	}
}
