package chunkstoretest

import (
	"context"
	"slices"

	"cairn/chunkstore/chunk"
)

// Index is a chunkstore.Index of all packs that there ever were, also of those
// that are gone, or were never durable: the worst cache that a host can have.
type Index map[chunk.ID][]chunk.PackRef

// Packs gives the packs that hold chunks.
func (x Index) Packs(_ context.Context, hooks []chunk.ID) (out []chunk.PackRef, _ error) {
	for _, h := range hooks {
		for _, r := range x[h] {
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// Add takes a pack's chunks.
func (x Index) Add(_ context.Context, ref chunk.PackRef, ids []chunk.ID) error {
	for _, id := range ids {
		if !slices.Contains(x[id], ref) {
			x[id] = append(x[id], ref)
		}
	}
	return nil
}
