package spread

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cairn/chunkstore/backend"
	"cairn/chunkstore/backend/mem"
)

// TestRandomFlipsAreMended: a bit, or one in each of two places, of a pack of 1
// MiB and of small objects flips at random: each is found and named, all is
// read right meanwhile, and repair gives the place its very bytes back.
// CAIRN_FLIPS (200; 10,000 with CAIRN_LONG) and CAIRN_FLIP_SEED (1) choose.
func TestRandomFlipsAreMended(t *testing.T) {
	number := func(name string, n int) int {
		if v, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return v
		}
		return n
	}
	count := 200
	if os.Getenv("CAIRN_LONG") != "" {
		count = 10_000
	}
	count, seed := number("CAIRN_FLIPS", count), number("CAIRN_FLIP_SEED", 1)
	ctx := t.Context()
	c := newCluster(t, 6, Shards{4, 2})
	objects := map[string][]byte{}
	put := func(name string, body []byte) {
		t.Helper()
		objects[name] = body
		if err := c.Put(ctx, name, body); err != nil {
			t.Fatal(err)
		}
	}
	large := random(uint64(seed), 1<<20)
	hash := backend.PackName(large)
	put("packs/"+strings.Repeat("0a", 16)+"/"+hex.EncodeToString(hash[:]), large)
	for i := range 4 {
		put(fmt.Sprintf("points/%032x", i), random(uint64(i), 300))
		put(fmt.Sprintf("gc/%08d", i), random(uint64(i+9), 30))
	}
	stored := func(p *mem.Place) map[string][]byte {
		all := map[string][]byte{}
		if err := p.List(ctx, "", func(o backend.Object) (err error) {
			all[o.Name], err = backend.Get(ctx, p, o.Name, 1<<30)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	var want []map[string][]byte
	for _, p := range c.places {
		want = append(want, stored(p))
	}
	r := rand.New(rand.NewPCG(uint64(seed), 3))
	for n := range count {
		var at []string // "place object", sorted
		places := r.Perm(6)[:1+r.IntN(2)]
		for _, i := range places {
			names := make([]string, 0, len(want[i]))
			for name := range want[i] {
				names = append(names, name)
			}
			slices.Sort(names)
			name := names[r.IntN(len(names))]
			if r.IntN(2) == 0 { // most objects are small, most bytes the pack's
				name = names[slices.IndexFunc(names, isPack)]
			}
			bit := r.IntN(8 * len(want[i][name]))
			c.places[i].Damage(name, func(b []byte) []byte { b[bit/8] ^= 1 << (bit % 8); return b })
			at = append(at, c.members[i].Spec+" "+name)
		}
		slices.Sort(at)
		what := fmt.Sprintf("seed %d, flip %d, %v", seed, n, at)
		s := c.open(t, Shards{4, 2})
		name := at[0][strings.IndexByte(at[0], ' ')+1:]
		if pack, _, ok := parseShardName(name); ok {
			name = pack
		}
		if got, err := backend.Get(ctx, s, name, 1<<30); err != nil || !bytes.Equal(got, objects[name]) {
			t.Fatalf("%s: read while it is damaged: %v", what, err)
		}
		found, err := s.Audit(ctx, true, Part{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		for _, f := range found {
			told = append(told, f.Place+" "+f.Object)
		}
		slices.Sort(told)
		if !slices.Equal(slices.Compact(told), slices.Compact(at)) {
			t.Fatalf("%s: the audit says %v", what, found)
		}
		if _, err := s.Repair(ctx, RepairOptions{ReadAll: true}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, i := range places {
			got := stored(c.places[i])
			for name, body := range want[i] {
				if !bytes.Equal(got[name], body) {
					t.Fatalf("%s: repaired, %s is another", what, name)
				}
			}
		}
	}
	t.Logf("%d times one or two flips, seed %d: all found, named and mended", count, seed)
}
