package spread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/chunkstore/backend"
)

// assembled is a pack made from its shards, true to its name.
type assembled struct {
	data    []byte   // the pack's bytes
	objects [][]byte // all shard objects, as they should be
	bad     []error  // by shard: why what is stored is not that; nil: it is
}

// maxTries bounds the sets of k shards that are tried against a pack's name.
const maxTries = 2000

// assemble reads all shards of a pack, finds k whose bytes have the pack's
// name, and says which shards are missing or wrong, also those that fit
// themselves.
func (s *Spread) assemble(ctx context.Context, name string, order []int) (*assembled, error) {
	total := s.shards.Total()
	stored := make([][]byte, total)
	heads := make([]*header, total)
	a := &assembled{bad: make([]error, total)}
	var wg sync.WaitGroup
	for i := range total {
		wg.Go(func() { stored[i], heads[i], a.bad[i] = s.readShard(ctx, name, order, i) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var whole []int
	for i, err := range a.bad {
		if err == nil {
			whole = append(whole, i)
		}
	}
	if len(whole) < s.shards.K {
		if err := s.verdict(name, s.presence(ctx, name, order)); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%s: %d shards are whole, and %d are needed: %w", name, len(whole), s.shards.K, notGone(errors.Join(a.bad...)))
	}
	tries := 0
	err := fmt.Errorf("%s: %w: no %d of its shards give what it is named by", name, errShard, s.shards.K)
	subsets(whole, s.shards.K, func(set []int) bool {
		tries++
		a.data = s.try(name, heads, stored, set)
		if a.data == nil {
			return tries < maxTries && ctx.Err() == nil
		}
		err = nil
		return false
	})
	if err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	if a.objects, err = s.encodeShards(name, a.data); err != nil {
		return nil, err
	}
	for i := range a.objects {
		if a.bad[i] == nil && !bytes.Equal(a.objects[i], stored[i]) {
			a.bad[i] = fmt.Errorf("%w: it fits itself, and not the pack: place %s lies", errShard, s.at(order, i).Spec)
		}
	}
	return a, nil
}

// readShard reads a whole shard object and checks it against itself.
func (s *Spread) readShard(ctx context.Context, name string, order []int, i int) ([]byte, *header, error) {
	m := s.at(order, i)
	n, err := m.size(ctx, shardName(name, i))
	if err != nil {
		return nil, nil, err
	}
	if shardLenOf(n) < 1 {
		return nil, nil, fmt.Errorf("%w: %d bytes are no shard", errShard, n)
	}
	b, err := m.read(ctx, shardName(name, i), 0, int(n))
	if err != nil {
		return nil, nil, err
	}
	h, err := parseHeader(b)
	if err == nil {
		err = s.checkHeader(h, name, i)
	}
	if err == nil && h.objectSize() != n {
		err = fmt.Errorf("%w: it is not as long as its header says", errShard)
	}
	if err == nil {
		err = h.checkBlocks(0, b[h.headerSize():])
	}
	return b, h, err
}

// try makes a pack from a set of k shards; nil when it is not what its name,
// or where that says nothing its headers, say.
func (s *Spread) try(name string, heads []*header, stored [][]byte, set []int) []byte {
	h := heads[set[0]]
	shards := make([][]byte, s.shards.Total())
	for _, i := range set {
		if heads[i].geometry != h.geometry || heads[i].content != h.content {
			return nil
		}
		shards[i] = stored[i][h.headerSize():]
	}
	if err := s.rs.ReconstructData(shards); err != nil {
		return nil
	}
	data := make([]byte, 0, h.shardLen*h.k)
	for _, d := range shards[:h.k] {
		data = append(data, d...)
	}
	data = data[:h.packLen]
	if backend.PackName(data) != h.content {
		return nil
	}
	return data
}

// subsets calls f for each set of k of all, in order, until it gives false.
func subsets(all []int, k int, f func([]int) bool) {
	set := make([]int, 0, k)
	var walk func(from int) bool
	walk = func(from int) bool {
		if len(set) == k {
			return f(set)
		}
		for i := from; i <= len(all)-(k-len(set)); i++ {
			set = append(set, all[i])
			if !walk(i + 1) {
				return false
			}
			set = set[:len(set)-1]
		}
		return true
	}
	walk(0)
}
