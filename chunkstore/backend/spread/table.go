package spread

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/chunkstore/backend"
)

// table is what the places list, put together while they list it: a repository
// of 100 TiB has 6.5 million packs with six shards each, of which the names
// alone would take 5 GB. A pack takes 56 bytes here, and some 25 more until all
// places have answered.
type table struct {
	s *Spread

	mu     sync.Mutex
	dirs   []string // "packs/SESSION/", and their numbers
	numOf  map[string]uint32
	at     map[uint64]uint32 // in packs, by slot
	packs  []listed
	others map[string]*object // control objects, and what has no pack's name
	failed []bool             // members whose listing counts for nothing
}

// packKey is a pack's name.
type packKey struct {
	dir uint32
	sum sum
}

// listed is what the places show of one pack.
type listed struct {
	packKey
	on       uint32
	size     int64 // of one shard object
	modified int64 // Unix, microseconds: those cover all of time.Time
}

func (s *Spread) newTable() *table {
	return &table{s: s, numOf: map[string]uint32{}, at: map[uint64]uint32{}, others: map[string]*object{}, failed: make([]bool, len(s.members))}
}

// show adds what member i lists.
func (t *table) show(i int, o backend.Object) {
	if o.Name == identityName {
		return // each place's own
	}
	name, bit, isShard := o.Name, i, false
	if pack, n, ok := parseShardName(o.Name); ok {
		order := t.s.order(pack)
		if n >= t.s.shards.Total() || order[n%len(order)] != i {
			return // a shard where none belongs: nothing reads it
		}
		name, bit, isShard = pack, n, true
	}
	content, named := contentOf(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed[i] {
		return // nobody waits for it any more
	}
	if isShard && named {
		t.shard(name, content, bit, o)
		return
	}
	x := t.others[name]
	if x == nil {
		x = &object{name: name, pack: isShard, size: o.Size, modified: o.Modified}
		t.others[name] = x
	}
	x.on |= 1 << bit
	if o.Modified.Before(x.modified) {
		x.modified = o.Modified
	}
}

// shard needs t.mu.
func (t *table) shard(pack string, content sum, n int, o backend.Object) {
	dir := pack[:strings.LastIndexByte(pack, '/')+1]
	num, ok := t.numOf[dir]
	if !ok {
		num = uint32(len(t.dirs))
		t.dirs = append(t.dirs, strings.Clone(dir))
		t.numOf[t.dirs[num]] = num
	}
	x := t.entry(packKey{num, content}, o)
	x.on |= 1 << n
	x.modified = min(x.modified, o.Modified.UnixMicro())
}

// entry gives a pack's entry, and makes it. It needs t.mu.
func (t *table) entry(key packKey, o backend.Object) *listed {
	// A whole key in the map would take twice as much. Packs whose slots are the
	// same take the next one.
	for slot := binary.LittleEndian.Uint64(key.sum[:]) + uint64(key.dir); ; slot++ {
		i, ok := t.at[slot]
		if !ok {
			t.at[slot] = uint32(len(t.packs))
			t.packs = append(t.packs, listed{packKey: key, size: o.Size, modified: o.Modified.UnixMicro()})
			return &t.packs[len(t.packs)-1]
		}
		if t.packs[i].packKey == key {
			return &t.packs[i]
		}
	}
}

// fail makes what member i listed count for nothing.
func (t *table) fail(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed[i] = true
}

// whole says whether all members were listed: then there is nothing that the
// table does not show.
func (t *table) whole() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !slices.Contains(t.failed, true)
}

// all gives the objects in the order of their names, when all members have
// answered. Each is good until the next.
func (t *table) all() iter.Seq[*object] {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at, t.numOf = nil, nil
	rank := make([]int, len(t.dirs))
	for r, d := range slices.SortedFunc(slices.Values(indexes(len(t.dirs))), func(a, b int) int { return strings.Compare(t.dirs[a], t.dirs[b]) }) {
		rank[d] = r
	}
	slices.SortFunc(t.packs, func(a, b listed) int {
		return cmp.Or(cmp.Compare(rank[a.dir], rank[b.dir]), bytes.Compare(a.sum[:], b.sum[:]))
	})
	others := slices.Sorted(maps.Keys(t.others))
	return func(yield func(*object) bool) {
		var pack object
		for i := range t.packs {
			t.object(&t.packs[i], &pack)
			for len(others) > 0 && others[0] < pack.name {
				if !t.other(others[0], yield) {
					return
				}
				others = others[1:]
			}
			if pack.on != 0 && !yield(&pack) {
				return
			}
		}
		for _, name := range others {
			if !t.other(name, yield) {
				return
			}
		}
	}
}

// list gives all objects at once; of nil, none.
func (t *table) list() (list []*object) {
	if t == nil {
		return nil
	}
	for o := range t.all() {
		c := *o
		list = append(list, &c)
	}
	return list
}

// object fills in what is known of a pack.
func (t *table) object(l *listed, o *object) {
	*o = object{name: t.dirs[l.dir] + hex.EncodeToString(l.sum[:]), pack: true, size: l.size, modified: time.UnixMicro(l.modified), on: l.on}
	t.judge(o)
}

// other gives one of the others, unless only a failed member showed it.
func (t *table) other(name string, yield func(*object) bool) bool {
	o := t.others[name]
	if o.pack {
		t.judge(o)
	} else {
		for i, failed := range t.failed {
			if failed {
				o.on &^= 1 << i
			}
		}
	}
	return o.on == 0 || yield(o)
}

// judge says which shards of a pack are not where they belong, as far as the
// members were listed: what sizePack would find.
func (t *table) judge(o *object) {
	order, absent := t.s.order(o.name), 0
	for n := range t.s.shards.Total() {
		switch {
		case t.failed[order[n%len(order)]]:
			o.on &^= 1 << n
		case o.on&(1<<n) == 0:
			absent++
		}
	}
	o.partial, o.lacks = absent > t.s.shards.M, absent > 0
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
