package restorepoint

import (
	"context"

	"cairn/chunkstore/chunk"
)

// IDSource gives chunks' IDs; *chunkstore.IDReader is one.
type IDSource interface {
	// ReadIDs fills dst with the IDs of the chunks first… of a data pack.
	ReadIDs(ctx context.Context, ref chunk.PackRef, first int, dst []chunk.ID) error
}

// ChunkIDs fills dst with the IDs of a disk's chunks from number first on. A
// hole, and what lies behind the disk's end, has the zero ID, which no chunk
// has.
func (m *Map) ChunkIDs(ctx context.Context, src IDSource, first int64, dst []chunk.ID) error {
	clear(dst)
	for at := int64(0); at < int64(len(dst)); {
		i, skip := (first+at)/leafChunks, (first+at)%leafChunks
		if i*LeafSize >= m.size {
			return nil
		}
		l, err := m.leaf(ctx, i)
		if err != nil {
			return err
		}
		n := min(int64(len(dst))-at, leafChunks-skip)
		if err := l.chunkIDs(ctx, src, skip, dst[at:at+n]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// chunkIDs is ChunkIDs within a leaf.
func (l *leaf) chunkIDs(ctx context.Context, src IDSource, first int64, dst []chunk.ID) error {
	end := first + int64(len(dst))
	for _, r := range l.runs[l.find(int(first)):] {
		from, to := max(int64(r.first), first), min(int64(r.first)+int64(r.count), end)
		if from >= end {
			return nil
		}
		if err := src.ReadIDs(ctx, l.packs[r.pack], int(r.chunk)+int(from)-int(r.first), dst[from-first:to-first]); err != nil {
			return err
		}
	}
	return nil
}
