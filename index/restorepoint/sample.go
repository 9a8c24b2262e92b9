package restorepoint

import (
	"context"
	"math/rand/v2"

	"cairn/chunkstore/chunk"
)

// maxSample bounds the chunks of one sample: some seconds of reading.
const maxSample = 16 << 10

// Sample draws chunks of the disk at random and gives their offsets in bytes,
// in random order: share of all chunks (0.001 is one in a thousand), at least
// least. After the first least, those are passed over in whose 16 MiB the map
// has nothing: a sparse disk is sampled mostly where its data is.
func (m *Map) Sample(ctx context.Context, rnd *rand.Rand, share float64, least int) ([]int64, error) {
	chunks := (m.size + chunk.Size - 1) / chunk.Size
	if chunks == 0 {
		return nil, nil
	}
	var out []int64
	n := max(int64(share*float64(chunks)), int64(least))
	for i := int64(0); i < n && len(out) < max(maxSample, least); i++ {
		c := rnd.Int64N(chunks)
		if i >= int64(least) {
			_, ok, err := m.leafRef(ctx, c/leafChunks)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
		}
		out = append(out, c*chunk.Size)
	}
	return out, nil
}
