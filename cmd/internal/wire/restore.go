package wire

import (
	"context"

	"cairn/chunkstore/chunk"
	"cairn/cmd/internal/job/image"
	"cairn/index/restorepoint"
)

// Disk opens a disk of a point to be restored. Its readers are parallel
// already: nothing is read ahead.
func (c *Catalogue) Disk(m *restorepoint.Manifest, disk string) (image.Disk, error) {
	dm, err := c.Map(m, disk)
	if err != nil {
		return image.Disk{}, err
	}
	ids, key := c.repo.Store.NewIDReader(), c.repo.Store.ChunkKey()
	return image.Disk{
		Name:   m.VM.Name + " " + disk,
		Image:  restorepoint.NewImage(dm, nil),
		IDs:    func(ctx context.Context, first int64, dst []chunk.ID) error { return dm.ChunkIDs(ctx, ids, first, dst) },
		Hasher: func() *chunk.Hasher { return chunk.NewHasher(key) },
	}, nil
}
