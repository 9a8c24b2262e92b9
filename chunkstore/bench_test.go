package chunkstore

import (
	"context"
	"testing"

	"cairn/chunkstore/backend/mem"
	"cairn/chunkstore/pack"
)

// BenchmarkOpenPack is what the first read of a pack costs before any chunk is
// read, and the part of it that binds the pack's name: 2 ‰ of it when it was
// introduced.
func BenchmarkOpenPack(b *testing.B) {
	ctx := context.Background()
	s := newStore(b, mem.New())
	if _, _, _, err := save(ctx, s, newMemIndex(), image(1, 4000), nil); err != nil {
		b.Fatal(err)
	}
	var ref PackRef
	_ = s.Packs(ctx, func(r PackRef, size int64) error {
		if size > 100_000 {
			ref = r
		}
		return nil
	})
	stored, err := s.ReadPack(ctx, ref)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			f, err := s.ReadFooter(ctx, ref)
			if err != nil {
				b.Fatal(err)
			}
			f.OpenKey(s.keys)
		}
	})
	b.Run("name", func(b *testing.B) {
		for b.Loop() {
			if !pack.EndNames(stored, ref.Hash) {
				b.Fatal("another name")
			}
		}
	})
}
