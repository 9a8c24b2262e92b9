package catalogue

import (
	"context"
	"fmt"

	"cairn/chunkstore/chunk"
)

// A Checker makes sure that all nodes of catalogues can be read and are what
// their hashes say. What catalogues share is looked at once. It is for one
// goroutine.
type Checker struct {
	cache *Cache
	hash  hasher
	packs map[chunk.PackRef]uint32
	good  map[checked]Hash // with all below them
}

// checked is where a node lies, by number of the pack: of millions it takes
// little.
type checked struct{ pack, record uint32 }

// checkerCache is what a Checker keeps of nodes, in bytes.
const checkerCache = 16 << 20

// NewChecker gives a Checker.
func NewChecker(src Records) *Checker {
	return &Checker{cache: NewCache(src, checkerCache), packs: map[chunk.PackRef]uint32{}, good: map[checked]Hash{}}
}

// Root checks a catalogue; the error is the first fault, or that of ctx.
func (c *Checker) Root(ctx context.Context, r *Root) error {
	for i := range r.Volumes {
		v := &r.Volumes[i]
		if v.Top == nil || v.Top.Dir == nil {
			continue
		}
		if err := c.directory(ctx, *v.Top.Dir, 0); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

func (c *Checker) directory(ctx context.Context, ref Ref, depth int) error {
	n, ok := c.packs[ref.Pack]
	if !ok {
		n = uint32(len(c.packs))
		c.packs[ref.Pack] = n
	}
	key := checked{n, uint32(ref.Record)}
	if h, ok := c.good[key]; ok && h == ref.Hash {
		return nil
	}
	if depth > MaxDepth+1 {
		return fmt.Errorf("%w: more than %d directories above one", ErrCorrupt, MaxDepth)
	}
	if err := c.look(ctx, ref, depth); err != nil {
		return err
	}
	c.good[key] = ref.Hash
	return nil
}

func (c *Checker) look(ctx context.Context, ref Ref, depth int) error {
	n, err := c.cache.load(ctx, ref.place())
	if err != nil {
		return err
	}
	if h := c.hash.directory(&n.Directory); h != ref.Hash {
		return fmt.Errorf("%s, record %d: %w: its hash is not the one it is named by", ref.Pack, ref.Record, ErrCorrupt)
	}
	for i := range n.Entries {
		if e := &n.Entries[i]; e.Dir != nil {
			if err := c.directory(ctx, *e.Dir, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}
