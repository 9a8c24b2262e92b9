package wire

import (
	"context"

	"cairn/chunkstore/chunk"
	"cairn/cmd/internal/job"
	"cairn/index/restorepoint"
)

// Disk opens a disk of a point to be restored. Its readers are parallel
// already: nothing is read ahead.
func (c *Catalogue) Disk(m *restorepoint.Manifest, disk string) (job.PointDisk, error) {
	dm, err := c.Map(m, disk)
	if err != nil {
		return job.PointDisk{}, err
	}
	ids, key := c.repo.Store.NewIDReader(), c.repo.Store.ChunkKey()
	return job.PointDisk{
		Name:   m.VM.Name + " " + disk,
		Image:  restorepoint.NewImage(dm, nil),
		IDs:    func(ctx context.Context, first int64, dst []chunk.ID) error { return dm.ChunkIDs(ctx, ids, first, dst) },
		Hasher: func() *chunk.Hasher { return chunk.NewHasher(key) },
	}, nil
}
