package restorepoint

import (
	"context"
	"encoding/hex"
	"fmt"
	"sync"

	"cairn/chunkstore/chunk"
)

// Source is where maps and images read from; *chunkstore.Reader is one.
type Source interface {
	// ReadRecord gives record n of a map pack.
	ReadRecord(ctx context.Context, ref chunk.PackRef, n int) ([]byte, error)
	// ReadChunks fills dst from the chunks first… of a data pack.
	ReadChunks(ctx context.Context, ref chunk.PackRef, first int, dst []byte) error
	// Prefetch makes ready n chunks from first on; with n 0 only what reading
	// any of the pack needs.
	Prefetch(ctx context.Context, ref chunk.PackRef, first, n int)
}

// MapRoot is a disk map's root as the manifest holds it. Part of the on-disk
// format: fields are only added.
type MapRoot struct {
	Packs []PackName `json:"packs,omitempty"`
	// Nodes are the middle nodes that are not holes: index on the disk (in
	// units of 4 GiB), pack in Packs, record in it.
	Nodes [][3]int `json:"nodes,omitempty"`
}

// PackName is a chunk.PackRef in JSON.
type PackName struct {
	Session string `json:"session"`
	Hash    string `json:"hash"`
}

func packName(r chunk.PackRef) PackName { return PackName{r.Session.String(), r.Hash.String()} }

func (p PackName) ref() (chunk.PackRef, error) {
	var r chunk.PackRef
	s, err1 := hex.DecodeString(p.Session)
	h, err2 := hex.DecodeString(p.Hash)
	if err1 != nil || err2 != nil || len(s) != len(r.Session) || len(h) != len(r.Hash) {
		return r, fmt.Errorf("%w: a malformed pack name in the manifest", ErrCorrupt)
	}
	copy(r.Session[:], s)
	copy(r.Hash[:], h)
	return r, nil
}

// leafCache bounds the decoded leaves that a Map keeps: some 2 KiB each.
const leafCache = 256

// Map is a disk map that is read. It may be used by many goroutines.
type Map struct {
	src   Source
	size  int64
	nodes map[int]nodeRef // middle nodes by index

	mu      sync.Mutex
	middles map[int]*middle
	leaves  map[int64]*cachedLeaf
	tick    int64
}

type cachedLeaf struct {
	leaf *leaf
	used int64
}

// OpenMap gives the map of a disk of size bytes.
func OpenMap(src Source, root MapRoot, size int64) (*Map, error) {
	if size < 0 || size > MaxDiskSize {
		return nil, fmt.Errorf("%w: a disk of %d bytes", ErrCorrupt, size)
	}
	m := &Map{src: src, size: size, nodes: map[int]nodeRef{}, middles: map[int]*middle{}, leaves: map[int64]*cachedLeaf{}}
	for _, n := range root.Nodes {
		if n[0] < 0 || int64(n[0]) >= (size+middleSize-1)/middleSize || n[1] < 0 || n[1] >= len(root.Packs) || n[2] < 0 {
			return nil, fmt.Errorf("%w: a node of the root is out of bounds", ErrCorrupt)
		}
		ref, err := root.Packs[n[1]].ref()
		if err != nil {
			return nil, err
		}
		m.nodes[n[0]] = nodeRef{ref, n[2]}
	}
	return m, nil
}

// middle gives middle node i; an empty one for a hole.
func (m *Map) middle(ctx context.Context, i int) (*middle, error) {
	ref, ok := m.nodes[i]
	if !ok {
		return &middle{}, nil
	}
	m.mu.Lock()
	n := m.middles[i]
	m.mu.Unlock()
	if n != nil {
		return n, nil
	}
	b, err := m.src.ReadRecord(ctx, ref.pack, ref.record)
	if err == nil {
		n, err = decodeMiddle(b, ref.pack)
	}
	if err != nil {
		return nil, fmt.Errorf("disk map, node %d: %w", i, err)
	}
	m.mu.Lock()
	if len(m.middles) >= 64 {
		clear(m.middles)
	}
	m.middles[i] = n
	m.mu.Unlock()
	return n, nil
}

// leafRef gives the nodeRef of leaf i; ok false for a hole.
func (m *Map) leafRef(ctx context.Context, i int64) (nodeRef, bool, error) {
	n, err := m.middle(ctx, int(i/middleLeaves))
	if err != nil {
		return nodeRef{}, false, err
	}
	ref, ok := n.leaves[int(i%middleLeaves)]
	return ref, ok, nil
}

// leaf gives leaf i decoded; an empty one for a hole.
func (m *Map) leaf(ctx context.Context, i int64) (*leaf, error) {
	m.mu.Lock()
	m.tick++
	if c := m.leaves[i]; c != nil {
		c.used = m.tick
		m.mu.Unlock()
		return c.leaf, nil
	}
	m.mu.Unlock()
	ref, ok, err := m.leafRef(ctx, i)
	if err != nil {
		return nil, err
	}
	l := &leaf{}
	if ok {
		b, err := m.src.ReadRecord(ctx, ref.pack, ref.record)
		if err == nil {
			l, err = decodeLeaf(b)
		}
		if err != nil {
			return nil, fmt.Errorf("disk map, leaf %d: %w", i, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.leaves) >= leafCache {
		oldest, at := m.tick+1, int64(-1)
		for k, c := range m.leaves {
			if c.used < oldest {
				oldest, at = c.used, k
			}
		}
		delete(m.leaves, at)
	}
	m.leaves[i] = &cachedLeaf{l, m.tick}
	return l, nil
}

// Extent is a range of a disk that lies consecutively in one pack.
type Extent struct {
	Offset int64 // bytes on the disk
	Chunks int
	Pack   chunk.PackRef
	First  int // chunk in the pack
}

// Extents calls fn for each run of the map, in order.
func (m *Map) Extents(ctx context.Context, fn func(Extent) error) error {
	for i := int64(0); i*LeafSize < m.size; i++ {
		if _, ok := m.nodes[int(i/middleLeaves)]; !ok {
			i += middleLeaves - 1 - i%middleLeaves // the rest of a hole of 4 GiB
			continue
		}
		l, err := m.leaf(ctx, i)
		if err != nil {
			return err
		}
		for _, r := range l.runs {
			e := Extent{i*LeafSize + int64(r.first)*chunk.Size, int(r.count), l.packs[r.pack], int(r.chunk)}
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}
