package vfat

import (
	"sync"

	"cairn/guest/filesystem"
)

// chain is the clusters of one file or directory in order. It is walked only
// as far as it is asked for, and remembers where every stride-th cluster lies,
// so that going back is cheap. All its methods may be called at once.
type chain struct {
	fs         *FS
	first      uint32
	contiguous bool   // exFAT's NoFatChain: the FAT says nothing of it
	length     uint32 // of a contiguous chain, in clusters

	mu     sync.Mutex
	table  tableReader
	marks  []uint32 // the cluster with index i*stride
	stride uint32
	at     uint32 // an index whose cluster is known: the last one asked for
	here   uint32 // its cluster

	// The farthest cluster seen yet. Brent's algorithm finds a cycle there: the
	// cluster is compared with one that lies up to a power of two behind.
	far     uint32
	farHere uint32
	behind  uint32
	power   uint32
}

const maxMarks = 4096

func (fs *FS) newChain(n *node) *chain {
	c := &chain{fs: fs, first: n.first, contiguous: n.contiguous, table: tableReader{fs: fs}}
	if n.contiguous {
		c.length = uint32((n.allocated + fs.geo.clusterBytes - 1) / fs.geo.clusterBytes)
	}
	return c
}

// run gives the cluster with the given index and how many of the clusters that
// follow it in the chain, at most limit in all, lie behind it in the image.
func (c *chain) run(index, limit uint32) (cluster, count uint32, err error) {
	g := &c.fs.geo
	if !g.has(c.first) {
		return 0, 0, corrupt("the first cluster is %d", c.first)
	}
	if c.contiguous {
		cluster = c.first + index
		if index >= c.length || cluster < c.first || !g.has(cluster) {
			return 0, 0, corrupt("cluster %d of a file that begins at %d", index, c.first)
		}
		return cluster, min(limit, c.length-index, g.clusters-(cluster-firstCluster)), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.seek(index); err != nil {
		return 0, 0, err
	}
	cluster = c.here
	for count = 1; count < limit; count++ {
		before := c.here
		if err := c.step(); err != nil {
			break // it is met again when somebody asks for this cluster
		}
		if c.here != before+1 {
			break
		}
	}
	return cluster, count, nil
}

// seek makes the cluster with the given index the current one.
func (c *chain) seek(index uint32) error {
	if len(c.marks) == 0 {
		if err := c.check(c.first); err != nil {
			return err
		}
		c.marks, c.stride, c.here = append(c.marks, c.first), 1, c.first
		c.farHere, c.behind, c.power = c.first, c.first, 1
	}
	if k := min(index/c.stride, uint32(len(c.marks)-1)); index < c.at || k*c.stride > c.at {
		c.at, c.here = k*c.stride, c.marks[k]
	}
	for c.at < index {
		if err := c.step(); err != nil {
			return err
		}
	}
	return nil
}

// step goes to the next cluster. With an error it stays.
func (c *chain) step() error {
	next, err := c.table.next(c.here)
	if err != nil {
		return err
	}
	g := &c.fs.geo
	switch {
	case next == entryEnd:
		return &chainEnd{clusters: c.at + 1}
	case !g.has(next):
		return corrupt("cluster %d: the FAT has no valid next one", c.here)
	case c.at+1 >= g.clusters:
		return corrupt("the chain from cluster %d is longer than the volume", c.first)
	}
	if c.at == c.far {
		if err := c.advance(next); err != nil {
			return err
		}
	}
	c.at, c.here = c.at+1, next
	return nil
}

// advance takes a cluster that was not seen before.
func (c *chain) advance(next uint32) error {
	if next == c.behind {
		return corrupt("the chain from cluster %d comes back to cluster %d", c.first, next)
	}
	if err := c.check(next); err != nil {
		return err
	}
	c.far++
	c.farHere = next
	if c.far == 2*c.power {
		c.behind, c.power = next, c.far
	}
	if c.far != uint32(len(c.marks))*c.stride {
		return nil
	}
	if len(c.marks) == maxMarks {
		for i := range maxMarks / 2 {
			c.marks[i] = c.marks[2*i]
		}
		c.marks, c.stride = c.marks[:maxMarks/2], 2*c.stride
	}
	if c.far == uint32(len(c.marks))*c.stride {
		c.marks = append(c.marks, next)
	}
	return nil
}

// check refuses a cluster that the FAT calls free: see the package comment.
func (c *chain) check(cluster uint32) error {
	v, err := c.table.next(cluster)
	if err != nil {
		return err
	}
	if v == entryFree || v == entryBad {
		return corrupt("cluster %d of the chain from %d is marked free or bad", cluster, c.first)
	}
	return nil
}

// chainEnd says that a chain has no more clusters: damage for a file whose
// size goes on, the end of a directory of FAT.
type chainEnd struct{ clusters uint32 }

func (e *chainEnd) Error() string {
	return corrupt("the cluster chain ends after %d clusters", e.clusters).Error()
}

func (e *chainEnd) Unwrap() error { return filesystem.ErrCorrupt }
