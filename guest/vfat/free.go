package vfat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"cairn/guest/filesystem"
)

// scanBytes is read of a FAT at once: whole entries of all widths.
const scanBytes = 3 << 14

// exactBytes is up to which size a FAT is counted by Open although FSInfo
// knows the count, and countBytes up to which when it does not.
const (
	exactBytes = 1 << 20
	countBytes = 64 << 20
)

// countFree counts the free clusters for Info.
func (fs *FS) countFree(ctx context.Context) error {
	g := &fs.geo
	if g.bits == bitsExfat {
		return fs.countBitmap(ctx)
	}
	hint, known := fs.readFSInfo()
	if known && g.tableBytes() > exactBytes {
		fs.free = int64(hint)
		return nil
	}
	if g.tableBytes() > countBytes {
		fs.note("the free space is not known: FSInfo does not tell, and the FAT is large")
		return nil
	}
	err := fs.eachFATEntry(ctx, func(c, v uint32) error {
		if v == entryFree {
			fs.free++
		}
		return nil
	})
	return fs.noFreeCount(ctx, err)
}

// noFreeCount makes a note of damage that keeps free space from being counted.
func (fs *FS) noFreeCount(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || !errors.Is(err, filesystem.ErrCorrupt) {
		return err
	}
	fs.free = 0
	fs.note("the free space is not known: %v", err)
	return nil
}

func (fs *FS) countBitmap(ctx context.Context) error {
	if fs.geo.clusters > maxBitmapBytes*8 && fs.geo.percentUsed <= 100 {
		fs.free = int64(fs.geo.clusters) / 100 * int64(100-fs.geo.percentUsed)
		return nil
	}
	bitmap, err := fs.readBitmap(ctx)
	if err == nil {
		used := 0
		for _, b := range bitmap {
			used += bits.OnesCount8(b)
		}
		fs.free = int64(fs.geo.clusters) - int64(used)
	}
	return fs.noFreeCount(ctx, err)
}

// maxBitmapBytes bounds the memory of a bit per cluster.
const maxBitmapBytes = 32 << 20

// readBitmap reads exFAT's allocation bitmap: a bit for each cluster from the
// first on (specification, 7.1). Bits behind the last one are cleared.
func (fs *FS) readBitmap(ctx context.Context) ([]byte, error) {
	n := &fs.exfat.bitmap
	need := (int64(fs.geo.clusters) + 7) / 8
	switch {
	case n.first == 0:
		return nil, corrupt("there is no allocation bitmap")
	case n.size < need:
		return nil, corrupt("an allocation bitmap of %d bytes for %d clusters", n.size, fs.geo.clusters)
	case need > maxBitmapBytes:
		return nil, fmt.Errorf("%w: an allocation bitmap of %d bytes", filesystem.ErrUnsupported, need)
	case need > fs.size:
		return nil, corrupt("an allocation bitmap of %d bytes", need)
	}
	f := file{fs: fs, ino: n.ino, size: n.size, valid: n.size, chain: fs.newChain(n)}
	bitmap := make([]byte, need)
	for off := 0; off < len(bitmap); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		part := bitmap[off:min(len(bitmap), off+1<<20)]
		if _, err := f.ReadAt(part, int64(off)); err != nil && err != io.EOF {
			return nil, fmt.Errorf("allocation bitmap: %w", err)
		}
		off += len(part)
	}
	if extra := fs.geo.clusters % 8; extra != 0 {
		bitmap[need-1] &= 1<<extra - 1
	}
	return bitmap, nil
}

// tableBytes is the part of a FAT that has the clusters' entries.
func (g *geometry) tableBytes() int64 {
	width := int64(g.bits)
	if g.bits == bitsExfat {
		width = 32
	}
	return ((int64(g.clusters)+firstCluster)*width + 7) / 8
}

// eachFATEntry calls fn for every cluster with what the active FAT says of it.
func (fs *FS) eachFATEntry(ctx context.Context, fn func(c, v uint32) error) error {
	g := &fs.geo
	buf := make([]byte, min(scanBytes, g.tableBytes()+1))
	c := uint32(0)
	for off := int64(0); off < g.tableBytes(); off += scanBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(scanBytes, g.tableBytes()-off)]
		if err := fs.readAt(b, g.fats[g.active]+off); err != nil {
			return fmt.Errorf("FAT: %w", err)
		}
		end := c + uint32(int64(len(b))*8/int64(g.bits))
		for i := uint32(0); c < end && (c < firstCluster || g.has(c)); i, c = i+1, c+1 {
			var v uint32
			switch g.bits {
			case 12:
				v = g.meaning12(uint16(b[i*3/2])>>(i&1*4) | uint16(b[i*3/2+1])<<(8-i&1*4))
			case 16:
				v = g.meaning(widen(uint32(le.Uint16(b[2*i:])), 16))
			default:
				v = g.meaning(widen(le.Uint32(b[4*i:])&0x0FFFFFFF, 28))
			}
			if c < firstCluster {
				continue
			}
			if err := fn(c, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameFATs compares the two copies of the FAT, without the entries of clusters
// 0 and 1, which hold marks.
func (fs *FS) sameFATs(ctx context.Context) error {
	g := &fs.geo
	if !g.mirrored || g.fatCount < 2 {
		return nil
	}
	var bufs [2][]byte
	for i := range bufs {
		bufs[i] = make([]byte, scanBytes)
	}
	for off := int64(8); off < g.tableBytes(); off += scanBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(scanBytes, g.tableBytes()-off)
		for i := range bufs {
			if err := fs.readAt(bufs[i][:n], g.fats[i]+off); err != nil {
				return fmt.Errorf("FAT %d: %w", i, err)
			}
		}
		if !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
			return corrupt("the two copies of the FAT differ")
		}
	}
	return nil
}

// usedClusters has a bit for each cluster, the first one in bit 0.
type usedClusters struct {
	bits  []byte
	count uint32
}

func (u *usedClusters) mark(c uint32) {
	if i := c - firstCluster; c >= firstCluster && i < u.count {
		u.bits[i/8] |= 1 << (i % 8)
	}
}

// Free gives the clusters that neither the FAT or the allocation bitmap nor
// any directory entry uses; the latter matters where a guest was stopped
// between writing the two. Nothing is told of a filesystem with a damaged
// FAT, bitmap or directory, or with copies of the FAT that differ.
func (fs *FS) Free(ctx context.Context, fn func(start, end int64) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g := &fs.geo
	var used *usedClusters
	var err error
	if g.bits == bitsExfat {
		used, err = fs.usedExfat(ctx)
	} else {
		used, err = fs.usedFAT(ctx)
	}
	if err != nil {
		return fmt.Errorf("vfat: free space: %w", err)
	}
	for i := uint32(0); i < used.count; {
		if i%8 == 0 && used.bits[i/8] == 0xFF {
			i += min(8, used.count-i)
			continue
		}
		if used.bits[i/8]>>(i%8)&1 != 0 {
			i++
			continue
		}
		start := i
		for i < used.count && used.bits[i/8]>>(i%8)&1 == 0 {
			if i%8 == 0 && used.bits[i/8] == 0 {
				i += min(8, used.count-i)
			} else {
				i++
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		from, to := g.place(start+firstCluster), min(g.place(i+firstCluster), fs.size)
		if from >= to {
			return nil
		}
		if err := fn(from, to); err != nil {
			return err
		}
	}
	return nil
}

func (fs *FS) newUsed() (*usedClusters, error) {
	n := (int64(fs.geo.clusters) + 7) / 8
	if n > maxBitmapBytes {
		return nil, fmt.Errorf("%w: %d clusters", filesystem.ErrUnsupported, fs.geo.clusters)
	}
	return &usedClusters{bits: make([]byte, n), count: fs.geo.clusters}, nil
}

// usedFAT marks what has an entry in the FAT, what an entry names, and where
// files begin.
func (fs *FS) usedFAT(ctx context.Context) (*usedClusters, error) {
	if fs.geo.tableBytes() > fs.size {
		return nil, corrupt("a FAT of %d bytes", fs.geo.tableBytes())
	}
	if err := fs.sameFATs(ctx); err != nil {
		return nil, err
	}
	used, err := fs.newUsed()
	if err != nil {
		return nil, err
	}
	err = fs.eachFATEntry(ctx, func(c, v uint32) error {
		if v == entryInvalid {
			return corrupt("cluster %d: the FAT names no cluster", c)
		}
		if v != entryFree {
			used.mark(c)
			used.mark(v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return used, fs.eachNode(ctx, func(n *node) error {
		used.mark(n.first)
		return nil
	})
}

// usedExfat marks the bitmap's clusters and those of all files.
func (fs *FS) usedExfat(ctx context.Context) (*usedClusters, error) {
	bitmap, err := fs.readBitmap(ctx)
	if err != nil {
		return nil, err
	}
	used := &usedClusters{bits: bitmap, count: fs.geo.clusters}
	mark := func(n *node) error {
		size := n.allocated
		if n.ino == rootIno {
			size = fs.geo.maxDirBytes()
		}
		return fs.markChain(ctx, used, n, size)
	}
	n := fs.exfat.bitmap
	if err := fs.markChain(ctx, used, &n, n.size); err != nil {
		return nil, err
	}
	return used, fs.eachNode(ctx, mark)
}

// markChain marks the clusters of size bytes. A chain that is shorter or
// damaged is marked as far as it can be read.
func (fs *FS) markChain(ctx context.Context, used *usedClusters, n *node, size int64) error {
	if !fs.geo.has(n.first) {
		return nil
	}
	c := fs.newChain(n)
	clusters := uint32(min((size+fs.geo.clusterBytes-1)/fs.geo.clusterBytes, int64(fs.geo.clusters)))
	for i := uint32(0); i < clusters; {
		if err := ctx.Err(); err != nil {
			return err
		}
		cluster, count, err := c.run(i, min(clusters-i, 1<<16))
		if errors.Is(err, filesystem.ErrCorrupt) {
			return nil
		}
		if err != nil {
			return err
		}
		for k := range count {
			used.mark(cluster + k)
		}
		i += count
	}
	return nil
}

// eachNode calls fn for the root and every file and directory, each once. What
// cannot be read ends it.
func (fs *FS) eachNode(ctx context.Context, fn func(n *node) error) error {
	seen := map[filesystem.Ino]bool{rootIno: true}
	for queue := []filesystem.Ino{rootIno}; len(queue) > 0; {
		dir := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		n, err := fs.directory(ctx, dir)
		if err != nil {
			return err
		}
		if err := fn(&n); err != nil {
			return err
		}
		var inner error
		err = fs.eachEntry(ctx, &n, 0, func(e *entry) bool {
			if e.dir {
				if !seen[e.ino] {
					seen[e.ino] = true
					queue = append(queue, e.ino)
				}
				return true
			}
			child, err := fs.readNode(e.ino)
			if err == nil {
				err = fn(&child)
			}
			inner = err
			return err == nil
		})
		if err = errors.Join(inner, err); err != nil {
			return fmt.Errorf("directory inode %d: %w", dir, err)
		}
	}
	return nil
}
